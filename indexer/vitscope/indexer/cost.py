"""What an index takes on the disk, from its layers alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vitscope.indexer.layers import CapturedLayer
from vitscope.store.manifest import TokenLayout

_HALF, _SINGLE, _ROW = 2, 4, 8


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes, without the pictures."""

    image: int
    """An image, with retention `top`: scores in both directions, and the vectors of its
    neighbours."""
    image_all: int
    """What retention `all` adds for an image, without a search among patches."""
    once: int
    """Whatever the number of images: top images with their maps, and correlations."""


def layer_cost(channels: int, tokens: TokenLayout, poolings: int, top_k: int) -> Cost:
    """The cost of one layer with so many poolings."""
    best = top_k * (tokens.height * tokens.width * _HALF + _ROW + _HALF)
    return Cost(
        image=channels * (2 * _HALF * poolings + _SINGLE),
        image_all=channels * tokens.tokens * _HALF,
        once=channels * (poolings * best + channels * _SINGLE),
    )


def cost(layers: Iterable[CapturedLayer], top_k: int) -> Cost:
    """The cost of an index of these layers with every pooling they can have."""
    costs = [
        layer_cost(layer.channels, layer.tokens, len(layer.tokens.poolings), top_k)
        for layer in layers
    ]
    return Cost(
        image=sum(each.image for each in costs),
        image_all=sum(each.image_all for each in costs),
        once=sum(each.once for each in costs),
    )
