"""publish an index whose units were done by `vitscope index --shard`"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vitscope.indexer.commands.index import tell

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="INDEX", help="folder that all shards wrote to")


def run(args: argparse.Namespace) -> int:
    """Merge, then say what was published."""
    from vitscope.store.stopping import resumable

    return resumable(lambda: _merge(args.path))


def _merge(index: Path) -> int:
    from vitscope.indexer.sharded import merge_shards

    start = time.monotonic()
    tell(index, merge_shards(index), start)
    return 0
