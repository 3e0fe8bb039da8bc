"""The arguments that `index` and `plan` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitscope.indexer.options import Options


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what says how pictures are indexed, but not where to."""
    _add_model(parser)
    _add_pictures(parser)
    _add_what_is_kept(parser)
    _add_machine(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
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


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of pictures, tar shard or shards ('shard-{000..127}.tar'), "
        "Hugging Face data set on disk, CSV or Parquet list (docs/sources.md)",
    )
    add(
        "--decoder",
        default="pillow",
        metavar="NAME",
        help="how pictures are read: pillow (default), pillow-dct or torchcodec (docs/decoding.md)",
    )
    add("--split", metavar="NAME", help="which split of a Hugging Face data set")
    add("--boxes", type=Path, metavar="DIR", help="folder of XML boxes, as ImageNet has them")
    add("--limit", type=int, metavar="N", help="only the first N pictures")


def _add_what_is_kept(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--top-k", type=int, default=32, metavar="K", help="maps kept per channel (default 32)")
    add("--poolings", default="", metavar="NAMES", help="of mean, max, cls (default all there are)")
    add(
        "--retain-all",
        default="",
        metavar="LAYERS",
        help="keep all activations of these layers, comma-separated, or `all`",
    )
    add(
        "--patch-search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="index the patches of these layers for `similar-patches` (default: yes; without, "
        "every patch is looked at)",
    )
    add(
        "--retain-prefix",
        default="",
        metavar="LAYERS",
        help="keep the activations of all prefix tokens of these layers, or of `all`",
    )
    add(
        "--thumbnail-size",
        type=int,
        default=256,
        metavar="PX",
        help="longer side of the pictures stored in the index, 0 for none (default 256)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--batch-size",
        type=int,
        metavar="B",
        help="pictures a forward (default 32, on a GPU what it has memory for)",
    )
    add(
        "--unit-rows",
        type=int,
        metavar="U",
        help="pictures a unit (default 1024, or 4096 from 131,072 on)",
    )
    add("--dtype", default="float32", help="float32 (default), bfloat16 or float16")
    add("--device", default="", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    add("--workers", type=int, metavar="N", help="processes side by side (default 1)")
    add(
        "--threads",
        type=int,
        metavar="T",
        help="CPU threads of each process (default: the cores shared out); bits may depend on it",
    )


def options_from(args: argparse.Namespace, out: Path, *, append: bool = False) -> Options:
    """What a run is asked to do."""
    from vitscope.indexer.model import Weights
    from vitscope.indexer.options import Options

    return Options(
        model=args.model,
        data=args.data,
        out=out,
        append=append,
        weights=Weights(args.checkpoint, args.random_weights),
        img_size=args.img_size,
        limit=args.limit,
        split=args.split,
        boxes=args.boxes,
        top_k=args.top_k,
        poolings=_names(args.poolings),
        retain_all=_names(args.retain_all),
        patch_search=args.patch_search,
        retain_prefix=_names(args.retain_prefix),
        batch_size=args.batch_size,
        unit_rows=args.unit_rows,
        decoder=args.decoder,
        dtype=args.dtype,
        device=args.device,
        workers=args.workers,
        ray=getattr(args, "ray", ""),
        threads=args.threads,
        thumbnail_size=args.thumbnail_size,
    )


def size(text: str) -> tuple[int, int]:
    """`224`, or `192x256` for height and width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.removeprefix("-").isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give pixels such as 224, or height x width such as 192x256"
        )
    return int(sides[0]), int(sides[-1])


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name for name in listed.split(",") if name)
