"""The object of a scene: its outline, its surface and the shadow it throws.

Outlines are signed distances in pixels ``(Y, X)``, negative inside; a surface pattern is the share
of the accent colour ``(Y, X)`` in 0..1. Both are evaluated in the object's own turned axes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from vitscope.indexer.scenes.catalogue import Kind
from vitscope.indexer.scenes.noise import Field, flat, mix, smooth

_MARGIN = 0.02  # least gap between an object and the picture's edge, in sides
_EXTENT = (0.28, 0.52)  # nominal width of an object, in sides

Outline = Callable[[Field, Field, float], Field]
Pattern = Callable[[Field, Field, float, np.random.Generator], Field]


@dataclass(frozen=True)
class Pose:
    """Where an object lies: centre and nominal width in pixels, turn in radians."""

    y: float
    x: float
    width: float
    turn: float


@dataclass(frozen=True)
class Layer:
    """An object ready to be laid over a background.

    ``colour`` is ``(C, Y, X)`` float32, nominally 0..1; ``cover`` and ``shadow`` are ``(Y, X)``
    float32 in 0..1: how much of each pixel the object hides, and how much its shadow darkens it.
    """

    colour: Field
    cover: Field
    shadow: Field


def _disc(u: Field, v: Field, width: float) -> Field:
    return np.hypot(u, v) - np.float32(width * 0.5)


def _square(u: Field, v: Field, width: float) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(width * 0.45)


def _triangle(u: Field, v: Field, width: float) -> Field:
    slope = np.float32(np.sqrt(0.75))
    return np.maximum(np.abs(u) * slope + v * 0.5, -v) - np.float32(width * 0.325)


def _star(u: Field, v: Field, width: float) -> Field:
    tip, notch = width * 0.66, width * 0.31
    sector = np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(u, v) + sector) % (2 * sector) - sector)
    radius = np.hypot(u, v)
    # The edge of one half-point runs from the tip, at angle 0, to the notch, at one sector.
    run, rise = notch * np.cos(sector) - tip, notch * np.sin(sector)
    length = np.hypot(run, rise)
    along, aside = radius * np.cos(angle) - np.float32(tip), radius * np.sin(angle)
    outside: Field = ((aside * run - along * rise) / -length).astype(np.float32)
    return outside


_OUTLINES: Mapping[str, Outline] = MappingProxyType(
    {"disc": _disc, "square": _square, "triangle": _triangle, "star": _star}
)
_REACH: Mapping[str, float] = MappingProxyType(
    {"disc": 0.5, "square": 0.637, "triangle": 0.65, "star": 0.66}
)
"""How far from the centre each outline reaches, in nominal widths."""


def _bands(along: Field, period: float, phase: float) -> Field:
    """Equal bands along one axis, 0 and 1 in turn, with an edge one pixel soft."""
    turn = np.float32(2 * np.pi / period)
    share: Field = np.clip(np.sin(along * turn + np.float32(phase)) / turn + 0.5, 0, 1)
    return share


def _plain(u: Field, v: Field, width: float, rng: np.random.Generator) -> Field:
    return np.zeros_like(u)


def _striped(u: Field, v: Field, width: float, rng: np.random.Generator) -> Field:
    return _bands(u, width * rng.uniform(0.27, 0.35), rng.uniform(0, 6.28))


def _checked(u: Field, v: Field, width: float, rng: np.random.Generator) -> Field:
    period = width * rng.uniform(0.36, 0.46)
    across = _bands(u, period, rng.uniform(0, 6.28))
    down = _bands(v, period, rng.uniform(0, 6.28))
    return across + down - 2 * across * down


def _dotted(u: Field, v: Field, width: float, rng: np.random.Generator) -> Field:
    pitch = np.float32(width * rng.uniform(0.27, 0.33))
    row = v / pitch + np.float32(rng.random())
    column = u / pitch + np.float32(rng.random()) + 0.5 * (np.floor(row) % 2)
    gap = np.hypot(row % 1 - 0.5, column % 1 - 0.5) * pitch
    share: Field = np.clip(pitch * np.float32(0.31) - gap + 0.5, 0, 1)
    return share


_PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {"plain": _plain, "striped": _striped, "checked": _checked, "dotted": _dotted}
)

_HUES: Mapping[str, float] = MappingProxyType(
    {"red": 0.0, "yellow": 0.135, "blue": 0.61, "pink": 0.89}
)


def _paint(rng: np.random.Generator, name: str) -> Field:
    """The main colour ``(C, 1, 1)`` of an object, jittered about its named hue."""
    hue = (_HUES[name] + rng.uniform(-0.018, 0.018)) % 1
    saturation = rng.uniform(0.58, 0.72) if name == "pink" else rng.uniform(0.78, 0.93)
    value = rng.uniform(0.86, 1.0) if name != "red" else rng.uniform(0.76, 0.92)
    return flat(colorsys.hsv_to_rgb(hue, saturation, value))


def _accent(rng: np.random.Generator, name: str) -> Field:
    """The second colour ``(C, 1, 1)`` of a pattern: dark on yellow, pale on the darker colours."""
    base = (0.16, 0.13, 0.12) if name == "yellow" else (0.94, 0.92, 0.87)
    return flat(np.asarray(base) + rng.uniform(-0.05, 0.05))


def draw_pose(rng: np.random.Generator, shape: str, size: int) -> Pose:
    """Choose a place, width and turn that keep the whole object inside the picture."""
    width = rng.uniform(*_EXTENT) * size
    room = _REACH[shape] * width + _MARGIN * size
    y, x = rng.uniform(room, size - room, size=2)
    return Pose(float(y), float(x), float(width), float(rng.uniform(0, 2 * np.pi)))


def _axes(size: int, pose: Pose, shift: tuple[float, float]) -> tuple[Field, Field]:
    """The object's own coordinates ``u, v`` in pixels at every pixel centre."""
    steps = np.arange(size, dtype=np.float32) + np.float32(0.5)
    dy = steps[:, None] - np.float32(pose.y + shift[0])
    dx = steps[None, :] - np.float32(pose.x + shift[1])
    cos, sin = np.float32(np.cos(pose.turn)), np.float32(np.sin(pose.turn))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _lit(distance: Field, size: int, pose: Pose, light: float) -> tuple[Field, Field]:
    """Shading factor and highlight ``(Y, X)`` for light coming from the angle ``light``."""
    y, x = _axes(size, Pose(pose.y, pose.x, pose.width, 0.0), (0.0, 0.0))[::-1]
    facing = (x * np.float32(np.cos(light)) + y * np.float32(np.sin(light))) / pose.width
    rim = np.exp(np.minimum(distance, 0) / np.float32(0.05 * pose.width))
    spot_y, spot_x = np.sin(light) * 0.2 * pose.width, np.cos(light) * 0.2 * pose.width
    away = ((y - spot_y) ** 2 + (x - spot_x) ** 2) / np.float32((0.16 * pose.width) ** 2)
    shade = 1 + 0.30 * facing - 0.30 * rim
    return shade.astype(np.float32), (0.16 * np.exp(-away)).astype(np.float32)


def draw_figure(rng: np.random.Generator, kind: Kind, pose: Pose, size: int, light: float) -> Layer:
    """Draw an object of ``kind`` at ``pose``, lit from the angle ``light`` (radians, y down)."""
    outline = _OUTLINES[kind.shape]
    u, v = _axes(size, pose, (0.0, 0.0))
    distance = outline(u, v, pose.width)
    cover = np.clip(0.5 - distance, 0, 1)
    pattern = _PATTERNS[kind.texture](u, v, pose.width, rng)
    surface = mix(_paint(rng, kind.colour), _accent(rng, kind.colour), pattern)
    shade, highlight = _lit(distance, size, pose, light)
    shade = shade * (1 + 0.04 * smooth(rng, size, 30, 30))
    fall = 0.07 * pose.width
    shift = (-np.sin(light) * fall, -np.cos(light) * fall)
    dark = outline(*_axes(size, pose, shift), pose.width)
    shadow = np.clip(0.5 - dark / np.float32(0.10 * pose.width), 0, 1)
    colour = surface * shade + highlight
    return Layer(colour.astype(np.float32), cover.astype(np.float32), shadow.astype(np.float32))
