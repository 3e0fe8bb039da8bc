"""Arguments and output that the commands share."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from vitscope.client.client import Client
from vitscope.client.convert import POOLINGS
from vitscope.client.results import Image, ScoredImage
from vitscope.client.text import table

DEFAULT_SERVER = "127.0.0.1:50051"


def add_server(parser: argparse.ArgumentParser) -> None:
    """Which server, which of its indexes, and how long to wait."""
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("VITSCOPE_SERVER") or DEFAULT_SERVER,
        help=f"the server to ask (default: VITSCOPE_SERVER, else {DEFAULT_SERVER})",
    )
    parser.add_argument(
        "--index",
        metavar="NAME",
        default="",
        help="which index of the server (default: its only one)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=30.0,
        help="the longest that one call may take (default: %(default)g)",
    )


def connect(args: argparse.Namespace) -> Client:
    """The client that `add_server`'s arguments describe."""
    return Client(args.server, timeout=args.timeout)


def add_layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", required=True, help="module path of the block, as `vitscope layers` lists it"
    )


def add_channel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--channel", metavar="C", type=int, required=True, help="channel of the layer, from 0"
    )


def add_row(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--row", metavar="R", type=int, required=True, help="the image's row in the index"
    )


def add_pooling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooling",
        choices=list(POOLINGS),
        default="mean",
        help="how a patch map becomes a score (default: %(default)s)",
    )


def add_count(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-k", metavar="N", type=int, help="how many images (default: 20, or all if fewer)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def add_png(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--png", metavar="FILE", required=required, help="draw the answer into this file"
    )


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on stdout; numbers that JSON does not know become null."""
    print(json.dumps(_finite(value), allow_nan=False))


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def ranking_json(images: Iterable[ScoredImage]) -> list[dict[str, object]]:
    """Images of a ranked answer as JSON values."""
    return [
        {"row": image.row, "key": image.key, "label": image.label, "score": image.score}
        for image in images
    ]


def print_ranking(images: Iterable[ScoredImage]) -> None:
    """Images of a ranked answer as a table."""
    rows = [
        (rank, f"{image.score:.5g}", image.row, image.label or "-", image.key)
        for rank, image in enumerate(images, 1)
    ]
    print(table(["rank", "score", "row", "label", "key"], rows))


def display_name(image: ScoredImage | Image) -> str:
    """What to call an image in a caption: its label, else its key."""
    return image.label or image.key


def report_written(path: Path) -> None:
    print(f"Wrote {path}.", file=sys.stderr)
