"""draw small scenes, index, serve and query them: the whole path without a download"""

from __future__ import annotations

import argparse
from pathlib import Path

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("vitscope-demo"), help="folder (default vitscope-demo)")
    add("--count", type=int, default=2_000, metavar="N", help="scenes to draw (default 2000)")


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from vitscope.indexer.demo import run as demo
    from vitscope.indexer.errors import IndexingError

    if args.count < 64:
        raise IndexingError("--count must be at least 64, so that every class occurs a few times.")
    demo(args.out, args.count)
    return 0
