"""write copies of pictures without background, objects or detail, to index and compare"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="pictures, as for index")
    add("--split", help="which part of a Hugging Face data set")
    add("--boxes", type=Path, metavar="DIR", help="folder of XML boxes, as for index")
    add("--limit", type=int, metavar="N", help="the first N pictures only")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the copies")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--mask",
        choices=["background", "foreground"],
        help="cover what lies outside the boxes, or inside",
    )
    what.add_argument(
        "--low-pass",
        type=float,
        metavar="SIGMA",
        help="blur by a Gaussian with this standard deviation in pixels",
    )
    add(
        "--fill",
        default="gray",
        metavar="COLOUR",
        help="what covers: gray (default), black, mean (of the picture), or R,G,B",
    )
    add("--masks", type=Path, metavar="DIR", help="pictures, white where the object is, for boxes")
    add("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    """Write the variant and say how to index it."""
    from vitscope.indexer.errors import IndexingError
    from vitscope.store.stopping import resumable

    if args.limit is not None and args.limit < 1:
        raise IndexingError("--limit must be at least 1.")
    if args.masks is not None and args.mask is None:
        raise IndexingError("--masks says where objects are; give --mask background or foreground.")
    return resumable(lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    from vitscope.indexer.sources import open_source
    from vitscope.indexer.variant import LIST, Change, Variant

    source = open_source(args.data, limit=args.limit, split=args.split, boxes=args.boxes)
    change = Change(mask=args.mask, fill=args.fill, low_pass=args.low_pass)
    made = Variant(source, args.out, change, args.masks).make()
    if args.json:
        print(json.dumps({"list": str(args.out / LIST), **asdict(made)}))
        return 0
    print(f"{made.pictures:,} pictures in {args.out}.")
    if made.unmasked:
        print(f"{made.unmasked:,} have no boxes and are copied as they are.")
    if made.invalid:
        print(f"{made.invalid:,} could not be read, and cannot be in the copy.")
    print(f"Index them with `vitscope index --data {args.out / LIST} …`.")
    return 0
