"""List the channels, or images, that change most from one index to another of the same pictures."""

import argparse
from dataclasses import asdict
from math import isnan

from vitscope.client.client import Client
from vitscope.client.commands import _common
from vitscope.client.errors import UsageError
from vitscope.client.fields import CHANGES
from vitscope.client.files import png_target
from vitscope.client.text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("other", metavar="OTHER", help="the index that --index is held against")
    _common.add_server(parser)
    _common.add_layer(parser)
    parser.add_argument(
        "--channel", metavar="C", type=int, help="rank the images of this channel instead"
    )
    _common.add_pooling(parser)
    parser.add_argument(
        "--by",
        choices=list(CHANGES),
        default="effect",
        help="what ranks channels (default: %(default)s)",
    )
    parser.add_argument(
        "--bottom", action="store_true", help="greatest fall first instead of greatest rise"
    )
    _common.add_count(parser, "channels or images")
    _common.add_filter(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    if args.png is not None and args.channel is None:
        raise UsageError("--png draws images; name the channel with --channel.")
    with _common.connect(args) as client:
        return _channels(client, args) if args.channel is None else _images(client, args)


def _channels(client: Client, args: argparse.Namespace) -> int:
    found = client.compare_channels(
        args.index,
        args.other,
        args.layer,
        pooling=args.pooling,
        where=_common.filter_from(args),
        measure=args.by,
        order="bottom" if args.bottom else "top",
        k=args.k,
    )
    if args.json:
        _common.print_json(asdict(found))
        return 0
    rows = [
        (
            rank,
            each.channel,
            _cell(each.effect),
            _cell(each.difference),
            _cell(each.mean),
            _cell(each.other_mean),
            _cell(each.correlation),
        )
        for rank, each in enumerate(found.channels, 1)
    ]
    names = ["rank", "channel", "effect", "difference", "mean", "other mean", "correlation"]
    print(table(names, rows))
    return 0


def _images(client: Client, args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    found = client.compare_images(
        args.index,
        args.other,
        args.layer,
        args.channel,
        pooling=args.pooling,
        where=_common.filter_from(args),
        order="bottom" if args.bottom else "top",
        k=args.k,
    )
    if target is not None:
        from vitscope.client import sheets
        from vitscope.client.commands import _sheets

        _sheets.require_few(2 * len(found.images))
        how = "greatest fall" if args.bottom else "greatest rise"
        section = sheets.changed_images_section(client, args.index, args.other, found, how)
        _sheets.save(target, [section])
    if args.json:
        _common.print_json(asdict(found))
        return 0
    rows = [
        (
            rank,
            f"{each.difference:.5g}",
            f"{each.score:.5g}",
            f"{each.other_score:.5g}",
            each.row,
            each.label or "-",
            each.key,
        )
        for rank, each in enumerate(found.images, 1)
    ]
    print(table(["rank", "difference", "score", "other", "row", "label", "key"], rows))
    return 0


def _cell(value: float) -> str:
    return "-" if isnan(value) else f"{value:.4g}"
