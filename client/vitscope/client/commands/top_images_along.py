"""List the images that lie farthest along a direction in a layer's activation space."""

import argparse
import re
from pathlib import Path

import numpy as np

from vitscope.client.commands import _common
from vitscope.client.errors import UsageError
from vitscope.client.fields import DIRECTION_MEASURES, Direction
from vitscope.client.files import png_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--weights", metavar="C=W,…", type=_weights, help="weights of channels, such as 7=1,9=-0.5"
    )
    direction.add_argument(
        "--vector",
        metavar="FILE.npy",
        type=Path,
        help="a NumPy file with a weight for every channel",
    )
    direction.add_argument(
        "--name", help="a direction that lies beside the index, as `vitscope directions` lists it"
    )
    parser.add_argument(
        "--measure",
        choices=list(DIRECTION_MEASURES),
        default="projection",
        help="what images are ranked by (default: %(default)s)",
    )
    _common.add_pooling(parser)
    _common.add_count(parser)
    _common.add_filter(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    direction, name = _direction(args)
    with _common.connect(args) as client:
        along = client.top_images_along(
            args.layer,
            direction,
            measure=args.measure,
            pooling=args.pooling,
            k=args.k,
            where=_common.filter_from(args),
            index=args.index,
        )
        if target is not None:
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            _sheets.require_few(len(along.images))
            _sheets.save(target, [sheets.along_section(client, args.index, along, name)])
    if args.json:
        _common.print_json(
            {
                "generation": along.generation,
                "layer": along.layer,
                "measure": along.measure,
                "pooling": along.pooling,
                "candidates": along.candidates,
                "images": _common.ranking_json(along.images),
            }
        )
        return 0
    _common.print_ranking(along.images)
    return 0


def _direction(args: argparse.Namespace) -> tuple[Direction, str]:
    """The direction that was given, and what to call it."""
    if args.name is not None:
        return args.name, args.name
    if args.vector is not None:
        return _read(args.vector), args.vector.name
    named = [f"{weight:g} x channel {channel}" for channel, weight in args.weights.items()]
    return args.weights, " + ".join(named)


def _read(path: Path) -> Direction:
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path} is not readable ({error.strerror}).") from None
    # What reads a header runs Python's own parser, and raises whatever that does on bad bytes.
    except Exception:
        raise UsageError(
            f"{path} is not readable as a NumPy array; save it anew with numpy.save."
        ) from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{path} holds several arrays; save one with numpy.save.")
    return array


def _weights(text: str) -> dict[int, float]:
    """`7=1,9=-0.5`"""
    found: dict[int, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?[0-9]{1,12})\s*=\s*(\S+)\s*", part)
        try:
            channel, weight = int(match[1]), float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no weight of a channel; write such as 7=1,9=-0.5"
            ) from None
        if channel in found:
            raise argparse.ArgumentTypeError(f"channel {channel} is named twice")
        found[channel] = weight
    return found
