"""An answer of every kind by real servers, and what its table must be, written out once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from synthetic import build

from vitscope import client as vc
from vitscope.client.answer import Answer
from vitscope.store.boxes import Box
from vitscope.store.rows import RowRecord

DENSE, OTHER = "blocks.0.mlp", "blocks.1.mlp"
_LABELS = (
    '<script>alert("1")</script>',
    "café",
    None,
    "белка & fox",
    "</table>",
    "🦊 fennec",
    None,
)

Row = dict[str, Any]


def _left(_: np.random.Generator, record: RowRecord) -> tuple[Box, ...]:
    """A box over the left of every other picture."""
    return (Box("tail", 0.0, 0.0, 5.0, 16.0),) if record.row % 2 else ()


def build_pair(folder: Path) -> list[Path]:
    """Two indexes of the same pictures, with boxes and directions, and labels that mean harm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_LABELS", _LABELS)
        one = build(folder / "one", complete=True, boxes=_left).path
        two = build(
            folder / "two", complete=True, seed=3, rename=lambda key: f"{key.removesuffix('3')}0"
        ).path
    directions = one / "directions" / DENSE
    directions.mkdir(parents=True)
    np.save(directions / "probe.npy", np.arange(5, dtype=np.float32))
    return [one, two]


QUESTIONS: dict[type[Answer], Callable[[Any], Any]] = {
    vc.Index: lambda c: c.index("one"),
    vc.Image: lambda c: c.images([5], index="one")[0],
    vc.TopImages: lambda c: c.top_images(DENSE, 3, k=7, distinct=True, index="one"),
    vc.ChannelStatistics: lambda c: c.channel_statistics(OTHER, [4, 2], index="one"),
    vc.TopPatches: lambda c: c.top_patches(DENSE, 4, k=9, index="one"),
    vc.TopChannels: lambda c: c.top_channels(3, percentiles=True, index="one"),
    vc.SimilarChannels: lambda c: c.similar_channels(OTHER, 5, layers=[DENSE], index="one"),
    vc.ChannelBoxScores: lambda c: c.box_scores(DENSE, index="one"),
    vc.TopImagesByBox: lambda c: c.top_images_by_box(DENSE, 2, index="one"),
    vc.PatchMaps: lambda c: c.patch_map_grid(DENSE, [4, 2], [0, 3], index="one"),
    vc.PatchMap: lambda c: c.patch_map(DENSE, 4, 9, index="one"),
    vc.SimilarImages: lambda c: c.similar_images(OTHER, 3, index="one"),
    vc.SimilarPatches: lambda c: c.similar_patches(DENSE, 3, (1, 0), index="one"),
    vc.TopImagesAlong: lambda c: c.top_images_along(DENSE, "probe", index="one"),
    vc.Directions: lambda c: c.directions(index="one"),
    vc.ChangedChannels: lambda c: c.compare_channels("one", "two", DENSE),
    vc.ChangedImages: lambda c: c.compare_images("one", "two", DENSE, 3),
    vc.Scores: lambda c: c.scores(OTHER, [7, 2], index="one"),
    vc.ScoreBlock: lambda c: next(c.scores_stream(OTHER, [1], index="one")),
}
"""Without what needs a live model."""


def _ranked(entries: Sequence[Any], more: Callable[[Any], Row], *, named: bool = True) -> list[Row]:
    names = ("row", "key", "label") if named else ()
    return [
        {"rank": rank, **{name: getattr(each, name) for name in names}, **more(each)}
        for rank, each in enumerate(entries, 1)
    ]


def _score(entry: Any) -> Row:
    return {"score": entry.score}


def _patch(patch: Any) -> Row:
    corners = dict(zip(("x0", "y0", "x1", "y1"), patch.source or [None] * 4, strict=True))
    return {"y": patch.y, "x": patch.x, "score": patch.score, **corners}


def _channel(channel: Any) -> Row:
    share = {} if channel.percentile is None else {"percentile": channel.percentile}
    return {"layer": channel.layer, "channel": channel.channel, "score": channel.score, **share}


def _boxed(image: Any) -> Row:
    return {name: getattr(image.scores, name) for name in ("inside", "area", "auc", "contrast")}


def _fields(*names: str) -> Callable[[Any], Row]:
    return lambda entry: {name: getattr(entry, name) for name in names}


def _arrays(found: Any, *names: str) -> list[Row]:
    columns = [getattr(found, name).tolist() for name in names]
    first, *others = names
    names = (first.removesuffix("s"), *others)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _map(row: int, channel: int, values: np.ndarray[Any, Any]) -> Row:
    highest = float(values.max())
    y, x = np.argwhere(values == highest)[0].tolist()
    return {"row": row, "channel": channel, "highest": highest, "y": y, "x": x}


def _distinct(image: Any) -> Row:
    given = image.distinctness
    more = {} if given is None else {"distinctness": given.score, "hubs": given.hubs}
    return {"score": image.score, **more}


def _quantiles(found: vc.ChannelStatistics) -> list[Row]:
    names = [f"q{level:g}" for level in found.quantile_levels.tolist()]
    moments = _arrays(found, "channels", "mean", "variance", "active")
    return [
        row | dict(zip(names, values, strict=True))
        for row, values in zip(moments, found.quantiles.tolist(), strict=True)
    ]


def _scores(found: Any, first: int = 0) -> list[Row]:
    names = [f"c{channel}" for channel in found.channels.tolist()]
    return [
        {"row": row, **dict(zip(names, values, strict=True))}
        for row, values in enumerate(found.values.T.tolist(), first)
    ]


def _layer(layer: vc.Layer) -> Row:
    return {
        "layer": layer.name,
        "depth": layer.depth,
        "channels": layer.channels,
        "prefix": " ".join(layer.tokens.prefix),
        "height": layer.tokens.height,
        "width": layer.tokens.width,
        "poolings": " ".join(layer.poolings),
        "maps_per_channel": layer.maps_per_channel,
    }


def _image(image: vc.Image) -> Row:
    names = ("row", "key", "label", "valid", "invalid_reason", "width", "height")
    row = _fields(*names)(image)
    return {
        name.removeprefix("invalid_"): value or (None if "reason" in name else value)
        for name, value in row.items()
    }


def _near(found: Any) -> list[Row]:
    return _ranked(found.images, _score)


def _channels(found: Any) -> list[Row]:
    return _ranked(found.channels, _channel, named=False)


def _patches(found: Any) -> list[Row]:
    return _ranked(found.patches, _patch)


EXPECTED: dict[type[Answer], Callable[[Any], list[Row]]] = {
    vc.Index: lambda index: list(map(_layer, index.layers)),
    vc.Image: lambda image: [_image(image)],
    vc.TopImages: lambda top: [
        {"channel": top.channel, **row} for row in _ranked(top.images, _distinct)
    ],
    vc.ChannelStatistics: _quantiles,
    vc.TopPatches: _patches,
    vc.TopChannels: _channels,
    vc.SimilarChannels: _channels,
    vc.AnalyzedImage: _channels,
    vc.Neighbours: _near,
    vc.ChannelBoxScores: lambda found: _arrays(
        found, "channels", "images", "inside_images", "inside", "area", "auc", "contrast"
    ),
    vc.TopImagesByBox: lambda top: _ranked(top.images, _boxed),
    vc.PatchMaps: lambda maps: list(
        map(_map, maps.rows.tolist(), maps.channels.tolist(), maps.values)
    ),
    vc.PatchMap: lambda one: [_map(one.row, one.channel, one.values)],
    vc.SimilarImages: _near,
    vc.SimilarPatches: _patches,
    vc.TopImagesAlong: _near,
    vc.Directions: lambda found: list(map(_fields("layer", "name", "count"), found.directions)),
    vc.ChangedChannels: lambda found: _ranked(
        found.channels,
        _fields("channel", "mean", "other_mean", "difference", "effect", "correlation"),
        named=False,
    ),
    vc.ChangedImages: lambda found: _ranked(
        found.images, _fields("score", "other_score", "difference")
    ),
    vc.Scores: _scores,
    vc.ScoreBlock: lambda block: _scores(block, block.first_row),
}
"""The rows of the table of every kind of answer."""


def without_nan(row: Row) -> Row:
    """Nothing is None, whatever a library has for it."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }
