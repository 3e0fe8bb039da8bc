"""The eight kinds of background, each painted from noise, waves and lines.

A painter takes a source of chance and the side in pixels and returns colours ``(C, Y, X)``,
float32, nominally 0..1 (a little outside is allowed; the renderer clips).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from vitscope.indexer.scenes.noise import Field, colour, fractal, grain, grid, mix, ramp, smooth

Painter = Callable[[np.random.Generator, int], Field]

_TAU = np.float32(2 * np.pi)


def _brick(rng: np.random.Generator, size: int) -> Field:
    y, x = grid(size)
    rows = rng.uniform(7, 10)
    columns = rows * rng.uniform(0.42, 0.5)
    slant = rng.uniform(-0.05, 0.05)
    v = (y + slant * x) * rows + rng.random()
    course = np.floor(v)
    u = (x - slant * y) * columns + rng.random() + 0.5 * (course % 2)
    brick = np.floor(u)
    joint = rng.uniform(0.06, 0.09)
    gap_v = np.minimum(v - course, course + 1 - v)
    gap_u = np.minimum(u - brick, brick + 1 - u) * (rows / columns)
    wall = ramp(np.minimum(gap_v, gap_u).astype(np.float32), joint * 0.5, joint * 1.9)
    tones = rng.normal(0, 0.13, size=(16, 16)).astype(np.float32)
    tone = tones[course.astype(np.int64) % 16, brick.astype(np.int64) % 16]
    rough = fractal(rng, size, 24, 24, 2) * 0.08
    bricks = colour(rng, (0.56, 0.31, 0.24), 0.07) * (1 + tone + rough)
    mortar = colour(rng, (0.70, 0.67, 0.62), 0.06) * (1 + rough)
    return mix(mortar, bricks, wall)


def _trunks(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    """Upright trunks: how much each pixel shows one, and how brightly it is lit, ``(Y, X)``."""
    y, x = grid(size)
    centres = (rng.permutation(7)[: rng.integers(4, 7)] + rng.uniform(0.3, 0.7)) / 7
    count = centres.size
    width = rng.uniform(0.02, 0.055, size=count)
    lean = rng.uniform(-0.06, 0.06, size=count)
    # Nearest trunk wins, so all are drawn in one pass; each keeps to its own seventh of the width.
    owner = np.abs(x[0][:, None] - centres).argmin(axis=1)
    middle = centres[owner] + lean[owner] * (y - 0.5)
    across = ((x - middle) / width[owner]).astype(np.float32)
    return ramp(1 - np.abs(across), 0, 0.35), 1 - 0.4 * np.clip(across, -1, 1)


def _forest(rng: np.random.Generator, size: int) -> Field:
    y, _ = grid(size)
    leaves = fractal(rng, size, 9, 9, 3)
    image = colour(rng, (0.10, 0.23, 0.11), 0.03) * (1 + 0.7 * leaves - 0.5 * (y - 0.4))
    trunk, lit = _trunks(rng, size)
    bark = (1 + 0.25 * smooth(rng, size, 6, 48)) * lit
    image = mix(image, colour(rng, (0.25, 0.18, 0.12), 0.05) * bark, trunk)
    crown = ramp(fractal(rng, size, 10, 10, 3) + 1.3 * (0.30 - y), 0.35, 0.8)
    image = mix(image, colour(rng, (0.30, 0.46, 0.16), 0.05), crown * 0.85)
    floor = ramp(y + 0.03 * leaves, 0.86, 0.92)
    litter = colour(rng, (0.27, 0.21, 0.12), 0.04) * (1 + 0.35 * smooth(rng, size, 40, 40))
    return mix(image, litter, floor)


def _grass(rng: np.random.Generator, size: int) -> Field:
    y, _ = grid(size)
    blades: Field = smooth(rng, size, 14, 60) + np.float32(0.8) * smooth(rng, size, 24, 90)
    patches = fractal(rng, size, 3, 3, 2)
    light = 1 + 0.27 * blades + 0.12 * patches + 0.22 * (0.5 - y)
    image = colour(rng, (0.27, 0.50, 0.16), 0.05) * light
    dry = ramp(patches + 0.4 * blades, 0.35, 1.3)
    return mix(image, colour(rng, (0.52, 0.56, 0.22), 0.05), dry * 0.55)


def _night(rng: np.random.Generator, size: int) -> Field:
    y, x = grid(size)
    glow = colour(rng, (0.14, 0.16, 0.34), 0.04)
    zenith = colour(rng, (0.03, 0.04, 0.12), 0.02)
    haze = 0.12 * fractal(rng, size, 3, 3, 3)
    image = mix(zenith, glow, np.clip(y * 0.95 + haze, 0, 1))
    light = np.zeros((size, size), dtype=np.float32)
    for brightness in rng.uniform(0.3, 1.0, size=rng.integers(28, 48)):
        star_y, star_x = rng.random(2) * (0.85, 1.0)
        row, column = int(star_y * size), int(star_x * size)
        light[row, column] = brightness
        light[row, max(column - 1, 0)] = max(light[row, max(column - 1, 0)], brightness * 0.35)
    image = image + light * np.float32(0.9)
    ridge = 0.86 + 0.05 * np.sin(_TAU * (x * rng.uniform(0.6, 1.6) + rng.random()))
    hills = ramp(y - ridge + 0.02 * smooth(rng, size, 2, 20)[:1], -0.006, 0.006)
    return mix(image, colour(rng, (0.02, 0.03, 0.04), 0.01), hills)


def _sand(rng: np.random.Generator, size: int) -> Field:
    y, x = grid(size)
    turn = rng.uniform(-0.5, 0.5)
    along = y * np.cos(turn) + x * np.sin(turn) + 0.05 * fractal(rng, size, 3, 3, 2)
    ripple = np.sin(_TAU * (along * rng.uniform(7, 11) + rng.random()))
    ripple = ripple + 0.35 * np.abs(ripple)
    dunes = fractal(rng, size, 2, 2, 2)
    light = 1 + 0.085 * ripple + 0.07 * dunes + 0.045 * grain(rng, size)
    image: Field = colour(rng, (0.79, 0.67, 0.46), 0.06) * light.astype(np.float32)
    return image


def _sky(rng: np.random.Generator, size: int) -> Field:
    y, _ = grid(size)
    zenith = colour(rng, (0.25, 0.47, 0.80), 0.06)
    horizon = colour(rng, (0.66, 0.80, 0.93), 0.04)
    image = mix(zenith, horizon, np.broadcast_to(y, (size, size)))
    puff = fractal(rng, size, 4, 2, 4)
    cover = ramp(puff, rng.uniform(0.1, 0.4), 1.0)
    belly = 1 - 0.14 * np.clip(np.roll(puff, 3, axis=0) - 0.2, 0, 1)
    return mix(image, colour(rng, (0.97, 0.97, 0.98), 0.02) * belly, cover)


def _snow(rng: np.random.Generator, size: int) -> Field:
    y, x = grid(size)
    turn = rng.uniform(-0.6, 0.6)
    drift = fractal(rng, size, 3, 2, 3)
    wave = np.sin(_TAU * ((y + turn * x) * rng.uniform(1.5, 3) + 0.4 * drift + rng.random()))
    shade = np.clip(0.32 + 0.28 * wave + 0.20 * drift, 0, 1).astype(np.float32)
    white = colour(rng, (0.94, 0.95, 0.97), 0.03)
    field = mix(white, colour(rng, (0.66, 0.75, 0.90), 0.04), shade)
    field = field + np.float32(0.018) * grain(rng, size)
    # A far line of firs, their tops uneven, under a pale sky.
    foot = rng.uniform(0.10, 0.24)
    tops = foot - 0.055 - 0.045 * smooth(rng, size, 1, 26)[:1] - 0.02 * smooth(rng, size, 1, 7)[:1]
    firs = ramp(y - tops, -0.008, 0.012) * ramp(foot + 0.006 * drift - y, -0.008, 0.008)
    sky = colour(rng, (0.80, 0.84, 0.89), 0.04)
    image = mix(sky, field, ramp(y - tops, -0.01, 0.01))
    return mix(image, colour(rng, (0.16, 0.25, 0.24), 0.04), firs)


def _water(rng: np.random.Generator, size: int) -> Field:
    y, x = grid(size)
    warp = fractal(rng, size, 4, 3, 3)
    depth = 1.35 - 0.75 * y  # waves lie closer together towards the far edge
    chop = rng.uniform(9, 13)
    phase = y * depth * chop + 0.55 * warp + rng.uniform(-0.8, 0.8) * x
    wave = np.sin(_TAU * (phase + rng.random())) + 0.5 * np.sin(
        _TAU * (1.7 * phase + 2.2 * x + 0.8 * warp)
    )
    light = 1 + 0.20 * wave + 0.10 * warp + 0.25 * (0.5 - y)
    image = colour(rng, (0.09, 0.36, 0.46), 0.05) * light.astype(np.float32)
    glint = ramp((wave + 0.5 * warp).astype(np.float32), 1.0, 1.7)
    return mix(image, colour(rng, (0.72, 0.86, 0.88), 0.05), glint * 0.6)


PAINTERS: Mapping[str, Painter] = MappingProxyType(
    {
        "brick": _brick,
        "forest": _forest,
        "grass": _grass,
        "night": _night,
        "sand": _sand,
        "sky": _sky,
        "snow": _snow,
        "water": _water,
    }
)
"""One painter for each background kind."""
