"""run a set of pictures through a model once and publish the index"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from vitscope.indexer.commands._size import size
from vitscope.store.text import counted

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="timm model, with its pretrained tag or not")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="local weights (.safetensors or .pth)"
    )
    weights.add_argument(
        "--random-weights", action="store_true", help="untrained weights, for trying things out"
    )
    add(
        "--img-size",
        type=size,
        metavar="N|HxW",
        help="side, or height and width, of the model's input in pixels",
    )
    add(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of pictures, tar shard or shards ('shard-{000..127}.tar'), "
        "Hugging Face data set on disk, CSV or Parquet list (docs/sources.md)",
    )
    add("--split", metavar="NAME", help="which split of a Hugging Face data set")
    add("--boxes", type=Path, metavar="DIR", help="folder of XML boxes, as ImageNet has them")
    add("--out", type=Path, required=True, metavar="INDEX", help="folder to make the index in")
    add("--append", action="store_true", help="add the pictures to the index that is there")
    add("--limit", type=int, metavar="N", help="only the first N pictures")
    add("--top-k", type=int, default=32, metavar="K", help="maps kept per channel (default 32)")
    add("--poolings", default="", metavar="NAMES", help="of mean, max, cls (default all there are)")
    add(
        "--retain-all",
        default="",
        metavar="LAYERS",
        help="keep all activations of these layers, comma-separated, or `all`",
    )
    add(
        "--retain-prefix",
        default="",
        metavar="LAYERS",
        help="keep the activations of all prefix tokens of these layers, or of `all`",
    )
    add("--batch-size", type=int, default=32, metavar="B", help="pictures a forward (default 32)")
    add("--unit-rows", type=int, metavar="U", help="pictures a unit (default about 1024)")
    add("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    add("--device", default="", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    add("--workers", type=int, default=1, metavar="N", help="processes side by side (default 1)")
    add(
        "--threads",
        type=int,
        metavar="T",
        help="CPU threads of each process (default: the cores shared out); bits may depend on it",
    )
    add(
        "--thumbnail-size",
        type=int,
        default=256,
        metavar="PX",
        help="longer side of the pictures stored in the index, 0 for none (default 256)",
    )


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
    from vitscope.indexer.model import Weights
    from vitscope.indexer.options import Options
    from vitscope.indexer.run import index
    from vitscope.store.generation import open_generation

    start = time.monotonic()
    name = index(
        Options(
            model=args.model,
            data=args.data,
            out=args.out,
            append=args.append,
            weights=Weights(args.checkpoint, args.random_weights),
            img_size=args.img_size,
            limit=args.limit,
            split=args.split,
            boxes=args.boxes,
            top_k=args.top_k,
            poolings=_names(args.poolings),
            retain_all=_names(args.retain_all),
            retain_prefix=_names(args.retain_prefix),
            batch_size=args.batch_size,
            unit_rows=args.unit_rows,
            dtype=args.dtype,
            device=args.device,
            workers=args.workers,
            threads=args.threads,
            thumbnail_size=args.thumbnail_size,
        )
    )
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


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name for name in listed.split(",") if name)
