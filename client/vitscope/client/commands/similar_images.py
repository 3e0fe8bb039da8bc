"""List the images nearest to an image in a layer's activation space."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.files import png_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_row(parser)
    _common.add_count(parser)
    _common.add_exact(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    with _common.connect(args) as client:
        near = client.similar_images(
            args.layer, args.row, k=args.k, exact=args.exact, index=args.index
        )
        if target is not None:
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            _sheets.require_few(1 + len(near.images))
            _sheets.save(target, [sheets.similar_images_section(client, args.index, near)])
    if args.json:
        _common.print_json(
            {
                "generation": near.generation,
                "layer": near.layer,
                "row": near.row,
                "exact": near.exact,
                "recall_at_10": near.recall_at_10,
                "images": _common.ranking_json(near.images),
            }
        )
        return 0
    _common.print_ranking(near.images)
    _common.tell_recall(near.exact, near.recall_at_10)
    return 0
