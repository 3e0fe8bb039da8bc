"""The patches nearest to a patch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vitscope.server.errors import InvalidArgumentError, NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.channels import Patch
from vitscope.server.queries.checks import check_k, check_patch, check_valid, find_layer
from vitscope.server.queries.patches import Patches
from vitscope.store.generation import Generation
from vitscope.store.neighbours import nearest, scan


class NearPatches(NamedTuple):
    """Patches by their likeness to one."""

    patches: Patches
    recall: float
    """Share of the true ten nearest that such a search finds."""
    exact: bool
    """Whether none can have been missed."""


def similar_patches(
    generation: Generation,
    layer_name: str,
    row: int,
    place: Patch | None,
    k: int | None,
    *,
    other_images: bool,
    exact: bool,
) -> NearPatches:
    """The k patches nearest to a patch of image `row` by cosine of their activations.

    Ties by lower row, then from top to bottom and from left to right. With `other_images` none of
    the same image; with `exact`, or where there is no index of patches, held against all.
    """
    layer = find_layer(generation, layer_name)
    check_valid(generation, row)
    if not layer.dense:
        raise NotKeptHereError(
            f"layer: this index keeps pooled scores of {layer.name}, not its activations on every "
            "patch; ask about a layer that was indexed with --retain-all."
        )
    if place is None:
        raise InvalidArgumentError("patch is not given; name its place in the layer's grid.")
    check_patch(layer, place.y, place.x)
    cells, width = layer.tokens.height * layer.tokens.width, layer.tokens.width
    own = row * cells + place.y * width + place.x
    leave_out = range(row * cells, (row + 1) * cells) if other_images else range(own, own + 1)
    patches = generation.manifest.valid_rows * cells - len(leave_out)
    k = check_k(k, patches, "other patch")
    vectors = generation.patch_vectors(layer.name)
    query = vectors.read(np.array([own]))[0].astype(np.float64)
    index = None if exact else generation.patch_neighbours(layer.name)
    if index is None:
        ids, near = scan(vectors, query, k, leave_out, check_caller)
    else:
        ids, near = nearest(index, vectors, query, k, leave_out)
    rows, cell = np.divmod(ids, cells)
    found = Patches(layer, rows, *np.divmod(cell, width), near)
    if index is None:
        return NearPatches(found, 1.0, True)
    manifest = generation.manifest
    recall = manifest.patch_recall_at_10_elsewhere if other_images else manifest.patch_recall_at_10
    return NearPatches(found, recall[layer.name], index.exact)
