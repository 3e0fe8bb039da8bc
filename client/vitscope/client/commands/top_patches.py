"""List the patches of all images on which a channel is strongest."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.files import png_target


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
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            _sheets.require_few(len(top.patches))
            _sheets.save(target, [sheets.top_patches_section(client, args.index, top)])
    if args.json:
        _common.print_json(
            {
                "generation": top.generation,
                "layer": top.layer,
                "channel": top.channel,
                "patches": _common.patches_json(top.patches),
            }
        )
        return 0
    _common.print_patches(top.patches)
    return 0
