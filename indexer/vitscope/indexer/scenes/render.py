"""Putting a scene together: background, shadow, object, light and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitscope.indexer.scenes.backdrops import PAINTERS
from vitscope.indexer.scenes.catalogue import KINDS, plan_scene, scene_rng
from vitscope.indexer.scenes.figures import draw_figure, draw_pose
from vitscope.indexer.scenes.noise import Field, flat, grid, mix

SIZE: int = 96
"""The side of a scene in pixels unless asked otherwise; what the packaged model expects."""

_SHADOW = 0.5  # how much of the light a full shadow takes away


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture with its ground truth.

    ``image`` is ``(Y, X, C)`` uint8 RGB; ``mask`` is ``(Y, X)`` bool, true where the object covers
    at least half of the pixel; ``box`` is ``(x0, y0, x1, y1)`` in pixels, the tight bounds of the
    mask, the last row and column excluded.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    box: tuple[int, int, int, int]
    label: str
    background: str
    index: int


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest ``(x0, y0, x1, y1)``, half-open, holding every true pixel of ``(Y, X)``."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise ValueError("an empty mask has no bounds")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _expose(rng: np.random.Generator, image: Field, size: int) -> NDArray[np.uint8]:
    """Photograph colours ``(C, Y, X)``: lighting, vignette, sensor noise, then 8 bits
    ``(Y, X, C)``."""
    y, x = grid(size)
    tint = flat(rng.uniform(0.86, 1.10) * (1 + rng.uniform(-0.045, 0.045, size=3)))
    fall_off = 1 - rng.uniform(0.05, 0.30) * ((y - 0.5) ** 2 + (x - 0.5) ** 2)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    exposed = image * (fall_off * tint) + noise * np.float32(rng.uniform(0.006, 0.02))
    levels = (np.clip(exposed, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(1, 2, 0))


def render_scene(index: int, *, seed: int = 0, size: int = SIZE) -> Scene:
    """Render scene ``index`` of the set ``seed``; a pure function of its arguments.

    ``size`` is the side in pixels (at least 32). The class, the background and where the object
    lies, in sides, do not depend on it.
    """
    if size < 32:
        raise ValueError(f"a scene needs a side of at least 32 pixels, not {size}")
    plan = plan_scene(index, seed=seed)
    kind = KINDS[plan.label]
    # Separate streams, so that a change in one painter leaves the other parts as they were.
    placing, painting, drawing, sensing = scene_rng(index, seed).spawn(4)
    pose = draw_pose(placing, kind.shape, size)
    light = float(placing.uniform(-0.85, -0.15) * np.pi)
    backdrop = PAINTERS[plan.background](painting, size)
    figure = draw_figure(drawing, kind, pose, size, light)
    shaded = backdrop * (1 - _SHADOW * figure.shadow)
    image = _expose(sensing, mix(shaded, figure.colour, figure.cover), size)
    mask = figure.cover >= 0.5
    return Scene(image, mask, tight_box(mask), plan.label, plan.background, index)
