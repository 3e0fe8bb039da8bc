"""run a set of pictures through a model once and publish the index"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vitscope.indexer.commands._options import add_run_arguments, options_from
from vitscope.store.text import counted

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="INDEX", help="folder to make the index in")
    add("--append", action="store_true", help="add the pictures to the index that is there")
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
    from vitscope.indexer.run import index
    from vitscope.store.generation import open_generation

    start = time.monotonic()
    name = index(options_from(args, args.out, append=args.append))
    generation = open_generation(args.out)
    manifest = generation.manifest
    size = sum(record.bytes for record in manifest.files.values())
    print(
        f"Published {name} in {args.out}: {counted(manifest.valid_rows, 'image')}, "
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
    return 0
