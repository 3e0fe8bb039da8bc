"""List the patches of all images nearest to a patch in a layer's activation space."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.files import png_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_row(parser)
    parser.add_argument(
        "--patch",
        metavar=("Y", "X"),
        type=int,
        nargs=2,
        required=True,
        help="from the top and from the left of the layer's grid",
    )
    _common.add_count(parser, "patches")
    parser.add_argument(
        "--other-images", action="store_true", help="only patches of other images than this one"
    )
    _common.add_exact(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    with _common.connect(args) as client:
        near = client.similar_patches(
            args.layer,
            args.row,
            tuple(args.patch),
            k=args.k,
            other_images=args.other_images,
            exact=args.exact,
            index=args.index,
        )
        if target is not None:
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            _sheets.require_few(1 + len(near.patches))
            _sheets.save(target, [sheets.similar_patches_section(client, args.index, near)])
    if args.json:
        _common.print_json(
            {
                "generation": near.generation,
                "layer": near.layer,
                "row": near.row,
                "patch": near.patch,
                "exact": near.exact,
                "recall_at_10": near.recall_at_10,
                "patches": _common.patches_json(near.patches),
            }
        )
        return 0
    _common.print_patches(near.patches)
    _common.tell_recall(near.exact, near.recall_at_10)
    return 0
