"""What an index takes on the disk, from its layers alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vitscope.indexer.layers import CapturedLayer

THUMBNAIL_BYTES = 17_000
"""Of a stored picture of 256 pixels, over the pictures of ImageNet."""
_HALF, _SINGLE, _ROW = 2, 4, 8


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes, without the pictures."""

    image: int
    """An image, with retention `top`: scores in both directions, and the vectors of its
    neighbours."""
    image_all: int
    """What retention `all` adds for an image where every layer has it."""
    once: int
    """Whatever the number of images: top images with their maps, and correlations."""


def cost(layers: Iterable[CapturedLayer], top_k: int) -> Cost:
    """The cost of an index of these layers with every pooling they can have."""
    image = image_all = once = 0
    for layer in layers:
        tokens, channels = layer.tokens, layer.channels
        poolings = len(tokens.poolings)
        image += channels * (2 * _HALF * poolings + _SINGLE)
        image_all += channels * tokens.tokens * _HALF
        maps = tokens.height * tokens.width * _HALF + _ROW + _HALF
        once += channels * (poolings * top_k * maps + channels * _SINGLE)
    return Cost(image, image_all, once)
