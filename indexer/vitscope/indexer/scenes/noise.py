"""Smooth random fields and the few shaping functions the painters share.

Fields are float32 arrays ``(Y, X)`` over a square picture of ``size`` pixels a side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

Field = NDArray[np.float32]
"""A scalar field ``(Y, X)`` or a colour field ``(C, Y, X)``, float32.

Colours lead, because numpy is much slower over a last axis of three.
"""


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Field, Field]:
    """Pixel centres in units of the side: ``y`` as ``(Y, 1)`` and ``x`` as ``(1, X)``, in (0, 1).

    The arrays are shared between callers and cannot be written to.
    """
    steps = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    steps.flags.writeable = False
    return steps[:, None], steps[None, :]


def smooth(rng: np.random.Generator, size: int, rows: int, columns: int) -> Field:
    """One layer of smooth noise: ``rows × columns`` random knots, enlarged; about -1..1."""
    knots = rng.random((rows + 1, columns + 1), dtype=np.float32) * 2 - 1
    enlarged = Image.fromarray(knots).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, dtype=np.float32)


def fractal(
    rng: np.random.Generator, size: int, rows: int, columns: int, octaves: int = 3
) -> Field:
    """Layers of smooth noise, each twice as fine and half as strong as the last; about -1..1."""
    total = smooth(rng, size, rows, columns)
    for octave in range(1, octaves):
        finer = smooth(rng, size, rows << octave, columns << octave)
        total = total + finer * np.float32(0.5**octave)
    return total


def grain(rng: np.random.Generator, size: int) -> Field:
    """Independent Gaussian noise per pixel, standard deviation 1."""
    return rng.standard_normal((size, size), dtype=np.float32)


def ramp(values: Field, low: float, high: float) -> Field:
    """Rise smoothly from 0 at ``low`` to 1 at ``high``, flat outside."""
    t: Field = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(below: Field, above: Field, share: Field) -> Field:
    """Blend colours ``(C, Y, X)`` by ``share`` ``(Y, X)`` in 0..1: 0 is ``below``, 1 ``above``.

    Either colour may be flat, ``(C, 1, 1)``.
    """
    return below + (above - below) * share


def colour(rng: np.random.Generator, base: tuple[float, float, float], spread: float) -> Field:
    """A flat colour ``(C, 1, 1)`` near ``base``: one shared shift in lightness, and a smaller
    one per channel."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-spread / 3, spread / 3, size=3)
    return flat(np.clip(np.asarray(base) + shift, 0, 1))


def flat(values: ArrayLike) -> Field:
    """Three channel values as a colour ``(C, 1, 1)`` that spreads over any field."""
    return np.asarray(values, dtype=np.float32).reshape(3, 1, 1)
