"""Run an own picture through the server's live model: its channels and neighbours."""

import argparse
from dataclasses import asdict
from pathlib import Path

from vitscope.client.commands import _common
from vitscope.client.files import png_target
from vitscope.client.results import AnalyzedImage
from vitscope.client.text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    parser.add_argument("picture", metavar="FILE", type=Path, help="a JPEG, PNG or other picture")
    _common.add_layers(parser, "all of them")
    _common.add_pooling(parser)
    parser.add_argument(
        "--percentiles",
        action="store_true",
        help="by the share of images that score lower: some channels are strong on every image",
    )
    _common.add_count(parser, "channels")
    parser.add_argument(
        "--neighbours",
        metavar="N",
        type=int,
        default=5,
        help="nearest images in each layer, 0 for none (default: %(default)s)",
    )
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    with _common.connect(args) as client:
        own = client.analyze_image(
            args.picture,
            layers=args.layers,
            pooling=args.pooling,
            percentiles=args.percentiles,
            channels=args.k,
            neighbours=args.neighbours,
            include_maps=target is not None,
            index=args.index,
        )
        if target is not None:
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            _sheets.require_few(len(own.channels))
            sections = [sheets.analyzed_section(client, args.index, own, args.pooling)]
            # Deeper layers know more of what a picture shows.
            sections += [
                sheets.neighbours_section(client, args.index, own, near)
                for near in own.neighbours[-1:]
            ]
            _sheets.save(target, sections)
    if args.json:
        _common.print_json(_described(own))
    else:
        _print(own)
    return 0


def _described(own: AnalyzedImage) -> dict[str, object]:
    return {
        "generation": own.generation,
        "width": own.width,
        "height": own.height,
        "view": own.view,
        "same_as_row": own.same_as_row,
        "channels": _common.channels_json(own.channels),
        "neighbours": [
            asdict(near) | {"images": _common.ranking_json(near.images)} for near in own.neighbours
        ],
    }


def _print(own: AnalyzedImage) -> None:
    if own.channels:
        _common.print_channels(own.channels, "score")
    rows = [
        (near.layer, rank, f"{image.score:.4f}", image.row, image.label or "-", image.key)
        for near in own.neighbours
        for rank, image in enumerate(near.images, 1)
    ]
    if rows:
        print()
        print(table(["nearest in", "rank", "cosine", "row", "label", "key"], rows))
    if own.same_as_row is not None:
        print(f"\nThe picture is that of row {own.same_as_row}.")
