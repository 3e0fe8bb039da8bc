"""Scenes as training batches: rendered once into one file, then jittered as they are drawn.

A stored scene is ``(Y, X, 4)`` uint8: red, green, blue, and the mask as 0 or 1, so that a flip or
a shift moves the picture and its ground truth together.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vitscope.indexer.scenes.catalogue import BACKGROUNDS, CLASSES
from vitscope.indexer.scenes.render import SIZE, render_scene

PATCH = 8
"""The side of the model's patches, in pixels."""

_CHUNK = 256
_SHIFT = 6  # greatest shift either way, in pixels


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    ``images`` is ``(B, C, Y, X)`` float32, normalised to about -1..1; ``labels`` is ``(B,)``
    int64; ``covered`` is ``(B, P)`` float32 in 0..1, the share of each patch that the object
    covers; ``places`` is ``(B, P)`` int64, what each patch mostly shows: a class, or
    ``len(CLASSES)`` plus a background.
    """

    images: torch.Tensor
    labels: torch.Tensor
    covered: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class SceneArray:
    """Rendered scenes: ``pixels`` ``(N, Y, X, 4)`` uint8, ``labels`` and ``backgrounds`` ``(N,)``
    int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    backgrounds: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.pixels.shape[0])


def _render_chunk(path: Path, count: int, seed: int, start: int) -> NDArray[np.int64]:
    """Render one stretch of scenes into the file; return labels and backgrounds ``(2, n)``."""
    pixels = np.memmap(path, np.uint8, "r+", shape=(count, SIZE, SIZE, 4))
    numbers = []
    for index in range(start, min(start + _CHUNK, count)):
        scene = render_scene(index, seed=seed)
        pixels[index, ..., :3] = scene.image
        pixels[index, ..., 3] = scene.mask
        numbers.append((CLASSES.index(scene.label), BACKGROUNDS.index(scene.background)))
    return np.asarray(numbers, dtype=np.int64).T


def render_array(path: Path, count: int, seed: int, workers: int) -> SceneArray:
    """Render scenes 0 to ``count`` of the set ``seed`` into a new file, in several processes."""
    shape = (count, SIZE, SIZE, 4)
    np.memmap(path, np.uint8, "w+", shape=shape).flush()
    starts = range(0, count, _CHUNK)
    n = len(starts)
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_render_chunk, [path] * n, [count] * n, [seed] * n, starts))
    labels, backgrounds = np.concatenate(parts, axis=1)
    return SceneArray(np.memmap(path, np.uint8, "r", shape=shape), labels, backgrounds)


def _jitter(stored: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Mirror and shift each scene ``(B, Y, X, 4)`` at random; edges are filled by reflection."""
    margin = (_SHIFT, _SHIFT)
    wide = np.pad(stored, ((0, 0), margin, margin, (0, 0)), mode="reflect")
    moved = np.empty_like(stored)
    offsets = rng.integers(0, 2 * _SHIFT + 1, size=(len(stored), 2))
    for number, ((dy, dx), mirror) in enumerate(
        zip(offsets, rng.random(len(stored)) < 0.5, strict=True)
    ):
        window = wide[number, dy : dy + SIZE, dx : dx + SIZE]
        moved[number] = window[:, ::-1] if mirror else window
    return moved


def to_batch(scenes: SceneArray, chosen: NDArray[np.int64], stored: NDArray[np.uint8]) -> Batch:
    """Turn stored pixels ``(B, Y, X, 4)`` of the ``chosen`` scenes ``(B,)`` into a batch."""
    images = torch.from_numpy(stored[..., :3].transpose(0, 3, 1, 2).astype(np.float32))
    side = SIZE // PATCH
    tiles = stored[..., 3].reshape(len(stored), side, PATCH, side, PATCH)
    covered = tiles.mean(axis=(2, 4), dtype=np.float32).reshape(len(stored), side * side)
    labels, backgrounds = scenes.labels[chosen], scenes.backgrounds[chosen]
    places = np.where(covered >= 0.5, labels[:, None], len(CLASSES) + backgrounds[:, None])
    return Batch(
        images.div_(127.5).sub_(1),
        torch.from_numpy(labels),
        torch.from_numpy(covered),
        torch.from_numpy(places),
    )


def training_batches(scenes: SceneArray, size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """One pass over the scenes in random order, jittered; a short last batch is left out."""
    order = rng.permutation(len(scenes))
    for start in range(0, len(order) - size + 1, size):
        chosen = np.sort(order[start : start + size])
        yield to_batch(scenes, chosen, _jitter(scenes.pixels[chosen], rng))


def plain_batches(scenes: SceneArray, size: int) -> Iterator[Batch]:
    """Every scene once, in order, as it was drawn."""
    for start in range(0, len(scenes), size):
        chosen = np.arange(start, min(start + size, len(scenes)))
        yield to_batch(scenes, chosen, scenes.pixels[chosen])
