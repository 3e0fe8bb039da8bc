"""From finished units to a published generation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from vitscope.indexer.base import Base
from vitscope.indexer.topk import KEY
from vitscope.indexer.work import Work
from vitscope.store import layout, neighbours
from vitscope.store.approximate import Recall
from vitscope.store.arrays import open_array, write_array
from vitscope.store.manifest import LayerRecord, Manifest, Pooling
from vitscope.store.progress import Progress
from vitscope.store.publish import publish
from vitscope.store.ranking import sortable
from vitscope.store.rows import RowRecord, ThumbnailWriter, write_rows
from vitscope.store.seals import Seal
from vitscope.store.statistics import write_correlation, write_statistics
from vitscope.store.vectors import ImageVectors, PatchVectors

_KEYS_AT_ONCE = 4_000_000
"""Candidates ranked together; the fold over units keeps memory flat."""

Places = npt.NDArray[np.int64]


def merge(work: Work, base: Base | None, taken_over: Mapping[str, Seal]) -> str:
    """Merge all units of `work`, and what `base` has, publish, and give the generation's name.

    `taken_over` are the seals of the base's files that became part of the staged folder.
    """
    plan = work.plan
    # Each layer counts twice, for its top images and for the rest.
    progress = Progress("merged layers", 2 * len(plan.layers), unit=2)
    for layer in plan.layers:
        for pooling in layer.poolings:
            _merge_top(work, base, layer, pooling)
        progress.advance(1)
    valid = _merge_rows(work, base)
    recall: dict[str, Recall] = {}
    patch_recall: dict[str, Recall] = {}
    for layer in plan.layers:
        _add_statistics(work, layer, valid)
        recall[layer.name] = _build_neighbours(work, layer, valid)
        if layer.patch_search:
            patch_recall[layer.name] = _build_patch_neighbours(work, layer, valid)
        progress.advance(1)
    progress.finish()
    before = base.generation.manifest.saturated if base else 0
    manifest = Manifest(
        model=plan.model,
        layers=plan.layers,
        rows=plan.rows,
        valid_rows=len(valid),
        rows_sha256=plan.rows_sha256,
        batch_size=plan.batch_size,
        unit_rows=plan.unit_rows,
        threads=plan.threads,
        saturated=before + sum(work.saturated(unit) for unit in plan.units),
        thumbnail_size=plan.thumbnail_size,
        recall_at_10={name: found.nearest for name, found in recall.items()},
        patch_recall_at_10={name: found.nearest for name, found in patch_recall.items()},
        patch_recall_at_10_elsewhere={
            name: found.elsewhere for name, found in patch_recall.items()
        },
        written_by=f"vitscope {version('vitscope')}",
    )
    return publish(work.index, work.staged, manifest, {**taken_over, **work.seals()})


def _merge_top(work: Work, base: Base | None, layer: LayerRecord, pooling: Pooling) -> None:
    """The K best of every channel over the base and all units, and their maps."""
    units = work.plan.units
    keys = [partial(work.candidate_keys, unit, layer, pooling) for unit in units]
    stored = [partial(work.candidate_maps, unit, layer, pooling) for unit in units]
    if base:
        keys.append(partial(base.candidate_keys, layer, pooling))
        stored.append(partial(base.candidate_maps, layer, pooling))
    best, part_of, place_of = _best((read() for read in keys), layer.top_k)
    channel = best["channel"]
    rank = np.arange(len(best)) - np.searchsorted(channel, channel, side="left")

    rows = np.full((layer.channels, layer.top_k), -1, np.int64)
    scores = np.full((layer.channels, layer.top_k), np.nan, np.float16)
    rows[channel, rank] = best["row"]
    scores[channel, rank] = best["score"]
    spec = layout.top_maps_spec(layer)
    maps = np.full((*rows.shape, spec.shape[2] * spec.shape[3]), np.nan, np.float16)
    for number, read in enumerate(stored):
        mine = part_of == number
        if mine.any():
            maps[channel[mine], rank[mine]] = read()[place_of[mine]]

    group = layout.layer_path(work.staged, layer.name)
    write_array(group / layout.top_rows_name(pooling), rows, layout.top_rows_spec(layer))
    write_array(group / layout.top_scores_name(pooling), scores, layout.top_scores_spec(layer))
    write_array(group / layout.top_maps_name(pooling), maps.reshape(spec.shape), spec)


def _best(
    parts: Iterable[npt.NDArray[np.void]], k: int
) -> tuple[npt.NDArray[np.void], Places, Places]:
    """The k best of every channel over all parts of keys, by channel and rank.

    Gives their keys (of dtype `KEY`), the number of the part each is of and its place therein.
    """
    keys = np.empty(0, KEY)
    part_of = place_of = np.empty(0, np.int64)
    waiting: list[tuple[npt.NDArray[np.void], Places, Places]] = []

    def fold() -> tuple[npt.NDArray[np.void], Places, Places]:
        joined = [np.concatenate(each) for each in zip(*waiting, strict=True)]
        kept = _ranked(joined[0], k)
        waiting.clear()
        return joined[0][kept], joined[1][kept], joined[2][kept]

    waiting.append((keys, part_of, place_of))
    for number, part in enumerate(parts):
        waiting.append((part, np.full(len(part), number), np.arange(len(part))))
        if sum(len(each[0]) for each in waiting) > _KEYS_AT_ONCE:
            waiting.append(fold())
    return fold()


def _ranked(keys: npt.NDArray[np.void], k: int) -> Places:
    """Places in `keys` of the k best of every channel, by channel and rank."""
    order = np.lexsort((keys["row"], -sortable(keys["score"]).astype(np.int32), keys["channel"]))
    channel = keys["channel"][order]
    rank = np.arange(len(order)) - np.searchsorted(channel, channel, side="left")
    kept: Places = order[rank < k]
    return kept


def _merge_rows(work: Work, base: Base | None) -> npt.NDArray[np.int64]:
    """Write the row table and the pictures; gives the valid rows (V,)."""
    plan = work.plan
    old = _blocks(plan.units[0].start, plan.unit_rows) if base else []

    def parts() -> Iterator[list[RowRecord]]:
        for rows in old:
            assert base
            yield base.records(rows)
        for unit in plan.units:
            yield work.records(unit)

    valid = write_rows(layout.rows_path(work.staged), parts)
    if plan.thumbnail_size:
        _merge_thumbnails(work, base, old)
    return valid


def _merge_thumbnails(work: Work, base: Base | None, old: list[range]) -> None:
    lengths = [np.array([len(each) for each in base.thumbnails(rows)]) for rows in old if base]
    lengths += [np.array(work.thumbnail_lengths(unit)) for unit in work.plan.units]
    sizes = np.concatenate(lengths).astype(np.int64)
    writer = ThumbnailWriter(layout.rows_path(work.staged), sizes)
    for rows in old:
        assert base
        writer.append(b"".join(base.thumbnails(rows)))
    for unit in work.plan.units:
        writer.append(work.thumbnails(unit))
    writer.close()


def _blocks(stop: int, size: int) -> list[range]:
    return [range(start, min(start + size, stop)) for start in range(0, stop, size)]


def _add_statistics(work: Work, layer: LayerRecord, valid: npt.NDArray[np.int64]) -> None:
    group = layout.layer_path(work.staged, layer.name)
    for pooling in layer.poolings:
        write_statistics(group, layer, pooling, valid)
    mask = np.zeros(work.plan.rows, np.bool_)
    mask[valid] = True
    write_correlation(group, layer, work.plan.unit_rows, mask)


def _build_neighbours(work: Work, layer: LayerRecord, valid: npt.NDArray[np.int64]) -> Recall:
    """Write the FAISS index of a layer's images; gives its recall at 10."""
    group = layout.layer_path(work.staged, layer.name)
    scores = open_array(group / layout.row_scores_name("mean"))
    path = work.staged / layout.faiss_file(layer.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return neighbours.build(path, ImageVectors(scores, valid))


def _build_patch_neighbours(work: Work, layer: LayerRecord, valid: npt.NDArray[np.int64]) -> Recall:
    """Write that of its patches; gives its recall at 10."""
    group = layout.layer_path(work.staged, layer.name)
    activations = open_array(group / layout.ACTIVATIONS)
    path = work.staged / layout.patches_faiss_file(layer.name)
    return neighbours.build(path, PatchVectors(activations, layer.tokens, valid))
