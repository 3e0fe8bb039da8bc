"""The argument --img-size."""

from __future__ import annotations

import argparse


def size(text: str) -> tuple[int, int]:
    """`224`, or `192x256` for height and width."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give pixels such as 224, or height x width such as 192x256"
        )
    return int(sides[0]), int(sides[-1])
