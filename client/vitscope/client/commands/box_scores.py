"""List how far channels look at labelled boxes, or the images on which one does or does not."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from math import isnan
from typing import Any

import numpy as np

from vitscope.client.client import Client
from vitscope.client.commands import _common
from vitscope.client.errors import UsageError
from vitscope.client.fields import BOX_MEASURES
from vitscope.client.text import table

_MEASURES = list(BOX_MEASURES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channels(parser, required=False)
    _common.add_box_labels(parser)
    parser.add_argument(
        "--by", choices=_MEASURES, default=_MEASURES[0], help="what ranks (default: %(default)s)"
    )
    parser.add_argument("--bottom", action="store_true", help="lowest first instead of highest")
    parser.add_argument(
        "--images", action="store_true", help="rank the images of one channel instead of channels"
    )
    _common.add_count(parser, "channels or images")
    _common.add_filter(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    one = args.channels is not None and len(args.channels) == 1
    if args.images and not one:
        raise UsageError("--images ranks the images of one channel; give --channel C.")
    if args.k is not None and args.k < 1:
        raise UsageError(f"-k is {args.k}; it must be at least 1.")
    with _common.connect(args) as client:
        return _images(client, args) if args.images else _channels(client, args)


def _images(client: Client, args: argparse.Namespace) -> int:
    top = client.top_images_by_box(
        args.layer,
        args.channels[0],
        box_labels=args.of,
        where=_common.filter_from(args),
        measure=args.by,
        order="bottom" if args.bottom else "top",
        k=args.k,
        index=args.index,
    )
    if args.json:
        _common.print_json(asdict(top))
        return 0
    rows = [
        (rank, *_cells(asdict(image.scores)), image.row, image.label or "-", image.key)
        for rank, image in enumerate(top.images, 1)
    ]
    print(table(["rank", *_NAMES, "row", "label", "key"], rows))
    return 0


def _channels(client: Client, args: argparse.Namespace) -> int:
    found = client.box_scores(
        args.layer,
        args.channels,
        box_labels=args.of,
        where=_common.filter_from(args),
        index=args.index,
    )
    values, counts = getattr(found, args.by), found.inside_images
    # NaN last; equal ones in the order of their channels.
    order = np.argsort(values if args.bottom else -values, kind="stable")
    order = order[: 20 if args.k is None else args.k]
    chosen = [
        {
            "channel": int(found.channels[at]),
            "images": int(found.images[at]),
            "inside_images": None if counts is None else int(counts[at]),
            **{name: float(getattr(found, name)[at]) for name in _NAMES},
        }
        for at in order
    ]
    if args.json:
        _common.print_json(
            {"generation": found.generation, "layer": found.layer, "channels": chosen}
        )
        return 0
    rows = [
        (rank, each["channel"], *_cells(each), each["images"])
        for rank, each in enumerate(chosen, 1)
    ]
    print(table(["rank", "channel", *_NAMES, "images"], rows))
    return 0


_NAMES = ("contrast", "inside", "area", "auc")


def _cells(scores: Mapping[str, Any]) -> tuple[str, ...]:
    forms = {"contrast": ".4g", "inside": ".1%", "area": ".1%", "auc": ".3f"}
    return tuple("-" if isnan(scores[name]) else f"{scores[name]:{forms[name]}}" for name in _NAMES)
