"""The patches on which a channel is strongest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.server.errors import NotKeptHereError
from vitscope.server.queries.checks import check_channel, check_k, check_pooling, find_layer
from vitscope.server.queries.filters import ImageFilter, select
from vitscope.server.queries.maps import kept_maps
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord
from vitscope.store.ranking import largest, sortable, top_rows
from vitscope.store.text import counted


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches of a layer, best first."""

    layer: LayerRecord
    rows: npt.NDArray[np.int64]
    """(k,)"""
    ys: npt.NDArray[np.int64]
    """(k,), from the top of the grid."""
    xs: npt.NDArray[np.int64]
    """(k,), from the left."""
    scores: npt.NDArray[np.floating[Any]]
    """(k,)"""


def top_patches(
    generation: Generation, layer_name: str, channel: int, k: int | None, asked: ImageFilter
) -> Patches:
    """The k patches of all images on which a channel is strongest; exact.

    Ties by lower row, then from top to bottom and from left to right. They lie in the k images that
    rank first by maximum: each of the others has as many patches before all of its own.
    """
    layer = find_layer(generation, layer_name)
    check_channel(layer, channel)
    check_pooling(layer, "max", "layer")
    cells = layer.tokens.height * layer.tokens.width
    k = check_k(k, generation.manifest.valid_rows * cells, "patch of a valid image")
    rows = _strongest(generation, layer, channel, k, select(generation, asked))
    kept, maps = kept_maps(generation, layer, channel, rows)
    if len(kept) < len(rows):
        raise NotKeptHereError(
            f"k: the strongest patches may lie in {counted(len(rows), 'image')}, but not the maps "
            f"of all these were kept, only those of the top {counted(layer.top_k, 'image')} of "
            "each channel; ask for fewer without a filter, or keep all of the layer (--retain-all)."
        )
    # In the order of rows, so that the place of a patch breaks ties.
    order = np.argsort(rows)
    values = maps[order].reshape(-1)
    best = largest(sortable(values), min(k, len(values)))
    image, cell = np.divmod(best, cells)
    ys, xs = np.divmod(cell, layer.tokens.width)
    return Patches(layer, rows[order][image], ys, xs, values[best])


def _strongest(
    generation: Generation,
    layer: LayerRecord,
    channel: int,
    k: int,
    among: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int64]:
    """The k images whose strongest patches are strongest."""
    if among is None and k <= layer.top_k:
        return generation.top(layer.name, "max", channel)[0][:k]
    column = generation.scores(layer.name, "max", channel)
    if among is None:
        return top_rows(column, k)
    return among[top_rows(column[among], k)]
