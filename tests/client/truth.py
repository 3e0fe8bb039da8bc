"""What the real server must answer about the synthetic index, in plain numpy over its activations.

The shape of the index is written out here a second time; nothing of vitscope is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from synthetic import Synthetic

Half = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Shape:
    """A layer of the synthetic index."""

    prefix: tuple[str, ...]
    height: int
    width: int
    channels: int
    poolings: tuple[str, ...]
    kept: int
    """Maps per channel and pooling."""
    cell: tuple[float, float]
    """Height and width in pixels of the input."""
    corner: tuple[float, float] = (0.0, 0.0)
    """Top and left of the grid, likewise."""


WIDE = "blocks.0.mlp"
PLAIN = "stages.1.blocks.0.mlp"
"""Without class token."""
WHOLE = "blocks.1.mlp"
"""All its maps are kept."""

INPUT = (48, 80)
"""Height and width of the model's input."""

SHAPES = {
    WIDE: Shape(("cls", "reg", "reg"), 3, 5, 11, ("mean", "max", "cls"), 6, (16, 16)),
    PLAIN: Shape((), 4, 2, 24, ("mean", "max"), 9, (12, 32), (-2.5, 8)),
    WHOLE: Shape(("cls",), 1, 1, 3, ("mean", "max", "cls"), 70, (48, 80)),
}


def bad_rows(index: Synthetic) -> list[int]:
    """Rows without a readable image."""
    return [0, 17, 31, 32, len(index.records) - 1]


def good_rows(index: Synthetic) -> list[int]:
    """Rows with a readable image."""
    return [row for row in range(len(index.records)) if row not in bad_rows(index)]


def maps(index: Synthetic, layer: str) -> Half:
    """Patch maps (N, H, W, C)."""
    shape, tokens = SHAPES[layer], index.activations[layer]
    return tokens[:, len(shape.prefix) :].reshape(
        len(tokens), shape.height, shape.width, shape.channels
    )


def scores(index: Synthetic, layer: str, pooling: str) -> Half:
    """(N, C)"""
    patches = maps(index, layer).astype(np.float64)
    pooled: npt.NDArray[np.float64] = {
        "mean": patches.mean((1, 2)),
        "max": patches.max((1, 2)),
        "cls": index.activations[layer][:, 0].astype(np.float64),
    }[pooling]
    return pooled.astype(np.float16)


def best(index: Synthetic, layer: str, channel: int, pooling: str) -> list[tuple[int, float]]:
    """Row and score of all good images: higher score first, then lower row."""
    column = scores(index, layer, pooling)[:, channel].astype(float)
    rows = np.array(good_rows(index))
    ordered = rows[np.lexsort((rows, -column[rows]))].tolist()
    return [(row, float(column[row])) for row in ordered]


def kept_rows(index: Synthetic, layer: str, channel: int) -> set[int]:
    """Rows whose map of a channel is stored: the top of any pooling."""
    shape = SHAPES[layer]
    rankings = [best(index, layer, channel, pooling) for pooling in shape.poolings]
    return {row for ranking in rankings for row, _ in ranking[: shape.kept]}


def cosines(index: Synthetic, layer: str, row: int) -> npt.NDArray[np.float64]:
    """Cosines of the mean-pooled activations to those of `row`, (N,); 0 to one of all zeros."""
    vectors = scores(index, layer, "mean").astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    cosines: npt.NDArray[np.float64] = vectors @ vectors[row]
    cosines /= np.maximum(norms * norms[row], 1e-300)
    return cosines
