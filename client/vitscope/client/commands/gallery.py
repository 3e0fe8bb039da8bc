"""Draw the top images of several channels, one sheet under the other."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.errors import UsageError
from vitscope.client.files import png_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    parser.add_argument(
        "--show",
        metavar="LAYER:CHANNEL",
        action="append",
        required=True,
        help="a channel to show, such as blocks.5.mlp:7; may be given many times",
    )
    _common.add_pooling(parser)
    _common.add_count(parser)
    _common.add_png(parser, required=True)


def run(args: argparse.Namespace) -> int:
    from vitscope.client import sheets
    from vitscope.client.commands import _sheets

    target = png_target(args.png)
    shown = [layer_and_channel(text) for text in args.show]
    with _common.connect(args) as client:
        tops = _sheets.few(
            client.top_images(
                layer, channel, pooling=args.pooling, k=args.k, maps=True, index=args.index
            )
            for layer, channel in shown
        )
        sections = [sheets.top_images_section(client, args.index, top) for top in tops]
    _sheets.save(target, sections)
    return 0


def layer_and_channel(text: str) -> tuple[str, int]:
    """The two parts of LAYER:CHANNEL."""
    layer, _, channel = text.rpartition(":")
    try:
        if layer:
            return layer, int(channel)
    except ValueError:
        pass
    raise UsageError(f"--show {text!r} is not LAYER:CHANNEL; write it like blocks.5.mlp:7.")
