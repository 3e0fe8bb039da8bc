"""List the patches of all images on which a channel is strongest."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.files import png_target
from vitscope.client.results import ScoredPatch
from vitscope.client.text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channel(parser)
    _common.add_count(parser, "patches")
    _common.add_filter(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    with _common.connect(args) as client:
        top = client.top_patches(
            args.layer, args.channel, k=args.k, where=_common.filter_from(args), index=args.index
        )
        if target is not None:
            from vitscope.client.commands import _sheets

            _sheets.save(target, [_sheets.top_patches_section(client, args.index, top)])
    if args.json:
        _common.print_json(
            {
                "generation": top.generation,
                "layer": top.layer,
                "channel": top.channel,
                "patches": [
                    {
                        "row": patch.row,
                        "key": patch.key,
                        "label": patch.label,
                        "y": patch.y,
                        "x": patch.x,
                        "score": patch.score,
                        "source": patch.source,
                    }
                    for patch in top.patches
                ],
            }
        )
        return 0
    rows = [
        (
            rank,
            f"{patch.score:.5g}",
            patch.row,
            patch.y,
            patch.x,
            _pixels(patch),
            patch.label or "-",
            patch.key,
        )
        for rank, patch in enumerate(top.patches, 1)
    ]
    print(table(["rank", "score", "row", "y", "x", "pixels", "label", "key"], rows))
    return 0


def _pixels(patch: ScoredPatch) -> str:
    """What the patch covers of the source picture, in whole pixels."""
    if patch.source is None:
        return "-"
    x0, y0, x1, y1 = (round(edge) for edge in patch.source)
    return f"{x0},{y0} to {x1},{y1}"
