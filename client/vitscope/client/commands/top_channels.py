"""List the channels that are strongest on an image, on a patch of it or in a box."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.fields import POOLINGS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_row(parser)
    _common.add_layers(parser, "all of them")
    part = parser.add_mutually_exclusive_group()
    part.add_argument(
        "--pooling", choices=list(POOLINGS), help="of the whole image (default: by the mean)"
    )
    part.add_argument(
        "--patch", metavar=("Y", "X"), type=int, nargs=2, help="on this patch of the layer's grid"
    )
    part.add_argument(
        "--rectangle",
        metavar=("X0", "Y0", "X1", "Y1"),
        type=float,
        nargs=4,
        help="inside minus outside, in pixels of the source picture",
    )
    part.add_argument(
        "--box", metavar="N", type=int, help="inside minus outside the image's box of that number"
    )
    parser.add_argument(
        "--percentiles",
        action="store_true",
        help="by the share of images that score lower: some channels are strong on every image",
    )
    _common.add_count(parser, "channels")
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with _common.connect(args) as client:
        top = client.top_channels(
            args.row,
            layers=args.layers,
            pooling=args.pooling,
            patch=args.patch and tuple(args.patch),
            rectangle=args.rectangle and tuple(args.rectangle),
            box=args.box,
            percentiles=args.percentiles,
            k=args.k,
            index=args.index,
        )
    if args.json:
        channels = _common.channels_json(top.channels)
        _common.print_json({"generation": top.generation, "row": top.row, "channels": channels})
    else:
        _common.print_channels(top.channels, "score")
    return 0
