"""run a set of pictures through a model once and publish the index"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vitscope.indexer.commands._options import add_run_arguments, options_from
from vitscope.store.text import counted

if TYPE_CHECKING:
    from vitscope.indexer.options import Options

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="INDEX", help="folder to make the index in")
    add("--append", action="store_true", help="add the pictures to the index that is there")
    add(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do only every N-th unit from the I-th on, I from 0; runs of all N, on any machines "
        "that share INDEX, and then `vitscope merge INDEX` make it whole",
    )
    add(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="do units on a Ray cluster, at HOST:PORT or `local`; --workers then says how many "
        "actors (default: all that it has room for)",
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Index, then say what was made and which pictures could not be read."""
    from vitscope.indexer.stopping import Stopped, stoppable

    try:
        with stoppable():
            return _index(args)
    except Stopped as stop:
        print("vitscope: Stopped; the same command goes on from here.", file=sys.stderr)
        return stop.exit_status


def _index(args: argparse.Namespace) -> int:
    from vitscope.indexer.errors import IndexingError
    from vitscope.indexer.run import index

    start = time.monotonic()
    options = options_from(args, args.out, append=args.append)
    if args.shard and args.ray:
        raise IndexingError("--shard and --ray share a run out in two ways; give one of them.")
    if args.shard:
        return _index_shard(options, args.shard, start)
    tell(args.out, index(options), start)
    return 0


def _index_shard(options: Options, shard: tuple[int, int], start: float) -> int:
    from vitscope.indexer.plan import Shard
    from vitscope.indexer.sharded import index_shard

    which = Shard(*shard)
    units = index_shard(options, which)
    print(
        f"Shard {which} of {options.out} is done: {counted(units, 'unit')}, "
        f"{time.monotonic() - start:.1f} s. Once all {which.count} are: vitscope merge "
        f"{options.out}"
    )
    return 0


def _shard(text: str) -> tuple[int, int]:
    """`0/3` to `2/3`."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shard; give its number, from 0, and how many there are, such as 0/3"
        )
    return int(number), int(count)


def tell(out: Path, name: str, start: float) -> None:
    """Say what was published, and which pictures could not be read."""
    from vitscope.store.generation import open_generation

    generation = open_generation(out)
    manifest = generation.manifest
    size = sum(record.bytes for record in manifest.files.values())
    print(
        f"Published {name} in {out}: {counted(manifest.valid_rows, 'image')}, "
        f"{counted(len(manifest.layers), 'layer')}, {counted(size, 'byte')}, "
        f"{time.monotonic() - start:.1f} s."
    )
    invalid = (~generation.rows.valid).nonzero()[0]
    if len(invalid):
        print(f"No readable image, kept as invalid rows ({len(invalid):,}):")
        for row in invalid[:20]:
            print(f"  {generation.rows.record(int(row))}")
        if len(invalid) > 20:
            print("  … `vitscope info --json` lists them all.")
