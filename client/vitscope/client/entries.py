"""What answers are made of: layers, images, patches and channels with their scores.

Axes: H patches from top to bottom, W patches from left to right.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitscope.client.answer import Brief


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """The tokens of a layer in order: the prefix tokens, then the patch grid row by row."""

    prefix: tuple[str, ...]
    """'cls', 'dist' or 'reg', one per prefix token."""
    height: int
    """H, in patches."""
    width: int
    """W, in patches."""
    cell_height: float
    """Pixels of the model's input from one patch to the next below it."""
    cell_width: float
    """Likewise to the next on its right."""
    top: float
    """Upper edge of the first row of patches in pixels of the model's input; a grid may begin
    inside of the input or outside of it."""
    left: float
    """Left edge of the first column."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One feed-forward block; its channels are the inputs of the block's last projection (fc2)."""

    name: str
    """The block's module path in the model, such as 'blocks.5.mlp'."""
    depth: int
    """Position in the order of execution, from 0."""
    channels: int
    """Hidden width."""
    tokens: TokenLayout
    poolings: tuple[str, ...]
    """Among 'mean', 'max' and 'cls': what top images can be ranked by."""
    maps_per_channel: int
    """Top images per channel and pooling whose patch maps are stored."""


@dataclass(frozen=True, slots=True)
class Model:
    """The model that an index was made with."""

    name: str
    """timm's name, with the pretrained tag where there is one."""
    weights_sha256: str
    """In lower-case hexadecimal."""
    weights_source: str
    """'pretrained', 'checkpoint' or 'random'."""
    input_height: int
    """In pixels."""
    input_width: int
    """In pixels."""
    dtype: str
    """Element type of the forward pass."""


@dataclass(frozen=True, slots=True)
class Distinctness:
    """What ranks an image where hub images, which top many channels, are to give way."""

    score: float
    """z * ln((1 + C) / (1 + hubs)) / ln(1 + C) where z is positive, else z: z is the score's
    distance from the channel's mean in standard deviations, C the channels of the layer."""
    hubs: int
    """Other channels of the layer that have the image among their best ten."""


@dataclass(frozen=True, slots=True, repr=False)
class ScoredImage(Brief):
    """An image and its score in an answer that ranks images."""

    row: int
    key: str
    """The image's name within its source, to be read; never a path to open."""
    label: str | None
    score: float
    """Exactly the stored float16 activation; among similar images a cosine."""
    distinctness: Distinctness | None = None
    """Where images were ranked as distinct ones."""


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """Where patches lie in the model's input, which a stored picture shows whole.

    All lengths are in pixels of the input. Patch (y, x) has the rows from `top + y * cell_height`
    to `top + (y + 1) * cell_height`, and the columns likewise.
    """

    input_height: int
    input_width: int
    cell_height: float
    cell_width: float
    top: float
    """May lie outside of the input, as may all edges."""
    left: float


@dataclass(frozen=True, slots=True, repr=False)
class ScoredPatch(Brief):
    """A patch and its activation in an answer that ranks patches."""

    row: int
    key: str
    """The image's name within its source, to be read; never a path to open."""
    label: str | None
    y: int
    """From the top of the layer's grid."""
    x: int
    """From the left."""
    score: float
    """The stored float16 activation; among similar patches a cosine."""
    source: tuple[float, float, float, float] | None
    """What the patch covers of the source picture: x0, y0, x1, y1 in pixels of it. None where the
    index does not tell, as old ones do not."""


@dataclass(frozen=True, slots=True)
class ScoredChannel:
    """A channel in an answer that ranks channels."""

    layer: str
    channel: int
    score: float
    """Its score, or a correlation."""
    percentile: float | None = None
    """Where asked for: the share of valid images that score lower, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class NamedDirections:
    """Directions that lie beside an index under one name."""

    layer: str
    name: str
    """One direction is called so; of several, number i is called `name/i`."""
    count: int
    """0 where it is one direction, else how many there are."""


@dataclass(frozen=True, slots=True)
class BoxScores:
    """How a patch map lies to the labelled boxes of its image, or maps on average."""

    inside: float
    """Share of the positive activation that lies in the boxes; NaN where there is none."""
    area: float
    """Share of the patches' area in the boxes: what `inside` is of an even map."""
    auc: float
    """Area under the ROC curve of telling inside from outside by the activation."""
    contrast: float
    """Mean activation inside minus mean activation outside."""


@dataclass(frozen=True, slots=True, repr=False)
class BoxedImage(Brief):
    """An image in an answer that ranks images by how a channel's map lies to their boxes."""

    row: int
    key: str
    """The image's name within its source, to be read; never a path to open."""
    label: str | None
    scores: BoxScores


@dataclass(frozen=True, slots=True)
class ChannelChange:
    """What becomes of a channel's scores from one index to another of the same pictures."""

    channel: int
    mean: float
    """Of the first index."""
    other_mean: float
    difference: float
    """Mean difference, other minus first."""
    effect: float
    """The difference in standard deviations of the first index's scores; NaN without any."""
    correlation: float
    """Pearson's, between the two; NaN where either never changes."""


@dataclass(frozen=True, slots=True, repr=False)
class ChangedImage(Brief):
    """An image and a channel's scores on it in two indexes."""

    row: int
    key: str
    label: str | None
    score: float
    other_score: float
    difference: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ChannelMap(Brief):
    """The activation of one channel over the patch grid of a picture that was brought along."""

    layer: str
    channel: int
    values: NDArray[np.float16]
    """(H, W) activations."""
    grid: PatchGrid | None
    """Where the patches lie in the model's input."""
