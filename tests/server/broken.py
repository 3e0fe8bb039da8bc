"""A server whose answers fail in ways that nobody foresaw, or never end."""

from __future__ import annotations

import sys

SECRET = "a secret of /the/server"
"""What must reach the log alone."""
BROKEN = f"""
import logging, sys, time
from dataclasses import replace
from vitscope.client.cli import main
from vitscope.server.going import check_caller
from vitscope.server.questions import QUESTIONS
from vitscope.v1 import query_pb2 as pb

def fail(*_):
    logging.getLogger("vitscope.server").warning("About to fail.")
    raise RuntimeError({SECRET!r})

def fail_later(*given):
    # The replies of a stream are made sixteen at a time.
    for _ in range(20):
        yield from images(*given)
    fail()

def wait(*_, **__):
    for _ in range(16):
        yield pb.GetPatchMapsResponse(generation="some")
    while True:
        check_caller()
        time.sleep(0.001)

def flood(*_):
    while True:
        yield pb.TopImagesResponse(generation="x" * 65536)

images = QUESTIONS["GetImages"].answer
for name, answer in (
    ("TopImages", fail),
    ("GetImages", fail_later),
    ("GetPatchMaps", wait),
    ("TopImagesOfChannels", flood),
):
    QUESTIONS[name] = replace(QUESTIONS[name], answer=answer)
sys.exit(main(sys.argv[1:]))
"""
PROGRAM = (sys.executable, "-c", BROKEN)
"""In place of `vitscope`: `TopImages` fails, `GetImages` after twenty replies, `GetPatchMaps` waits
after sixteen until its caller goes away, and `TopImagesOfChannels` sends more than anybody takes.
"""
