"""Everything a run works with, made from its options: pictures, model and plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vitscope.indexer.allocation import keep_freed_memory
from vitscope.indexer.base import Base
from vitscope.indexer.cost import cost
from vitscope.indexer.errors import IndexingError, OutputError
from vitscope.indexer.layers import CapturedLayer, LeftOut, find_layers
from vitscope.indexer.memory import batch_for
from vitscope.indexer.model import LoadedModel, load_model
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Plan
from vitscope.indexer.sources import Source, open_source
from vitscope.indexer.view import check_steps
from vitscope.indexer.work import recorded_plan
from vitscope.store import layout
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import LayerRecord, ModelRecord, Pooling

_SMALL_UNIT, _LARGE_UNIT, _LARGE = 1024, 4096, 1 << 17
"""Images of a unit, and from how many on it is a large one: then there are fewer files, and a
channel's scores are read in a third of the time; a crash loses more."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is ready to begin."""

    source: Source
    """The pictures of this run; its row 0 is row `plan.base_rows` of the index."""
    model: LoadedModel
    layers: Sequence[CapturedLayer]
    left_out: Sequence[LeftOut]
    base: Base | None
    device: str
    plan: Plan


def prepare(options: Options, worker: int = 0) -> Job:
    """Make the job of a run; the same in each of its worker processes but for the device.

    Raises `IndexingError`, and `StoreError` where the index to append to is damaged.
    """
    recorded = recorded_plan(options.out)
    base = _base(options, recorded)
    if base:
        base.check_model(options.model)
    source = open_source(
        options.data, limit=options.limit, split=options.split, boxes=options.boxes
    )
    device = _device(options, worker)
    threads = _threads(options, device, recorded, base)
    if threads:
        torch.set_num_threads(threads)
        keep_freed_memory()
    model = load_model(
        options.model,
        options.weights,
        img_size=options.img_size,
        device=device,
        dtype=options.dtype,
    )
    check_steps(model.steps)
    layers, left_out = find_layers(model.module, model.name, model.input_size)
    model.module.to(model.dtype)
    batch_size = _batch_size(options, model, layers, device, recorded, base)
    plan = _plan(options, source, model, layers, base, batch_size, threads)
    if base:
        # First, since to find what is new is to read all pictures, and it may be nothing.
        base.check(plan)
        source = base.new_pictures(source)
        plan = _plan(options, source, model, layers, base, batch_size, threads)
    return Job(source, model, layers, left_out, base, device, plan)


def _base(options: Options, recorded: dict[str, Any] | None) -> Base | None:
    if not options.append:
        return None
    # An unfinished run goes on from where it began, whatever has been published since.
    name = recorded.get("base") if recorded else ""
    if recorded and not name:
        raise OutputError(
            f"{options.out} holds an unfinished run that makes a new index; run its own command "
            "again to finish it."
        )
    if name:
        generation = Generation(options.out / layout.GENERATIONS / name)
    else:
        generation = open_generation(options.out)
    if not generation.rows.has_views:
        raise OutputError(
            f"The index {options.out} was made by an earlier vitscope, which did not record what "
            "of each picture the model saw; index all pictures anew, with another folder for --out."
        )
    return Base(generation)


def _plan(
    options: Options,
    source: Source,
    model: LoadedModel,
    layers: Sequence[CapturedLayer],
    base: Base | None,
    batch_size: int,
    threads: int,
) -> Plan:
    old = base.rows if base else 0
    rows = old + len(source.rows)
    return Plan(
        model=recorded_model(model, options.dtype, options.decoder),
        layers=_layers(options, layers, rows),
        base=base.name if base else "",
        base_rows=old,
        rows=rows,
        rows_sha256=base.digest(source.rows) if base else source.rows.digest(),
        batch_size=batch_size,
        unit_rows=_unit_rows(options, rows, base, batch_size),
        threads=threads,
        thumbnail_size=options.thumbnail_size,
    )


def recorded_model(model: LoadedModel, dtype: str, decoder: str) -> ModelRecord:
    """What an index tells of the model that made it."""
    return ModelRecord(
        name=model.name,
        weights_source=model.weights_source,
        weights_sha256=model.weights_sha256,
        input_size=model.input_size,
        dtype=dtype,
        transform=tuple(str(step) for step in model.steps),
        decoder=decoder,
        exif="ignored",
    )


def _layers(
    options: Options, layers: Sequence[CapturedLayer], rows: int
) -> tuple[LayerRecord, ...]:
    dense = _named("--retain-all", options.retain_all, layers)
    prefix = _named("--retain-prefix", options.retain_prefix, layers)
    return tuple(
        LayerRecord(
            name=layer.name,
            depth=depth,
            channels=layer.channels,
            tokens=layer.tokens,
            poolings=_poolings(options, layer, layers),
            top_k=min(options.top_k, rows),
            dense=layer.name in dense,
            # All activations have them among them.
            dense_prefix=layer.name in prefix - dense and bool(layer.tokens.prefix),
            patch_search=layer.name in dense and options.patch_search,
        )
        for depth, layer in enumerate(layers)
    )


def _poolings(
    options: Options, layer: CapturedLayer, layers: Sequence[CapturedLayer]
) -> tuple[Pooling, ...]:
    """Those asked for that a layer can have; a class token may join later than the first layer."""
    somewhere = {pooling for each in layers for pooling in each.tokens.poolings}
    for name in options.poolings:
        if name not in somewhere:
            raise IndexingError(
                f"--poolings names {name!r}, but the model has no class token; "
                f"it has {', '.join(layer.tokens.poolings)}."
            )
    possible = layer.tokens.poolings
    return tuple(each for each in possible if not options.poolings or each in options.poolings)


def _named(flag: str, asked: tuple[str, ...], layers: Sequence[CapturedLayer]) -> set[str]:
    names = {layer.name for layer in layers}
    unknown = [name for name in asked if name not in names and name != "all"]
    if unknown:
        raise IndexingError(
            f"{flag} names {unknown[0]!r}, which is no layer of the model; "
            f"they are {layers[0].name} to {layers[-1].name}."
        )
    return names if "all" in asked else set(asked)


def _unit_rows(options: Options, rows: int, base: Base | None, batch_size: int) -> int:
    if base and not base.single_unit and options.unit_rows is None:
        return base.generation.manifest.unit_rows
    usual = _LARGE_UNIT if rows >= _LARGE else _SMALL_UNIT
    size = options.unit_rows or -(-usual // batch_size) * batch_size
    return min(size, rows)


def _batch_size(
    options: Options,
    model: LoadedModel,
    layers: Sequence[CapturedLayer],
    device: str,
    recorded: dict[str, Any] | None,
    base: Base | None,
) -> int:
    before = (recorded or {}).get("batch_size") or (
        base.generation.manifest.batch_size if base else 0
    )
    if options.batch_size or before:
        return options.batch_size or int(before)
    found = batch_for(model, device, cost(layers, options.top_k).once)
    rows = options.unit_rows or found
    # Units are of whole batches.
    return max(size for size in range(1, found + 1) if rows % size == 0)


def _threads(
    options: Options, device: str, recorded: dict[str, Any] | None, base: Base | None
) -> int:
    if device != "cpu":
        return 0
    before = (recorded or {}).get("threads") or (base.generation.manifest.threads if base else 0)
    return options.threads or before or max(1, (os.cpu_count() or 1) // options.processes)


def usable_device(asked: str) -> str:
    """The device, if it can be used; where none is asked for CUDA, or else the processor."""
    if asked:
        try:
            torch.empty(1, device=asked)
        except (RuntimeError, AssertionError) as error:
            # torch's first sentence; the others are on debugging.
            why = str(error).partition("\n")[0].partition(". ")[0]
            raise IndexingError(
                f"The device {asked!r} cannot be used here ({why}); give --device cpu."
            ) from None
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _device(options: Options, worker: int) -> str:
    device = usable_device(options.device)
    if device == "cuda" and options.processes > 1:
        return f"cuda:{worker % torch.cuda.device_count()}"
    return device
