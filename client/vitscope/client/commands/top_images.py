"""List the images on which a channel scores highest."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.files import png_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channel(parser)
    _common.add_pooling(parser)
    _common.add_count(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    with _common.connect(args) as client:
        top = client.top_images(
            args.layer,
            args.channel,
            pooling=args.pooling,
            k=args.k,
            maps=target is not None,
            index=args.index,
        )
        if target is not None:
            from vitscope.client.commands import _sheets

            _sheets.save(target, [_sheets.top_images_section(client, args.index, top)])
    if args.json:
        _common.print_json(
            {
                "generation": top.generation,
                "layer": top.layer,
                "channel": top.channel,
                "pooling": top.pooling,
                "images": _common.ranking_json(top.images),
            }
        )
    else:
        _common.print_ranking(top.images)
    return 0
