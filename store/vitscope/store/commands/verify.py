"""check that an index still holds the bytes that were published"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from vitscope.store.text import counted

EXTRA = "store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument("--deep", action="store_true", help="read and hash every byte")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit code 0 where all is well, 4 where something is damaged."""
    from vitscope.store.verify import verify

    result = verify(args.path, deep=args.deep)
    if args.json:
        print(json.dumps(asdict(result)))
    else:
        for problem in result.problems:
            print(f"vitscope: {problem}", file=sys.stderr)
        how = "every byte read" if args.deep else "sizes and metadata checked; --deep reads it all"
        count = len(result.problems)
        sound = "sound" if args.deep else "nothing amiss"
        state = counted(count, "problem") if count else sound
        print(
            f"Generation {result.generation}: {counted(result.files, 'file')}, "
            f"{counted(result.bytes, 'byte')}, {state} ({how})."
        )
    return 4 if result.problems else 0
