"""A small published index of random activations.

The index is made without a model, straight through the store's writing functions, and the dense
activations stay in memory: every answer can be compared with brute force. Ranking, pooling and
cosines are computed here a second time, in ways of their own, and share no code with vitscope.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitscope.store import layout, neighbours
from vitscope.store.approximate import SIZES, Recall, Sizes
from vitscope.store.arrays import create_array, open_array, write_array, write_group
from vitscope.store.boxes import Box
from vitscope.store.manifest import LayerRecord, Manifest, ModelRecord, Pooling, TokenLayout
from vitscope.store.publish import publish
from vitscope.store.rows import RowRecord, ThumbnailWriter, write_rows
from vitscope.store.statistics import write_correlation, write_statistics
from vitscope.store.vectors import ImageVectors, PatchVectors

Half = npt.NDArray[np.float16]

ROWS = 70
UNIT_ROWS = 32
_LABELS = ("fox", "café", None, "белка", "fox", "🦊 fennec", None)
INPUT = (48, 80)


def layer_records(rows: int) -> tuple[LayerRecord, ...]:
    """Three unlike layers: prefix and wide grid; no prefix; one patch, and every map kept."""
    return (
        _layer(
            "blocks.0.mlp",
            0,
            11,
            TokenLayout.even(("cls", "reg", "reg"), 3, 5, INPUT),
            min(6, rows),
        ),
        _layer(
            "stages.1.blocks.0.mlp",
            1,
            24,
            TokenLayout((), 4, 2, 12.0, 32.0, -2.5, 8.0),
            min(9, rows),
        ),
        _layer("blocks.1.mlp", 2, 3, TokenLayout.even(("cls",), 1, 1, INPUT), rows),
    )


def _layer(
    name: str, depth: int, channels: int, tokens: TokenLayout, top_k: int, *, dense: bool = False
) -> LayerRecord:
    poolings: tuple[Pooling, ...] = ("mean", "max", "cls") if tokens.prefix else ("mean", "max")
    return LayerRecord(
        name,
        depth,
        channels,
        tokens,
        poolings,
        top_k,
        dense=dense,
        dense_prefix=False,
        patch_search=dense,
    )


def complete_layer_records(rows: int) -> tuple[LayerRecord, ...]:
    """Two small layers, one of them with all its activations."""
    return (
        _layer(
            "blocks.0.mlp",
            0,
            5,
            TokenLayout.even(("cls", "reg"), 2, 2, INPUT),
            min(3, rows),
            dense=True,
        ),
        _layer("blocks.1.mlp", 1, 9, TokenLayout((), 2, 1, 20.5, 96.0, 4.0, -8.25), min(4, rows)),
    )


@dataclass(frozen=True)
class Synthetic:
    """A published index and the dense truth it was made of."""

    path: Path
    """The index directory."""
    generation: str
    manifest: Manifest
    """As it was given to `publish`: without the files."""
    activations: Mapping[str, Half]
    """By layer: (N, T, C); noise on invalid rows, which must never be answered."""
    records: tuple[RowRecord, ...]
    thumbnails: tuple[bytes, ...]
    """JPEGs; empty for invalid rows."""

    @property
    def folder(self) -> Path:
        """The generation's folder."""
        return self.path / "generations" / self.generation

    @property
    def name(self) -> str:
        """The name under which a server holds the index."""
        return self.path.name

    @property
    def layers(self) -> Mapping[str, LayerRecord]:
        """Layers by name."""
        return {layer.name: layer for layer in self.manifest.layers}

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Whether each row holds an image: (N,)."""
        return np.array([record.valid for record in self.records])

    def maps(self, layer: str) -> Half:
        """The patch maps (N, C, H, W) of a layer."""
        return dense_maps(self.layers[layer], self.activations[layer])

    def scores(self, layer: str, pooling: Pooling) -> Half:
        """The scores (N, C) of a layer; NaN on invalid rows."""
        return dense_scores(self.layers[layer], self.activations[layer], pooling, self.valid)

    def ranking(self, layer: str, pooling: Pooling, channel: int) -> list[tuple[int, float]]:
        """Row and score of all valid images, best first."""
        return ranked(self.scores(layer, pooling)[:, channel].tolist())

    def cosines(self, layer: str, row: int) -> npt.NDArray[np.float64]:
        """Cosine similarity of mean-pooled activations to those of `row`: (N,)."""
        vectors = self.scores(layer, "mean").astype(np.float64)
        lengths = np.sqrt((vectors**2).sum(1))
        products = (vectors * vectors[row]).sum(1)
        scale = lengths * lengths[row]
        cosines: npt.NDArray[np.float64] = products / np.where(scale == 0, 1, scale)
        return cosines


def dense_maps(layer: LayerRecord, activations: Half) -> Half:
    """Patch maps (N, C, H, W) of activations (N, T, C)."""
    tokens = layer.tokens
    patches = activations[:, len(tokens.prefix) :]
    grid = patches.reshape(len(patches), tokens.height, tokens.width, -1)
    return np.ascontiguousarray(grid.transpose(0, 3, 1, 2))


def dense_scores(
    layer: LayerRecord, activations: Half, pooling: Pooling, valid: npt.NDArray[np.bool_]
) -> Half:
    """Scores (N, C) of activations (N, T, C)."""
    patches = activations[:, len(layer.tokens.prefix) :].astype(np.float64)
    wide: npt.NDArray[np.float64]
    if pooling == "cls":
        wide = activations[:, layer.tokens.prefix.index("cls")].astype(np.float64)
    else:
        wide = patches.max(1) if pooling == "max" else patches.sum(1) / patches.shape[1]
    scores: Half = wide.astype(np.float16) + np.float16(0)
    scores[~valid] = np.nan
    return scores


def ranked(scores: Sequence[float]) -> list[tuple[int, float]]:
    """Row and score of all that are not NaN: higher score first, then lower row."""
    pairs = [(row, score) for row, score in enumerate(scores) if not math.isnan(score)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def build(
    index: Path,
    *,
    seed: int = 0,
    rows: int = ROWS,
    thumbnails: bool = True,
    complete: bool = False,
    boxes: Callable[[np.random.Generator, RowRecord], tuple[Box, ...]] | None = None,
    patch_search: bool = True,
    sizes: Sizes = SIZES,
    rename: Callable[[str], str] = str,
) -> Synthetic:
    """Make and publish an index in the new folder `index`, its keys changed by `rename`.

    With `complete` it has boxes and dense activations too, in small layers, and a search among
    patches unless `patch_search` says otherwise. `sizes` say of which kind FAISS indexes are.
    """
    boxes = boxes or _boxes
    generator = np.random.default_rng(seed)
    layers = complete_layer_records(rows) if complete else layer_records(rows)
    if not patch_search:
        layers = tuple(replace(layer, patch_search=False) for layer in layers)
    shift = seed if complete else 0
    pictures = tuple(_picture(row + shift) if _is_valid(row, rows) else b"" for row in range(rows))
    records = tuple(_record(row, rows, picture) for row, picture in enumerate(pictures))
    if complete:
        records = tuple(
            replace(record, key=f"{record.key}{seed}", boxes=boxes(generator, record))
            for record in records
        )
    records = tuple(replace(record, key=rename(record.key)) for record in records)
    valid = np.array([record.valid for record in records])
    activations = {layer.name: _activations(generator, layer, rows) for layer in layers}

    staged = index / "building" / "staged"
    for group in ("", "layers"):
        write_group(staged / layout.ARRAYS / group)
    recall = {}
    for layer in layers:
        _write_layer(staged, layer, activations[layer.name], valid)
        _write_rest(staged, layer, activations[layer.name], valid)
        recall[layer.name] = _write_faiss(staged, layer, valid, sizes)
    write_rows(layout.rows_path(staged), lambda: [records])
    if thumbnails:
        lengths = np.array([len(picture) for picture in pictures], np.int64)
        writer = ThumbnailWriter(layout.rows_path(staged), lengths)
        for start in range(0, rows, UNIT_ROWS):
            writer.append(b"".join(pictures[start : start + UNIT_ROWS]))
        writer.close()
    manifest = Manifest(
        model=ModelRecord(
            name="vit_synthetic.none",
            weights_source="random",
            weights_sha256=hashlib.sha256(str(seed).encode()).hexdigest(),
            input_size=INPUT,
            dtype="float32",
            transform=("ToTensor()",),
            decoder="pillow",
            exif="ignored",
        ),
        layers=layers,
        rows=rows,
        valid_rows=int(valid.sum()),
        rows_sha256="0" * 64,
        batch_size=UNIT_ROWS,
        unit_rows=UNIT_ROWS,
        threads=0,
        saturated=0,
        thumbnail_size=16 if thumbnails else 0,
        recall_at_10={layer.name: recall[layer.name][0].nearest for layer in layers},
        patch_recall_at_10={
            layer.name: recall[layer.name][1].nearest for layer in layers if layer.patch_search
        },
        patch_recall_at_10_elsewhere={
            layer.name: recall[layer.name][1].elsewhere for layer in layers if layer.patch_search
        },
        written_by="tests",
    )
    generation = publish(index, staged, manifest)
    (index / "building").rmdir()
    return Synthetic(index, generation, manifest, activations, records, pictures)


def _is_valid(row: int, rows: int) -> bool:
    """The first and the last row are bad, and both sides of a border between units."""
    return row not in (0, 17, UNIT_ROWS - 1, UNIT_ROWS, rows - 1)


def _size(row: int) -> tuple[int, int]:
    return (16, 9) if row % 2 else (11, 16)


def _boxes(generator: np.random.Generator, record: RowRecord) -> tuple[Box, ...]:
    """None, one or two boxes with corners of two digits."""
    corners = generator.integers(10, 100, (int(generator.integers(3)), 4)).tolist()
    return tuple(Box(None if box[0] % 2 else "tail", *map(float, box)) for box in corners)


def _picture(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", _size(row), (row * 3, 255 - row * 3, row)).save(buffer, "JPEG")
    return buffer.getvalue()


def _record(row: int, rows: int, picture: bytes) -> RowRecord:
    valid = _is_valid(row, rows)
    # Of the bad ones, some could be read but not decoded, and some were empty.
    data = picture or (b"" if row % 2 else b"not a picture")
    width, height = _size(row) if valid else (0, 0)
    return RowRecord(
        row=row,
        key=f"зоопарк/野 {row:03d}.jpg" if row % 3 else f"plain/{row}.png",
        label=_LABELS[row % len(_LABELS)],
        valid=valid,
        reason="" if valid else f"cannot identify image №{row}",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest() if data else "",
        width=width,
        height=height,
        view=_view(row, width, height) if valid else None,
    )


def _view(row: int, width: int, height: int) -> tuple[float, float, float, float]:
    """Of every third picture all, of the others the middle, or all and a rim around it."""
    rim = (0.0, 2.5, -1.25)[row % 3]
    return rim, rim / 2, width - rim, height - rim / 2


def _activations(generator: np.random.Generator, layer: LayerRecord, rows: int) -> Half:
    """Few different values, so that scores tie often; several channels are all ties or extreme."""
    shape = (rows, layer.tokens.tokens, layer.channels)
    values = (generator.integers(-8, 9, shape) / 4).astype(np.float16)
    values[..., 0] = generator.choice(np.array([0.0, -0.0], np.float16), shape[:2])
    values[..., 1] = -np.abs(values[..., 1]) - np.float16(0.25)
    values[..., 2] = generator.choice(np.array([6e-8, -6e-8, 0], np.float16), shape[:2])
    values[6:9, :, 2] = generator.choice(np.array([65504, -65504], np.float16), (3, shape[1]))[
        : max(0, rows - 6)
    ]
    if layer.channels > 3:
        values[..., 3] = generator.integers(0, 2, shape[:2])
        values[..., 4] = generator.normal(0, 3, shape[:2]).astype(np.float16)
    # Pictures that occur several times, in more than one unit, and one without any activity.
    for copies in ((3, 9, 40, 41, 66), (20, 4, 50)):
        for copy in copies[1:]:
            if max(copy, copies[0]) < rows:
                values[copy] = values[copies[0]]
    values[min(12, rows - 2)] = 0
    return values


def _write_layer(
    staged: Path, layer: LayerRecord, activations: Half, valid: npt.NDArray[np.bool_]
) -> None:
    group = layout.layer_path(staged, layer.name)
    write_group(group)
    rows = len(activations)
    maps = dense_maps(layer, activations)
    for pooling in layer.poolings:
        scores = dense_scores(layer, activations, pooling, valid)
        array = create_array(
            group / layout.scores_name(pooling), layout.scores_spec(layer, rows, UNIT_ROWS)
        )
        for start in range(0, rows, UNIT_ROWS):
            part = scores[start : start + UNIT_ROWS].T
            array.write(part, slice(None), slice(start, start + part.shape[1]))
        _write_top(group, layer, pooling, scores, maps)


def _write_rest(
    staged: Path, layer: LayerRecord, activations: Half, valid: npt.NDArray[np.bool_]
) -> None:
    """The other direction of the scores, statistics, correlation, and activations if dense."""
    group = layout.layer_path(staged, layer.name)
    rows = len(activations)
    for pooling in layer.poolings:
        scores = dense_scores(layer, activations, pooling, valid)
        path = group / layout.row_scores_name(pooling)
        write_array(path, scores, layout.row_scores_spec(layer, rows, UNIT_ROWS))
        write_statistics(group, layer, pooling, np.flatnonzero(valid))
    write_correlation(group, layer, UNIT_ROWS, valid)
    if layer.dense:
        values = activations.transpose(0, 2, 1).copy()
        values[~valid] = np.nan
        spec = layout.activations_spec(layer, rows, UNIT_ROWS)
        write_array(group / layout.ACTIVATIONS, values, spec)


def _write_faiss(
    staged: Path, layer: LayerRecord, valid: npt.NDArray[np.bool_], sizes: Sizes
) -> tuple[Recall, Recall]:
    """Recall among images and, where they are searched, among patches."""
    group, rows = layout.layer_path(staged, layer.name), np.flatnonzero(valid)
    (staged / "faiss").mkdir(exist_ok=True)
    scores = open_array(group / layout.row_scores_name("mean"))
    file = staged / layout.faiss_file(layer.name)
    recall = neighbours.build(file, ImageVectors(scores, rows), sizes)
    if not layer.patch_search:
        return recall, recall
    patches = PatchVectors(open_array(group / layout.ACTIVATIONS), layer.tokens, rows)
    file = staged / layout.patches_faiss_file(layer.name)
    return recall, neighbours.build(file, patches, sizes)


def _write_top(group: Path, layer: LayerRecord, pooling: Pooling, scores: Half, maps: Half) -> None:
    top_rows, top_scores, top_maps = top_arrays(layer, scores, maps)
    write_array(group / layout.top_rows_name(pooling), top_rows, layout.top_rows_spec(layer))
    write_array(group / layout.top_scores_name(pooling), top_scores, layout.top_scores_spec(layer))
    write_array(group / layout.top_maps_name(pooling), top_maps, layout.top_maps_spec(layer))


def top_arrays(
    layer: LayerRecord, scores: Half, maps: Half
) -> tuple[npt.NDArray[np.int64], Half, Half]:
    """What is kept of scores (N, C) and maps (N, C, H, W): rows and scores (C, K), maps."""
    shape = (layer.channels, layer.top_k)
    top_rows = np.full(shape, -1, np.int64)
    top_scores = np.full(shape, np.nan, np.float16)
    top_maps = np.full((*shape, *maps.shape[2:]), np.nan, np.float16)
    for channel in range(layer.channels):
        best = ranked(scores[:, channel].tolist())[: layer.top_k]
        for rank, (row, score) in enumerate(best):
            top_rows[channel, rank] = row
            top_scores[channel, rank] = score
            top_maps[channel, rank] = maps[row, channel]
    return top_rows, top_scores, top_maps
