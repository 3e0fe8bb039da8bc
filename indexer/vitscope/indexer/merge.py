"""From finished units to a published generation."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from vitscope.indexer.topk import KEY
from vitscope.indexer.work import Work
from vitscope.store import layout, neighbours
from vitscope.store.arrays import open_array, write_array, write_group
from vitscope.store.files import write_atomically
from vitscope.store.manifest import LayerRecord, Manifest, Pooling
from vitscope.store.publish import publish
from vitscope.store.ranking import sortable
from vitscope.store.rows import RowRecord, ThumbnailWriter, write_rows
from vitscope.store.statistics import write_correlation, write_statistics


def merge(work: Work) -> str:
    """Merge all units of `work`, publish, and give the generation's name."""
    plan = work.plan
    for group in (layout.ARRAYS, f"{layout.ARRAYS}/layers"):
        write_group(work.staged / group)
    for layer in plan.layers:
        write_group(layout.layer_path(work.staged, layer.name))
        for pooling in layer.poolings:
            _merge_top(work, layer, pooling)
    records = _merge_rows(work)
    valid = np.array([record.row for record in records if record.valid], np.int64)
    for layer in plan.layers:
        _add_statistics(work, layer, valid)
    recall = {layer.name: _build_neighbours(work, layer, valid) for layer in plan.layers}
    manifest = Manifest(
        model=plan.model,
        layers=plan.layers,
        rows=plan.rows,
        valid_rows=len(valid),
        rows_sha256=plan.rows_sha256,
        batch_size=plan.batch_size,
        unit_rows=plan.unit_rows,
        saturated=sum(work.saturated(unit) for unit in plan.units),
        thumbnail_size=plan.thumbnail_size,
        recall_at_10=recall,
        written_by=f"vitscope {version('vitscope')}",
    )
    return publish(work.index, work.staged, manifest)


def _merge_top(work: Work, layer: LayerRecord, pooling: Pooling) -> None:
    """The K best of every channel over all units, and their maps."""
    units = work.plan.units
    parts = [work.candidate_keys(unit, layer, pooling) for unit in units]
    keys = np.concatenate(parts)
    unit_of = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    place_of = np.concatenate([np.arange(len(part)) for part in parts])
    best, rank = _best(keys, layer.top_k)
    channel = keys["channel"][best]

    rows = np.full((layer.channels, layer.top_k), -1, np.int64)
    scores = np.full((layer.channels, layer.top_k), np.nan, np.float16)
    rows[channel, rank] = keys["row"][best]
    scores[channel, rank] = keys["score"][best]
    spec = layout.top_maps_spec(layer)
    maps = np.full((*rows.shape, spec.shape[2] * spec.shape[3]), np.nan, np.float16)
    for number, unit in enumerate(units):
        mine = unit_of[best] == number
        if mine.any():
            stored = work.candidate_maps(unit, layer, pooling)
            maps[channel[mine], rank[mine]] = stored[place_of[best[mine]]]

    group = layout.layer_path(work.staged, layer.name)
    write_array(group / layout.top_rows_name(pooling), rows, layout.top_rows_spec(layer))
    write_array(group / layout.top_scores_name(pooling), scores, layout.top_scores_spec(layer))
    write_array(group / layout.top_maps_name(pooling), maps.reshape(spec.shape), spec)


def _best(
    keys: npt.NDArray[np.void], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places in `keys` (of dtype `KEY`) of the k best of every channel, and the rank of each."""
    assert keys.dtype == KEY
    order = np.lexsort((keys["row"], -sortable(keys["score"]).astype(np.int32), keys["channel"]))
    channel = keys["channel"][order]
    first = np.searchsorted(channel, channel, side="left")
    rank = np.arange(len(order)) - first
    kept = rank < k
    return order[kept], rank[kept]


def _merge_rows(work: Work) -> Sequence[RowRecord]:
    records: list[RowRecord] = []
    lengths: list[int] = []
    for unit in work.plan.units:
        some, sizes = work.records(unit)
        records += some
        lengths += sizes
    path = layout.rows_path(work.staged)
    write_rows(path, records)
    if work.plan.thumbnail_size:
        writer = ThumbnailWriter(path, np.array(lengths, np.int64))
        for unit in work.plan.units:
            writer.append(work.thumbnails(unit))
        writer.close()
    return records


def _add_statistics(work: Work, layer: LayerRecord, valid: npt.NDArray[np.int64]) -> None:
    group = layout.layer_path(work.staged, layer.name)
    for pooling in layer.poolings:
        write_statistics(group, layer, pooling, valid)
    mask = np.zeros(work.plan.rows, np.bool_)
    mask[valid] = True
    write_correlation(group, layer, work.plan.unit_rows, mask)


def _build_neighbours(work: Work, layer: LayerRecord, valid: npt.NDArray[np.int64]) -> float:
    """Write the layer's FAISS index; gives its recall at 10, which is 1 for a flat index."""
    scores = open_array(
        layout.layer_path(work.staged, layer.name) / layout.scores_name("mean")
    ).read()
    path = work.staged / layout.faiss_file(layer.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, neighbours.build(scores.T[valid], valid))
    return 1.0
