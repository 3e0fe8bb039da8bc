"""What the generated questions share: an index with boxes, filters, and brute force over it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.store.boxes import Box
from vitscope.store.manifest import Pooling
from vitscope.store.rows import RowRecord
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb

ROWS = 70
DENSE, SPARSE = "blocks.0.mlp", "blocks.1.mlp"
CHANNELS = {DENSE: 5, SPARSE: 9}
KEPT = {DENSE: 3, SPARSE: 4}
POOLINGS: dict[str, tuple[Pooling, ...]] = {DENSE: ("mean", "max", "cls"), SPARSE: ("mean", "max")}
PREFIX = {DENSE: 2, SPARSE: 0}
GRID = {DENSE: (2, 2), SPARSE: (2, 1)}
LABELS = ("fox", "café", "белка", "🦊 fennec")
BOX_LABELS = ("tail", "ear")
NUMBERS: dict[Pooling, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
NOT_KEPT = grpc.StatusCode.FAILED_PRECONDITION

each = settings(
    max_examples=int(os.environ.get("VITSCOPE_REQUESTS", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def boxes_of(generator: np.random.Generator, record: RowRecord) -> tuple[Box, ...]:
    """None, one or two within the picture, with and without labels."""
    found = []
    for _ in range(int(generator.integers(3))):
        x0, y0 = generator.uniform(0, 6, 2).round(2).tolist()
        width, height = generator.uniform(1, 4, 2).round(2).tolist()
        label = (None, *BOX_LABELS)[int(generator.integers(3))]
        corners = np.array([x0, y0, x0 + width, y0 + height], np.float32).tolist()
        found.append(Box(label, *corners))
    return tuple(found)


@dataclass(frozen=True)
class Filter:
    labels: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    has_box: bool | None = None
    box_labels: tuple[str, ...] = ()

    def message(self) -> pb.ImageFilter:
        return pb.ImageFilter(
            labels=self.labels, rows=self.rows, has_box=self.has_box, box_labels=self.box_labels
        )

    def passes(self, record: RowRecord) -> bool:
        named = {box.label for box in record.boxes}
        return (
            record.valid
            and (not self.labels or record.label in self.labels)
            and (not self.rows or record.row in self.rows)
            and (self.has_box is None or bool(record.boxes) == self.has_box)
            and (not self.box_labels or bool(named & set(self.box_labels)))
        )

    def rows_of(self, truth: Synthetic) -> list[int]:
        return [record.row for record in truth.records if self.passes(record)]


def filters() -> st.SearchStrategy[Filter]:
    some = st.builds(
        Filter,
        labels=st.lists(st.sampled_from(LABELS), max_size=2).map(tuple),
        rows=st.lists(st.integers(0, ROWS - 1), max_size=30).map(tuple),
        has_box=st.sampled_from([None, None, True]),
        box_labels=st.lists(st.sampled_from(BOX_LABELS), max_size=2).map(tuple),
    )
    without = st.builds(Filter, has_box=st.just(False))
    return st.just(Filter()) | some | without


@dataclass(frozen=True)
class Channel:
    layer: str
    channel: int
    pooling: Pooling


CHOSEN = st.sampled_from(
    [
        Channel(layer, channel, pooling)
        for layer, count in CHANNELS.items()
        for channel in range(count)
        for pooling in POOLINGS[layer]
    ]
)
KS = st.none() | st.integers(1, 65)


def usual(k: int | None, most: int) -> int:
    return min(20, most) if k is None else k


def rows_and_scores(images: Iterable[pb.ScoredImage]) -> list[tuple[int, float]]:
    return [(image.row, image.score) for image in images]


def column_of(truth: Synthetic, chosen: Channel) -> npt.NDArray[np.float64]:
    return truth.scores(chosen.layer, chosen.pooling)[:, chosen.channel].astype(np.float64)


def kept_rows(truth: Synthetic, layer: str, channel: int) -> set[int]:
    """Rows whose map of a channel is stored."""
    if layer == DENSE:
        return set(range(ROWS))
    rankings = [truth.ranking(layer, pooling, channel) for pooling in POOLINGS[layer]]
    return {row for ranking in rankings for row, _ in ranking[: KEPT[layer]]}


def quantile(values: Sequence[float], level: float) -> float:
    """The smallest value that at least a share of `level` does not exceed."""
    for value in sorted(values):
        share = sum(other <= value for other in values) / len(values)
        if share >= level - 1e-9:
            return value
    raise AssertionError("no level is above 1")


def corners_of(tokens: Any, record: RowRecord, y: int, x: int) -> list[float]:
    """What a patch covers of the source picture; the input is 48 by 80 pixels."""
    assert record.view is not None
    left, upper, right, lower = record.view
    return [
        left + (tokens.left + tokens.cell_width * x) / 80 * (right - left),
        upper + (tokens.top + tokens.cell_height * y) / 48 * (lower - upper),
        left + (tokens.left + tokens.cell_width * (x + 1)) / 80 * (right - left),
        upper + (tokens.top + tokens.cell_height * (y + 1)) / 48 * (lower - upper),
    ]
