"""The arrays that units write into, and what of them is taken over from an earlier generation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vitscope.indexer.base import Base
from vitscope.indexer.plan import Plan
from vitscope.indexer.work import Work
from vitscope.store import layout
from vitscope.store.arrays import ArraySpec, create_array, shard_names, write_group
from vitscope.store.files import replacing, sync_directory
from vitscope.store.manifest import LayerRecord
from vitscope.store.seals import Seal


def unit_arrays(plan: Plan, layer: LayerRecord) -> dict[str, ArraySpec]:
    """The arrays of a layer whose shards belong to one unit each, by name."""
    size = plan.rows, plan.unit_rows
    arrays = {}
    for pooling in layer.poolings:
        arrays[layout.scores_name(pooling)] = layout.scores_spec(layer, *size)
        arrays[layout.row_scores_name(pooling)] = layout.row_scores_spec(layer, *size)
    if layer.dense:
        arrays[layout.ACTIVATIONS] = layout.activations_spec(layer, *size)
    if layer.dense_prefix:
        arrays[layout.PREFIX] = layout.prefix_spec(layer, *size)
    return arrays


def region(spec: ArraySpec, rows: slice) -> tuple[slice, ...]:
    """The part of an array that holds `rows`."""
    return tuple(rows if name == "row" else slice(None) for name in spec.dimensions)


def shards(plan: Plan, rows: slice) -> Iterator[str]:
    """Files below the generation's folder that hold `rows`, of all that units write."""
    for layer in plan.layers:
        group = layout.layer_path(Path(), layer.name)
        for name, spec in unit_arrays(plan, layer).items():
            for shard in shard_names(spec, *region(spec, rows)):
                yield (group / name / shard).as_posix()


def stage(work: Work, base: Base | None) -> dict[str, Seal]:
    """Create all groups and arrays of units, and take over the full units of `base`.

    Gives the seals of the files taken over. What is there already stays.
    """
    for group in (layout.ARRAYS, f"{layout.ARRAYS}/layers"):
        write_group(work.staged / group)
    for layer in work.plan.layers:
        group_path = layout.layer_path(work.staged, layer.name)
        write_group(group_path)
        for name, spec in unit_arrays(work.plan, layer).items():
            create_array(group_path / name, spec)
    kept = work.plan.units[0].start
    if base is None or not kept:
        return {}
    names = list(shards(work.plan, slice(0, kept)))
    for name in names:
        _take_over(base.generation.path / name, work.staged / name)
    for folder in {(work.staged / name).parent for name in names}:
        sync_directory(folder)
    return base.generation.seals(names)


def _take_over(published: Path, staged: Path) -> None:
    staged.parent.mkdir(parents=True, exist_ok=True)
    if staged.exists():
        return
    # Published files never change, so generations can share them.
    with suppress(OSError):
        os.link(published, staged)
        return
    with published.open("rb") as source, replacing(staged) as copy:
        shutil.copyfileobj(source, copy)
