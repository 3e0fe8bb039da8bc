"""List the channels whose scores over all images go with those of a channel."""

import argparse

from vitscope.client.commands import _common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channel(parser)
    _common.add_layers(parser, "the channel's own")
    _common.add_count(parser, "channels")
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with _common.connect(args) as client:
        near = client.similar_channels(
            args.layer, args.channel, k=args.k, layers=args.layers, index=args.index
        )
    if args.json:
        _common.print_json(
            {
                "generation": near.generation,
                "layer": near.layer,
                "channel": near.channel,
                "channels": _common.channels_json(near.channels),
            }
        )
    else:
        _common.print_channels(near.channels, "correlation")
    return 0
