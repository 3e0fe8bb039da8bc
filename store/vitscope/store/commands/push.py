"""publish an index in a bucket of S3, or of a store that speaks its protocol"""

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
    parser.add_argument("path", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument("url", metavar="s3://BUCKET/PREFIX", help="where it is to be, as it is")
    parser.add_argument(
        "--replace", action="store_true", help="also where another's generation is published there"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Send what is not there yet, then publish it."""
    from vitscope.store.stopping import resumable

    return resumable(lambda: _push(args))


def _push(args: argparse.Namespace) -> int:
    from vitscope.store.push import push

    start = time.monotonic()
    done = push(args.path, args.url, replace=args.replace)
    seconds = time.monotonic() - start
    if args.json:
        print(json.dumps({"url": args.url, **asdict(done), "seconds": seconds}))
        return 0
    copied = f", {counted(done.copied, 'file')} copied there" if done.copied else ""
    print(
        f"Published {done.generation} at {args.url}: {counted(done.files, 'file')}, "
        f"{counted(done.bytes, 'byte')}; sent {counted(done.sent, 'file')}, "
        f"{counted(done.sent_bytes, 'byte')}{copied}, {seconds:.1f} s."
    )
    return 0
