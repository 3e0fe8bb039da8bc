"""bring an index from a bucket of S3, or what is new of it"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from vitscope.store.text import counted

EXTRA = "s3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("url", metavar="s3://BUCKET/PREFIX", help="where it was pushed to")
    parser.add_argument(
        "path", type=Path, metavar="INDEX", help="folder of the index, made where it is missing"
    )
    parser.add_argument(
        "--replace", action="store_true", help="also where INDEX has published one of its own"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Fetch what is not here yet, then publish it."""
    from vitscope.store.stopping import resumable

    return resumable(lambda: _pull(args))


def _pull(args: argparse.Namespace) -> int:
    from vitscope.store.pull import pull

    start = time.monotonic()
    done = pull(args.url, args.path, replace=args.replace)
    seconds = time.monotonic() - start
    if args.json:
        print(json.dumps({"url": args.url, **asdict(done), "seconds": seconds}))
        return 0
    if not done.received and not done.linked:
        print(
            f"{args.path} publishes {done.generation} already, and was not read; "
            "`vitscope verify --deep` does."
        )
        return 0
    linked = f", {counted(done.linked, 'file')} shared with the one before" if done.linked else ""
    print(
        f"Published {done.generation} in {args.path}: {counted(done.files, 'file')}, "
        f"{counted(done.bytes, 'byte')}; received {counted(done.received, 'file')}, "
        f"{counted(done.received_bytes, 'byte')}{linked}, {seconds:.1f} s."
    )
    return 0
