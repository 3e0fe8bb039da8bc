"""Show where in an image a channel is active."""

import argparse
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from vitscope.client.commands import _common
from vitscope.client.files import png_target
from vitscope.client.results import PatchMap

_SHADES = " ·░▒▓█"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channel(parser)
    _common.add_row(parser)
    _common.add_json(parser)
    _common.add_png(parser)


def run(args: argparse.Namespace) -> int:
    target = None if args.png is None else png_target(args.png)
    with _common.connect(args) as client:
        answer = client.patch_map(args.layer, args.channel, args.row, index=args.index)
        if target is not None:
            from vitscope.client import sheets
            from vitscope.client.commands import _sheets

            _sheets.save(target, [sheets.patch_map_section(client, args.index, answer)])
    if args.json:
        height, width = answer.values.shape
        _common.print_json(
            {
                "generation": answer.generation,
                "layer": answer.layer,
                "channel": answer.channel,
                "row": answer.row,
                "height": height,
                "width": width,
                "grid": None if answer.grid is None else asdict(answer.grid),
                "values": answer.values.tolist(),
            }
        )
    else:
        print(rendering(answer))
    return 0


def rendering(answer: PatchMap) -> str:
    """The map in characters: two to a patch, darker where more active, 0 and less blank."""
    height, width = answer.values.shape
    values = answer.values[np.isfinite(answer.values)]
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    head = f"{answer.layer} channel {answer.channel} on row {answer.row}: "
    head += f"{height} x {width} patches, from {low:.4g} to {high:.4g}"
    edge = "─" * (2 * width)
    lines = [
        "│" + "".join(_SHADES[level] * 2 for level in line) + "│"
        for line in _levels(answer.values, float(high))
    ]
    return "\n".join([head, f"┌{edge}┐", *lines, f"└{edge}┘"])


def _levels(values: NDArray[np.float16], high: float) -> list[list[int]]:
    """Which shade each patch has, row by row; `high` takes the last."""
    share = np.nan_to_num(values.astype(np.float32), posinf=high)
    share = np.clip(share / high, 0.0, 1.0) if high > 0 else np.zeros_like(share)
    levels: list[list[int]] = np.rint(share * (len(_SHADES) - 1)).astype(int).tolist()
    return levels
