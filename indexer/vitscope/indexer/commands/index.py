"""run a set of pictures through a model once and publish the index"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscope.indexer.commands._options import add_run_arguments, options_from
from vitscope.store.text import counted

if TYPE_CHECKING:
    from vitscope.indexer.options import Options
    from vitscope.indexer.stages import Stages

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
    add("--json", action="store_true", help="print one object, with each stage's busy share")


def run(args: argparse.Namespace) -> int:
    """Index, then say what was made and which pictures could not be read."""
    from vitscope.store.stopping import resumable

    return resumable(lambda: _index(args))


def _index(args: argparse.Namespace) -> int:
    from vitscope.indexer.errors import IndexingError
    from vitscope.indexer.run import index
    from vitscope.indexer.stages import Stages

    start = time.monotonic()
    stages = Stages()
    options = options_from(args, args.out, append=args.append)
    if args.shard and args.ray:
        raise IndexingError("--shard and --ray share a run out in two ways; give one of them.")
    if args.shard:
        done = _index_shard(options, args.shard, stages)
        seconds = time.monotonic() - start
        print(
            json.dumps(done | _spent(seconds, stages)) if args.json else _shard_text(done, seconds)
        )
        return 0
    name = index(options, stages)
    if args.json:
        print(json.dumps(published(args.out, name) | _spent(time.monotonic() - start, stages)))
    else:
        tell(args.out, name, start)
    return 0


def _index_shard(options: Options, shard: tuple[int, int], stages: Stages) -> dict[str, Any]:
    from vitscope.indexer.plan import Shard
    from vitscope.indexer.sharded import index_shard

    which = Shard(*shard)
    units = index_shard(options, which, stages)
    return {"index": str(options.out), "shard": str(which), "shards": which.count, "units": units}


def _shard_text(done: dict[str, Any], seconds: float) -> str:
    return (
        f"Shard {done['shard']} of {done['index']} is done: {counted(done['units'], 'unit')}, "
        f"{seconds:.1f} s. Once all {done['shards']} are: vitscope merge {done['index']}"
    )


def _spent(seconds: float, stages: Stages) -> dict[str, Any]:
    return {"seconds": seconds, "stages": stages.shares()}


def _shard(text: str) -> tuple[int, int]:
    """`0/3` to `2/3`."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shard; give its number, from 0, and how many there are, such as 0/3"
        )
    return int(number), int(count)


def published(out: Path, name: str) -> dict[str, Any]:
    """What a published generation has."""
    from vitscope.store.generation import open_generation

    generation = open_generation(out)
    manifest = generation.manifest
    invalid = (~generation.rows.valid).nonzero()[0]
    return {
        "index": str(out),
        "generation": name,
        "images": manifest.valid_rows,
        "layers": len(manifest.layers),
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "invalid": [str(generation.rows.record(int(row))) for row in invalid],
    }


def tell(out: Path, name: str, start: float) -> None:
    """Say what was published, and which pictures could not be read."""
    made = published(out, name)
    print(
        f"Published {name} in {out}: {counted(made['images'], 'image')}, "
        f"{counted(made['layers'], 'layer')}, {counted(made['bytes'], 'byte')}, "
        f"{time.monotonic() - start:.1f} s."
    )
    invalid = made["invalid"]
    if invalid:
        print(f"No readable image, kept as invalid rows ({len(invalid):,}):")
        for row in invalid[:20]:
            print(f"  {row}")
        if len(invalid) > 20:
            print("  … `vitscope info --json` lists them all.")
