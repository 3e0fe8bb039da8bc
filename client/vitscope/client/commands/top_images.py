"""List the images on which a channel scores highest, or several channels do."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from vitscope.client.client import Client
from vitscope.client.commands import _common
from vitscope.client.files import png_target
from vitscope.client.results import TopImages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channels(parser, required=True)
    add_ranking(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def add_ranking(parser: argparse.ArgumentParser) -> None:
    """How images are ranked, how many of them are given, and which take part."""
    _common.add_pooling(parser)
    _common.add_count(parser)
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--bottom", action="store_true", help="lowest scores first instead of highest")
    end.add_argument(
        "--distinct",
        action="store_true",
        help="let images that top very many channels give way; prints both scores",
    )
    parser.add_argument(
        "--band",
        metavar="LOW:HIGH",
        type=_band,
        help="only images with scores between two quantiles, such as 0.45:0.55",
    )
    _common.add_filter(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    several = args.channels is None or len(args.channels) > 1
    with _common.connect(args) as client:
        answers = _answers(client, args, several, target is not None)
        if target is not None:
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            # Drawn first: where that cannot be, nothing is printed either.
            tops = _sheets.few(answers)
            sections = [
                sheets.top_images_section(client, args.index, top, _how(args)) for top in tops
            ]
            _sheets.save(target, sections)
            answers = iter(tops)
        for number, top in enumerate(answers):
            if args.json:
                _common.print_json(_json(top))
            else:
                if several:
                    print(f"\nchannel {top.channel}" if number else f"channel {top.channel}")
                _common.print_ranking(top.images)
    return 0


def _answers(
    client: Client, args: argparse.Namespace, several: bool, maps: bool
) -> Iterator[TopImages]:
    asked = ranking(args)
    if several:
        yield from client.top_images_of_channels(args.layer, args.channels, maps=maps, **asked)
    else:
        yield client.top_images(args.layer, args.channels[0], maps=maps, **asked)


def ranking(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_ranking`'s arguments, and which index, are for the client's methods."""
    return {
        "pooling": args.pooling,
        "k": args.k,
        "where": _common.filter_from(args),
        "order": "bottom" if args.bottom else "top",
        "band": args.band,
        "distinct": args.distinct,
        "index": args.index,
    }


def ranking_told(args: argparse.Namespace) -> dict[str, object]:
    """The same as JSON values, without the index."""
    told = ranking(args)
    del told["index"], told["where"]
    return {**told, "filter": _common.filter_told(args)}


def _how(args: argparse.Namespace) -> str:
    """How the images of a sheet were chosen, for its title."""
    ends = "lowest" if args.bottom else "most distinct" if args.distinct else "top"
    band = f"of the band {args.band[0]:g} to {args.band[1]:g}, " if args.band else ""
    return f"{'of some images, ' if _common.filter_from(args) else ''}{band}{ends}"


def _json(top: TopImages) -> dict[str, object]:
    return {
        "generation": top.generation,
        "layer": top.layer,
        "channel": top.channel,
        "pooling": top.pooling,
        "images": _common.ranking_json(top.images),
    }


def _band(text: str) -> tuple[float, float]:
    match = re.fullmatch(r"([0-9.]+):([0-9.]+)", text)
    try:
        if match:
            return float(match[1]), float(match[2])
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is no pair of quantiles; write LOW:HIGH from 0 to 1, such as 0.45:0.55"
    )
