"""List what is known of the channels of a layer over the whole data set."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channels(parser, required=False)
    _common.add_pooling(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with _common.connect(args) as client:
        found = client.channel_statistics(
            args.layer, args.channels, pooling=args.pooling, index=args.index
        )
    channels = zip(
        found.channels.tolist(),
        found.mean.tolist(),
        found.variance.tolist(),
        found.active.tolist(),
        found.quantiles.tolist(),
        strict=True,
    )
    levels = found.quantile_levels.tolist()
    if args.json:
        names = ("channel", "mean", "variance", "active", "quantiles")
        _common.print_json(
            {
                "generation": found.generation,
                "layer": found.layer,
                "pooling": found.pooling,
                "quantile_levels": levels,
                "channels": [dict(zip(names, each, strict=True)) for each in channels],
            }
        )
        return 0
    rows = [
        (
            channel,
            f"{mean:.4g}",
            f"{variance**0.5:.4g}",
            f"{active:.1%}",
            *(f"{value:.4g}" for value in quantiles),
        )
        for channel, mean, variance, active, quantiles in channels
    ]
    shares = [f"{level:.0%}" for level in levels]
    print(table(["channel", "mean", "deviation", "active", *shares], rows))
    return 0
