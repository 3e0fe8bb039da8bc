"""What the client's methods return: frozen values made of plain Python, numpy and entries.

Axes: M maps, H patches from top to bottom, W patches from left to right.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitscope.client.answer import Answer
from vitscope.client.entries import (
    BoxedImage,
    ChangedImage,
    ChannelChange,
    ChannelMap,
    Layer,
    Model,
    NamedDirections,
    PatchGrid,
    ScoredChannel,
    ScoredImage,
    ScoredPatch,
)


@dataclass(frozen=True, slots=True, repr=False)
class Index(Answer):
    """One index of a server."""

    name: str
    generation: str
    """The published version that answered."""
    model: Model
    rows: int
    """Images in the frozen row list, readable or not."""
    valid_rows: int
    """Images that could be read."""
    layers: tuple[Layer, ...]
    """In the order of execution; empty from `Client.indexes`, which does not describe them."""
    live_model: bool = False
    """Whether the server runs the model for what the index did not keep, and for own pictures."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PatchMaps(Answer):
    """Patch maps of one layer: map i is of image `rows[i]` and channel `channels[i]`."""

    generation: str
    layer: str
    rows: NDArray[np.int64]
    """(M,)"""
    channels: NDArray[np.int32]
    """(M,)"""
    values: NDArray[np.float16]
    """(M, H, W) activations."""
    grid: PatchGrid | None
    """None where an older server does not tell; its patches cover the input evenly."""
    scale: NDArray[np.float32] | None = None
    """(M,) where maps came with a byte a value: each is off by half of it at most, and by what
    float16 rounds."""
    recomputed: NDArray[np.bool_] | None = None
    """(M,): which maps come from the server's live model instead of the index, equal to what was
    indexed but for what the size of a batch does to the last bits. None means that none does."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PatchMap(Answer):
    """The activation of one channel over the patch grid of one image."""

    generation: str
    layer: str
    channel: int
    row: int
    values: NDArray[np.float16]
    """(H, W) activations."""
    grid: PatchGrid | None
    """None where an older server does not tell; its patches cover the input evenly."""
    recomputed: bool = False
    """Whether it comes from the server's live model instead of the index."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TopImages(Answer):
    """The images on which a channel scores highest."""

    generation: str
    layer: str
    channel: int
    pooling: str
    """'mean', 'max' or 'cls': what ranked."""
    images: tuple[ScoredImage, ...]
    """In the order asked for, lower rows first among equal scores."""
    maps: PatchMaps | None
    """Where asked for: the stored maps of these images, in their order; some may have none."""
    candidates: int
    """How many images the filter let through; 0 where an older server does not tell."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ChannelStatistics(Answer):
    """Statistics of the scores of channels over all valid images. Axes: C channels, Q quantiles."""

    generation: str
    layer: str
    pooling: str
    channels: NDArray[np.int32]
    """(C,)"""
    mean: NDArray[np.float64]
    """(C,)"""
    variance: NDArray[np.float64]
    """(C,), of the population."""
    active: NDArray[np.float64]
    """(C,), share of images with a score above 0."""
    quantile_levels: NDArray[np.float64]
    """(Q,), from 0 to 1."""
    quantiles: NDArray[np.float32]
    """(C, Q), each the score of some image."""


@dataclass(frozen=True, slots=True, repr=False)
class TopPatches(Answer):
    """The patches of all images on which a channel is strongest."""

    generation: str
    layer: str
    channel: int
    patches: tuple[ScoredPatch, ...]
    """Higher activation first, then lower row, then from top to bottom and from left to right."""
    grid: PatchGrid
    """Where the layer's patches lie in the model's input."""


@dataclass(frozen=True, slots=True, repr=False)
class TopChannels(Answer):
    """The channels that are strongest on an image, or on a part of it."""

    generation: str
    row: int
    channels: tuple[ScoredChannel, ...]
    """Strongest first; among equals the earlier layer, then the lower channel."""


@dataclass(frozen=True, slots=True, repr=False)
class SimilarChannels(Answer):
    """The channels whose mean-pooled scores go with a channel's over the data set."""

    generation: str
    layer: str
    channel: int
    """The channel whose like these are; it is not among them."""
    channels: tuple[ScoredChannel, ...]
    """Higher correlation first, then earlier layer, then lower channel."""


@dataclass(frozen=True, slots=True, repr=False)
class SimilarImages(Answer):
    """The images nearest to one image in a layer's activation space."""

    generation: str
    layer: str
    row: int
    """The image whose neighbours these are; it is not among them."""
    images: tuple[ScoredImage, ...]
    """Higher cosine of the mean-pooled activations first, then lower row."""
    exact: bool
    """False where the search may have missed neighbours."""
    recall_at_10: float
    """Share of the true ten nearest that the search finds, measured when the index was built."""


@dataclass(frozen=True, slots=True, repr=False)
class SimilarPatches(Answer):
    """The patches nearest to one patch in a layer's activation space."""

    generation: str
    layer: str
    row: int
    """The image whose patch was asked about."""
    patch: tuple[int, int]
    """Its place (y, x) in the layer's grid; it is not among those below."""
    patches: tuple[ScoredPatch, ...]
    """Higher cosine of the activations first, then lower row, then by place."""
    grid: PatchGrid
    """Where the layer's patches lie in the model's input."""
    exact: bool
    """False where the search may have missed neighbours."""
    recall_at_10: float
    """Share of the true ten nearest that the search finds, measured when the index was built."""


@dataclass(frozen=True, slots=True, repr=False)
class TopImagesAlong(Answer):
    """The images that lie farthest along a direction in a layer's activation space."""

    generation: str
    layer: str
    measure: str
    """'projection' or 'cosine'."""
    pooling: str
    """Whose scores were projected."""
    images: tuple[ScoredImage, ...]
    """Higher measure first, then lower row."""
    candidates: int
    """How many images the filter let through."""


@dataclass(frozen=True, slots=True, repr=False)
class Directions(Answer):
    """All directions that lie beside an index."""

    generation: str
    directions: tuple[NamedDirections, ...]
    """By depth of the layer, then by name."""


@dataclass(frozen=True, slots=True, repr=False)
class Image(Answer):
    """Name and picture of one row."""

    generation: str
    row: int
    key: str
    """The image's name within its source, to be read; never a path to open."""
    label: str | None
    valid: bool
    """False where the source could not be read."""
    invalid_reason: str
    """Why not; empty for a valid image."""
    jpeg: bytes
    """The picture as the model saw it (resized and cropped); empty where none is stored."""
    width: int
    """Pixels of the source picture, before any transform; 0 where it could not be read."""
    height: int
    view: tuple[float, float, float, float] | None
    """What of the source picture the whole of the model's input shows: x0, y0, x1, y1 in pixels
    of it, beyond its edges where the transform pads. None where the picture could not be read,
    or where the index does not tell, as old ones do not."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ChannelBoxScores(Answer):
    """How far channels look at labelled boxes: means over images. Axis: C channels."""

    generation: str
    layer: str
    channels: NDArray[np.int32]
    """(C,)"""
    images: NDArray[np.int64]
    """(C,), how many have such a box and a map that is kept; without any, scores are NaN."""
    inside_images: NDArray[np.int64] | None
    """(C,), how many of these have positive activation, over which `inside` is averaged. None where
    an older server does not tell."""
    inside: NDArray[np.float64]
    """(C,), as in `BoxScores`."""
    area: NDArray[np.float64]
    """(C,)"""
    auc: NDArray[np.float64]
    """(C,)"""
    contrast: NDArray[np.float64]
    """(C,)"""


@dataclass(frozen=True, slots=True, repr=False)
class TopImagesByBox(Answer):
    """The images on which a channel looks most, or least, at labelled boxes."""

    generation: str
    layer: str
    channel: int
    images: tuple[BoxedImage, ...]
    """In the order asked for, lower rows first among equals."""
    candidates: int
    """How many images have such a box and a map that is kept."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Scores(Answer):
    """The scores of all images by channel. Axes: C channels, N images."""

    generation: str
    layer: str
    pooling: str
    channels: NDArray[np.int32]
    """(C,)"""
    values: NDArray[np.float16]
    """(C, N), exactly as stored; NaN for images that could not be read."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ScoreBlock(Answer):
    """A part of `Scores`: some channels on rows that follow each other."""

    generation: str
    layer: str
    pooling: str
    channels: NDArray[np.int32]
    """(C,)"""
    first_row: int
    """0 unless the one channel of the block is gone on with."""
    values: NDArray[np.float16]
    """(C, R) of the R rows from `first_row` on."""


@dataclass(frozen=True, slots=True, repr=False)
class ChangedChannels(Answer):
    """The answer to `compare_channels`."""

    generation: str
    other_generation: str
    layer: str
    channels: tuple[ChannelChange, ...]
    images: int
    """That are valid in both indexes and that the filter let through."""


@dataclass(frozen=True, slots=True, repr=False)
class ChangedImages(Answer):
    """The answer to `compare_images`."""

    generation: str
    other_generation: str
    layer: str
    channel: int
    images: tuple[ChangedImage, ...]
    candidates: int


@dataclass(frozen=True, slots=True, repr=False)
class Neighbours(Answer):
    """The images nearest to a picture that was brought along, in one layer."""

    layer: str
    images: tuple[ScoredImage, ...]
    """Higher cosine of the mean-pooled activations first, then lower row."""
    exact: bool
    """False where the search may have missed neighbours."""
    recall_at_10: float
    """Share of the true ten nearest that the search finds, measured when the index was built."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AnalyzedImage(Answer):
    """What channels make of a picture that was brought along."""

    generation: str
    channels: tuple[ScoredChannel, ...]
    """Strongest first; among equals the earlier layer, then the lower channel."""
    neighbours: tuple[Neighbours, ...]
    """By layer, in the order of execution."""
    maps: tuple[ChannelMap, ...]
    """Those of the strongest channels where asked for, then those of the channels asked for."""
    jpeg: bytes
    """The picture as the model saw it (resized and cropped)."""
    width: int
    """Pixels of the source picture, before any transform."""
    height: int
    view: tuple[float, float, float, float] | None
    """What of the source picture the whole of the model's input shows, as in `Image.view`."""
    same_as_row: int | None
    """The image of the index that has the same bytes, where there is one."""
