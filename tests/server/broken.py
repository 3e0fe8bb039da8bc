"""A server whose answers fail in ways that nobody foresaw."""

from __future__ import annotations

import sys

SECRET = "a secret of /the/server"
"""What must reach the log alone."""
BROKEN = f"""
import logging, sys
from dataclasses import replace
from vitscope.client.cli import main
from vitscope.server.questions import QUESTIONS

def fail(*_):
    logging.getLogger("vitscope.server").warning("About to fail.")
    raise RuntimeError({SECRET!r})

def fail_later(*given):
    # The replies of a stream are made sixteen at a time.
    for _ in range(20):
        yield from images(*given)
    fail()

images = QUESTIONS["GetImages"].answer
QUESTIONS["TopImages"] = replace(QUESTIONS["TopImages"], answer=fail)
QUESTIONS["GetImages"] = replace(QUESTIONS["GetImages"], answer=fail_later)
sys.exit(main(sys.argv[1:]))
"""
PROGRAM = (sys.executable, "-c", BROKEN)
"""In place of `vitscope`: `TopImages` fails, and `GetImages` after twenty replies."""
