"""The manifest: what a generation holds, and the digest of every file in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from vitscope.store.errors import DamagedIndexError, UnsupportedFormatError
from vitscope.store.records import record_from

FORMAT = "vitscope-index"
FORMAT_VERSION = 3
"""What is written."""
READABLE_VERSIONS = (1, 2, 3)
"""Version 1 had neither the place of patches in the input nor the views of images; versions 1 and 2
had no search among patches."""

Pooling = Literal["mean", "max", "cls"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)

_MOST = 2**31 - 1

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
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            # Of parts that do not go together; what Python says of the rest helps nobody.
            why = f": {error}" if type(error) is ValueError else ""
            raise DamagedIndexError(f"The manifest is not readable as one{why}.") from error


def _manifest(body: dict[str, Any], version: int) -> Manifest:
    if version < 3:
        body |= {"patch_recall_at_10": {}, "patch_recall_at_10_elsewhere": {}}
        for layer in body["layers"]:
            layer["patch_search"] = False
    if version == 1:
        # It knew plain transformers only, whose patches cover the input.
        size = tuple(body["model"]["input_size"])
        for layer in body["layers"]:
            layer["tokens"] = asdict(TokenLayout.even(**layer["tokens"], input_size=size))
    manifest = record_from(Manifest, body)
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Raise `ValueError` where parts do not go together, or cannot be what they are for."""
    names = [layer.name for layer in manifest.layers]
    searched = {layer.name for layer in manifest.layers if layer.patch_search}
    recalls = (manifest.patch_recall_at_10, manifest.patch_recall_at_10_elsewhere)
    if not names or len(set(names)) < len(names) or manifest.recall_at_10.keys() != {*names}:
        raise ValueError("not every layer has a name and a recall of its own")
    if any(each.keys() != searched for each in recalls):
        raise ValueError("not every search among patches has a recall")
    # Both become paths, and none may lead out of the folder.
    if any("/" in name for name in names) or not all(map(_is_path, (*names, *manifest.files))):
        raise ValueError("a layer or a file has a name that no index gives")
    for layer in manifest.layers:
        tokens = layer.tokens
        if min(tokens.cell_height, tokens.cell_width) <= 0:
            raise ValueError("patches have no place in the input")
        if "mean" not in layer.poolings or len(set(layer.poolings)) < len(layer.poolings):
            raise ValueError("a layer lacks a pooling, or has one twice")
    if not all((manifest.batch_size, manifest.unit_rows, *manifest.model.input_size)):
        raise ValueError("a size is none")
    if manifest.valid_rows > manifest.rows:
        raise ValueError("there are more valid rows than rows")
    depths = [layer.depth for layer in manifest.layers]
    if max((*depths, *manifest.model.input_size, manifest.thumbnail_size)) > _MOST:
        raise ValueError("a number is larger than any can be")


def _is_path(name: str) -> bool:
    return name != "manifest.json" and "\0" not in name and not {"", ".", ".."} & {*name.split("/")}
