"""What the columns of every answer are: in Parquet files, in pandas and under pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from vitscope.client import entries, results
from vitscope.client.answer import Answer, names_of
from vitscope.client.errors import UsageError
from vitscope.client.parquet import Columns

if TYPE_CHECKING:
    import pandas

ROWS = {"row": "int64", "key": "string", "label": "string", "valid": "bool"}
ROWS |= {"reason": "string", "width": "int32", "height": "int32"}
TOP = {"channel": "int32", "rank": "int32", "row": "int64", "key": "string", "label": "string"}
TOP |= {"score": "halffloat"}
DISTINCT = {"distinctness": "double", "hubs": "int32"}
BOXES = {"channel": "int32", "images": "int64", "inside_images": "int64"}
BOXES |= dict.fromkeys(("inside", "area", "auc", "contrast"), "double")

_NEAR = {"rank": "int32", "row": "int64", "key": "string", "label": "string", "score": "float"}
_PATCHES = {"rank": "int32", "row": "int64", "key": "string", "label": "string"}
_PATCHES |= {"y": "int32", "x": "int32", "score": "float"}
_PATCHES |= dict.fromkeys(("x0", "y0", "x1", "y1"), "float")
_CHANNELS = {"rank": "int32", "layer": "string", "channel": "int32", "score": "float"}
_BY_BOX = {"rank": "int32", "row": "int64", "key": "string", "label": "string"}
_BY_BOX |= dict.fromkeys(("inside", "area", "auc", "contrast"), "double")
_CHANGED_CHANNELS = {"rank": "int32", "channel": "int32"}
_CHANGED_CHANNELS |= dict.fromkeys(
    ("mean", "other_mean", "difference", "effect", "correlation"), "double"
)
_CHANGED_IMAGES = {"rank": "int32", "row": "int64", "key": "string", "label": "string"}
_CHANGED_IMAGES |= {"score": "halffloat", "other_score": "halffloat", "difference": "float"}
_MAPS = {"row": "int64", "channel": "int32", "highest": "halffloat", "y": "int32", "x": "int32"}
_LAYERS = {"layer": "string", "depth": "int32", "channels": "int32", "prefix": "string"}
_LAYERS |= {"height": "int32", "width": "int32", "poolings": "string", "maps_per_channel": "int32"}
_DIRECTIONS = {"layer": "string", "name": "string", "count": "int32"}

_DTYPES: dict[str, Any] = {
    "bool": np.bool_,
    "int32": np.int32,
    "int64": np.int64,
    "halffloat": np.float16,
    "float": np.float32,
    "double": np.float64,
}


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A column each: arrays of the type that `columns` names, or lists of what may be None."""

    columns: Columns
    values: Sequence[Any]

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.values[0])


@singledispatch
def table(answer: Answer) -> Table:
    """The entries of an answer, a row for each."""
    raise TypeError(f"{type(answer).__name__} has no table.")


def constants(answer: Answer) -> dict[str, Any]:
    """What holds for all rows: the numbers and names of an answer beside its entries."""
    if isinstance(answer, results.Image):  # itself the only entry
        return {"generation": answer.generation}
    named = ((name, getattr(answer, name)) for name in names_of(answer))
    return {name: value for name, value in named if _is_constant(value)}


def joined(tables: Iterable[Table]) -> Table:
    """Tables of the same columns, one at least, under each other."""
    parts = list(tables)
    # No row shows whether an answer would have had `distinctness`.
    parts = [part for part in parts if part.rows] or parts[:1]
    columns = parts[0].columns
    if any(part.columns != columns for part in parts):
        raise UsageError("These answers have different columns; make a table of each.")
    return Table(columns, [_chained(each) for each in zip(*(p.values for p in parts), strict=True)])


def to_pandas(answers: Iterable[Answer]) -> pandas.DataFrame:
    """One pandas DataFrame of one or more answers to the same kind of question.

    frame = tables.to_pandas(client.top_images_of_channels("blocks.5.mlp", k=9))

    `frame.attrs` has what is the same for all rows, such as the generation and the layer; what
    differs between answers becomes a column. Raises `UsageError` for answers of several kinds, or
    of none, and where pandas is missing.
    """
    try:
        import pandas
    except ModuleNotFoundError:
        raise UsageError("to_pandas needs pandas; run `pip install pandas`.") from None
    found = list(answers)
    if len({type(answer) for answer in found}) != 1:
        raise UsageError("to_pandas makes a frame of one or more answers, all of one kind.")
    parts = list(map(table, found))
    whole = joined(parts)
    told = [constants(answer) for answer in found]
    names = dict.fromkeys(name for one in told for name in one)
    first, *others = told
    same = {n: first[n] for n in names if all(one.get(n) == first.get(n) for one in others)}
    # Text is `object` in pandas 2 and `str` in pandas 3.
    text = pandas.Series(["text"]).dtype
    data = {
        name: pandas.Series([one.get(name) for one in told])
        .repeat([part.rows for part in parts])
        .reset_index(drop=True)
        for name in names
        if name not in same and name not in whole.columns
    }
    data |= {
        name: pandas.Series(values, dtype=text if kind == "string" else _dtype(values, kind))
        for (name, kind), values in zip(whole.columns.items(), whole.values, strict=True)
    }
    frame = pandas.DataFrame(data)
    frame.attrs = same
    return frame


def score_columns(channels: Iterable[int]) -> Columns:
    """A column for each channel's scores."""
    return {f"c{channel}": "halffloat" for channel in channels}


def _is_constant(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(part, int | float) for part in value)
    return isinstance(value, str | int | float)


def _dtype(values: Any, kind: str) -> Any:
    """As pandas can have it: NumPy's integers know no gaps, and floats of 16 bits no index."""
    if kind == "halffloat":
        return np.float32
    return np.float64 if kind.startswith("int") and isinstance(values, list) else _DTYPES[kind]


def _chained(parts: Sequence[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if any(isinstance(part, list) for part in parts):
        return [value for part in parts for value in part]
    return np.concatenate(parts)


def _table(columns: Columns, lines: Sequence[Sequence[Any]]) -> Table:
    """From rows to columns."""
    values = list(zip(*lines, strict=True)) if lines else [()] * len(columns)
    return Table(
        columns,
        [
            list(each) if kind == "string" else np.array(each, _DTYPES[kind])
            for each, kind in zip(values, columns.values(), strict=True)
        ],
    )


def image_rows(images: Sequence[results.Image]) -> Table:
    """The row list."""
    lines = [
        (
            image.row,
            image.key,
            image.label,
            image.valid,
            None if image.valid else image.invalid_reason,
            image.width,
            image.height,
        )
        for image in images
    ]
    return _table(ROWS, lines)


@table.register
def _(image: results.Image) -> Table:
    return image_rows([image])


@table.register
def _(index: results.Index) -> Table:
    lines = [
        (
            layer.name,
            layer.depth,
            layer.channels,
            " ".join(layer.tokens.prefix),
            layer.tokens.height,
            layer.tokens.width,
            " ".join(layer.poolings),
            layer.maps_per_channel,
        )
        for layer in index.layers
    ]
    return _table(_LAYERS, lines)


@table.register
def _(top: results.TopImages) -> Table:
    distinct = any(image.distinctness for image in top.images)
    lines = [
        (top.channel, *line, image.score)
        + ((given.score, given.hubs) if (given := image.distinctness) else ())
        for image, line in zip(top.images, _named(top.images), strict=True)
    ]
    return _table(TOP | (DISTINCT if distinct else {}), lines)


@table.register(results.SimilarImages)
@table.register(results.TopImagesAlong)
@table.register(results.Neighbours)
def _(near: results.SimilarImages | results.TopImagesAlong | results.Neighbours) -> Table:
    names = _named(near.images)
    return _table(_NEAR, [(*n, image.score) for image, n in zip(near.images, names, strict=True)])


@table.register
def _(top: results.TopPatches) -> Table:
    # What a patch scores is an activation, and among similar ones a cosine.
    return _patches(_PATCHES | {"score": "halffloat"}, top.patches)


@table.register
def _(near: results.SimilarPatches) -> Table:
    return _patches(_PATCHES, near.patches)


@table.register(results.TopChannels)
@table.register(results.SimilarChannels)
@table.register(results.AnalyzedImage)
def _(
    found: results.TopChannels | results.SimilarChannels | results.AnalyzedImage,
) -> Table:
    shares = any(each.percentile is not None for each in found.channels)
    lines = [
        (rank, each.layer, each.channel, each.score, *([each.percentile] if shares else []))
        for rank, each in enumerate(found.channels, 1)
    ]
    return _table(_CHANNELS | ({"percentile": "double"} if shares else {}), lines)


@table.register
def _(found: results.ChannelStatistics) -> Table:
    columns = {"channel": "int32", "mean": "double", "variance": "double", "active": "double"}
    columns |= {f"q{level:g}": "float" for level in found.quantile_levels.tolist()}
    moments = [found.mean, found.variance, found.active]
    return Table(columns, [found.channels, *moments, *found.quantiles.T])


@table.register
def _(found: results.ChannelBoxScores) -> Table:
    told = found.inside_images
    counted = [None] * len(found.channels) if told is None else told
    means = [found.inside, found.area, found.auc, found.contrast]
    return Table(BOXES, [found.channels, found.images, counted, *means])


@table.register
def _(top: results.TopImagesByBox) -> Table:
    lines = [
        (*line, each.scores.inside, each.scores.area, each.scores.auc, each.scores.contrast)
        for each, line in zip(top.images, _named(top.images), strict=True)
    ]
    return _table(_BY_BOX, lines)


@table.register
def _(found: results.ChangedChannels) -> Table:
    lines = [
        (
            rank,
            each.channel,
            each.mean,
            each.other_mean,
            each.difference,
            each.effect,
            each.correlation,
        )
        for rank, each in enumerate(found.channels, 1)
    ]
    return _table(_CHANGED_CHANNELS, lines)


@table.register
def _(found: results.ChangedImages) -> Table:
    lines = [
        (*line, each.score, each.other_score, each.difference)
        for each, line in zip(found.images, _named(found.images), strict=True)
    ]
    return _table(_CHANGED_IMAGES, lines)


@table.register(results.Scores)
@table.register(results.ScoreBlock)
def _(scores: results.Scores | results.ScoreBlock) -> Table:
    first = scores.first_row if isinstance(scores, results.ScoreBlock) else 0
    rows = np.arange(first, first + scores.values.shape[1], dtype=np.int64)
    # A channel that was asked for twice has one column.
    columns = dict(zip(scores.channels.tolist(), scores.values, strict=True))
    return Table({"row": "int64", **score_columns(columns)}, [rows, *columns.values()])


@table.register
def _(maps: results.PatchMaps) -> Table:
    return _maps(maps.rows.tolist(), maps.channels.tolist(), maps.values)


@table.register
def _(one: results.PatchMap) -> Table:
    return _maps([one.row], [one.channel], one.values[None])


@table.register
def _(found: results.Directions) -> Table:
    return _table(_DIRECTIONS, [(each.layer, each.name, each.count) for each in found.directions])


Named = entries.ScoredImage | entries.ScoredPatch | entries.BoxedImage | entries.ChangedImage


def _named(images: Sequence[Named]) -> list[tuple[int, int, str, str | None]]:
    """What every ranked image begins with."""
    return [(rank, image.row, image.key, image.label) for rank, image in enumerate(images, 1)]


def _patches(columns: Columns, patches: Sequence[entries.ScoredPatch]) -> Table:
    lines = [
        (*line, patch.y, patch.x, patch.score, *(patch.source or [None] * 4))
        for patch, line in zip(patches, _named(patches), strict=True)
    ]
    return _table(columns, lines)


def _maps(rows: Sequence[int], channels: Sequence[int], values: np.ndarray[Any, Any]) -> Table:
    """A row for each map: its highest activation, and the patch that has it."""
    if not len(values):
        return _table(_MAPS, [])
    finite = np.where(np.isnan(values), -np.inf, values).reshape(len(values), -1)
    places = zip(*np.unravel_index(finite.argmax(1), values.shape[1:]), strict=True)
    lines = [
        (row, channel, map_[y, x], y, x)
        for row, channel, map_, (y, x) in zip(rows, channels, values, places, strict=True)
    ]
    return _table(_MAPS, lines)
