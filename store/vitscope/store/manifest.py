"""The manifest: what a generation holds, and the digest of every file in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from vitscope.store.errors import DamagedIndexError, UnsupportedFormatError

FORMAT = "vitscope-index"
FORMAT_VERSION = 3
"""What is written."""
READABLE_VERSIONS = (1, 2, 3)
"""Version 1 had neither the place of patches in the input nor the views of images; versions 1 and 2
had no search among patches."""

Pooling = Literal["mean", "max", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Levels of the stored quantiles of a channel's per-image scores."""


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Where a layer's tokens lie: the prefix tokens, then the patch grid in row-major order."""

    prefix: tuple[str, ...]
    """`cls`, `dist` or `reg`, one per prefix token, in order."""
    height: int
    """Patches from top to bottom."""
    width: int
    """Patches from left to right."""
    cell_height: float
    """Pixels of the model's input from one patch to the next below it."""
    cell_width: float
    """Likewise to the next on its right."""
    top: float
    """Upper edge of the first row of patches in pixels of the model's input; the grid of an
    overlapping or padded embedding may begin inside or outside of it."""
    left: float
    """Left edge of the first column."""

    @staticmethod
    def even(
        prefix: tuple[str, ...], height: int, width: int, input_size: tuple[int, int]
    ) -> TokenLayout:
        """A grid that covers the input (height and width in pixels) without overlap or rim."""
        return TokenLayout(
            prefix, height, width, input_size[0] / height, input_size[1] / width, 0.0, 0.0
        )

    @property
    def tokens(self) -> int:
        """Tokens of one image: prefix and patches."""
        return len(self.prefix) + self.height * self.width

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        """The poolings such a layer can have."""
        return POOLINGS if "cls" in self.prefix else ("mean", "max")


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One feed-forward block whose hidden activations were indexed."""

    name: str
    """Module path of the block, such as `blocks.5.mlp`."""
    depth: int
    """Position in the order of execution, from 0."""
    channels: int
    """Hidden width."""
    tokens: TokenLayout
    poolings: tuple[Pooling, ...]
    top_k: int
    """Images per channel and pooling whose patch maps are kept."""
    dense: bool
    """Whether all activations of all images are kept (retention `all`)."""
    dense_prefix: bool
    """Whether the activations of the prefix tokens of all images are kept."""
    patch_search: bool = False
    """Whether there is a FAISS index of all patches, which are then kept."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The model that made the activations."""

    name: str
    """timm's name, with the pretrained tag where there is one."""
    weights_source: str
    """`pretrained`, `checkpoint` or `random`."""
    weights_sha256: str
    """Digest of names, dtypes, shapes and values of all parameters and buffers."""
    input_size: tuple[int, int]
    """Height and width in pixels."""
    dtype: str
    """Element type of the forward pass."""
    transform: tuple[str, ...]
    """timm's evaluation transform, a step an entry, as it prints itself."""
    decoder: str
    """Which decoder made the pixels."""
    exif: str
    """`ignored`: orientation tags are not applied, as in timm's own evaluation."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and BLAKE3 of one published file."""

    bytes: int
    blake3: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a reader needs to know before it opens an array."""

    model: ModelRecord
    layers: tuple[LayerRecord, ...]
    rows: int
    valid_rows: int
    rows_sha256: str
    """Digest of the frozen row list: keys, labels, byte lengths and boxes."""
    batch_size: int
    """Rows per forward pass; matrix products may round differently at another size."""
    unit_rows: int
    """Rows per unit of work, the width of a score shard."""
    saturated: int
    """Scores beyond float16's range that were stored as its largest value."""
    threads: int
    """Of a forward on the CPU, for the same reason; 0 where another device made the scores."""
    thumbnail_size: int
    """Longer side of the stored pictures in pixels; 0 where none are stored."""
    recall_at_10: Mapping[str, float]
    """By layer: share of the true ten nearest images that its FAISS index finds."""
    written_by: str
    patch_recall_at_10: Mapping[str, float] = field(default_factory=dict)
    """Likewise of patches, of the layers that have a FAISS index of them."""
    patch_recall_at_10_elsewhere: Mapping[str, float] = field(default_factory=dict)
    """The same where those of the patch's own image are left out."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """By path below the generation's folder; all files but the manifest itself."""

    def to_json(self) -> bytes:
        """Serialise; equal manifests give equal bytes."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @staticmethod
    def from_json(data: bytes) -> Manifest:
        """Parse and check.

        Raises `UnsupportedFormatError` for another format or version and `DamagedIndexError` for
        anything that is not a whole manifest.
        """
        try:
            body = json.loads(data)
            name, version = (body.pop("format"), body.pop("format_version"))
            # JSON's true and 1.0 would equal the number.
            known = type(version) is int and version in READABLE_VERSIONS
            if name != FORMAT or not known:
                known_versions = ", ".join(map(str, READABLE_VERSIONS[:-1]))
                raise UnsupportedFormatError(
                    f"The index has format {name!r} version {version!r}; this vitscope reads "
                    f"{FORMAT!r} versions {known_versions} and {READABLE_VERSIONS[-1]}."
                )
            return _manifest(body, version)
        except (
            ValueError,
            ArithmeticError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
        ) as error:
            raise DamagedIndexError("The manifest is not readable as one.") from error


def _manifest(body: dict[str, Any], version: int) -> Manifest:
    model = model_record(body.pop("model"))
    files = {path: FileRecord(**record) for path, record in body.pop("files").items()}
    even_over = model.input_size if version == 1 else None
    without = {"patch_search": False} if version < 3 else {}
    layers = tuple(layer_record({**layer, **without}, even_over) for layer in body.pop("layers"))
    for name in ("patch_recall_at_10", "patch_recall_at_10_elsewhere"):
        if version < 3:
            body[name] = {}
        elif name not in body:
            raise ValueError(f"{name} is missing")
    return Manifest(model=model, layers=layers, files=files, **body)


def model_record(model: dict[str, Any]) -> ModelRecord:
    """The model from JSON."""
    size, transform = tuple(model.pop("input_size")), tuple(model.pop("transform"))
    return ModelRecord(input_size=size, transform=transform, **model)


def layer_record(layer: dict[str, Any], even_over: tuple[int, int] | None = None) -> LayerRecord:
    """A layer from JSON; version 1 knew plain transformers only, whose patches cover the input."""
    tokens = layer.pop("tokens")
    tokens["prefix"] = tuple(tokens["prefix"])
    poolings, patch_search = tuple(layer.pop("poolings")), layer.pop("patch_search")
    if even_over:
        layout = TokenLayout.even(**tokens, input_size=even_over)
    else:
        layout = TokenLayout(**tokens)
        place = (layout.cell_height, layout.cell_width, layout.top, layout.left)
        if not all(map(math.isfinite, place)) or min(place[:2]) <= 0:
            raise ValueError("patches have no place in the input")
    return LayerRecord(tokens=layout, poolings=poolings, patch_search=patch_search, **layer)
