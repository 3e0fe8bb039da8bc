"""publish an index whose units were done by `vitscope index --shard`"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vitscope.indexer.commands.index import tell

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="INDEX", help="folder that all shards wrote to")


def run(args: argparse.Namespace) -> int:
    """Merge, then say what was published."""
    from vitscope.indexer.sharded import merge_shards
    from vitscope.indexer.stopping import Stopped, stoppable

    start = time.monotonic()
    try:
        with stoppable():
            tell(args.path, merge_shards(args.path), start)
    except Stopped as stop:
        print("vitscope: Stopped; the same command goes on from here.", file=sys.stderr)
        return stop.exit_status
    return 0
