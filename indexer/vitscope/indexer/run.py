"""One indexing run, from the options to the published generation."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vitscope.indexer.capture import CapturedLayer, find_layers
from vitscope.indexer.decode import Decoder
from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.errors import IndexingError, OutputError
from vitscope.indexer.merge import merge
from vitscope.indexer.model import DTYPES, LoadedModel, Weights, load_model
from vitscope.indexer.plan import Plan
from vitscope.indexer.progress import Progress
from vitscope.indexer.reduce import LayerReduction
from vitscope.indexer.sources import Source, open_source
from vitscope.indexer.unit import Worker
from vitscope.indexer.work import Work, check_output, sweep
from vitscope.store import layout, neighbours
from vitscope.store.arrays import create_array
from vitscope.store.errors import NotWrittenError
from vitscope.store.manifest import LayerRecord, ModelRecord
from vitscope.store.publish import complete_publication


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is asked to do."""

    model: str
    data: Path
    out: Path
    weights: Weights = field(default_factory=Weights)
    img_size: int | None = None
    limit: int | None = None
    """Index the first so many images of the list only."""
    split: str | None = None
    """Which split of a Hugging Face data set; None where it has one only."""
    boxes: Path | None = None
    """Folder of PASCAL VOC annotations, as ImageNet has them."""
    top_k: int = 32
    retain_all: tuple[str, ...] = ()
    """Layers of which all activations are kept; `all` means every layer."""
    batch_size: int = 32
    unit_rows: int | None = None
    """Rows per unit, a multiple of `batch_size`; None takes about 1,024."""
    dtype: str = "float32"
    device: str = ""
    """`cpu`, `cuda`, `cuda:1`; empty takes CUDA where there is one."""
    thumbnail_size: int = 256
    """Longer side of the stored pictures in pixels; 0 stores none."""


def index(options: Options) -> str:
    """Index the pictures of `options.data`, publish in `options.out`, give the generation's name.

    Nothing is written before the options, the output folder, the pictures and the model have
    proved good. An unfinished run of the same plan is taken up where it was left. Raises
    `IndexingError`.
    """
    _check(options)
    sweep(options.out)
    check_output(options.out)
    source = open_source(
        options.data, limit=options.limit, split=options.split, boxes=options.boxes
    )
    for notice in source.notices:
        print(notice, file=sys.stderr)
    device = _device(options.device)
    neighbours.prepare()
    model = load_model(
        options.model,
        options.weights,
        img_size=options.img_size,
        device=device,
        dtype=options.dtype,
    )
    layers = find_layers(model.module, model.name, model.input_size)
    plan = _plan(options, source, model, layers)
    work = Work(options.out, plan)
    try:
        with work.lock():
            return _finish(work, source, model, layers, device)
    except (OSError, NotWrittenError) as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror or str(error).rstrip(".")
        raise OutputError(
            f"Writing to {options.out} failed ({reason}); mend that and run the same command "
            "again to go on."
        ) from error


def _finish(
    work: Work,
    source: Source,
    model: LoadedModel,
    layers: list[CapturedLayer],
    device: str,
) -> str:
    """Do what is left of the run, and give the generation's name."""
    name = None
    if work.begun:
        work.begin()
        name = complete_publication(work.index, work.staged)
    else:
        try:
            # Another run may have published while this one loaded its model.
            check_output(work.index)
        except OutputError:
            work.remove()
            raise
        work.begin()
    if name is None:
        _run_units(work, source, model, layers, device)
        name = merge(work)
    work.remove()
    return name


def _run_units(
    work: Work,
    source: Source,
    model: LoadedModel,
    layers: list[CapturedLayer],
    device: str,
) -> None:
    plan = work.plan
    finished = [unit for unit in plan.units if work.done(unit)]
    done = sum(unit.stop - unit.start for unit in finished)
    progress = Progress("images", plan.rows, done=done)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        worker = Worker(
            source=source,
            decoder=Decoder(model.steps, plan.thumbnail_size),
            model=model,
            layers=layers,
            reductions=[LayerReduction(layer, device) for layer in plan.layers],
            dense=_dense_writers(work),
            work=work,
            device=device,
            progress=progress,
            pool=pool,
        )
        for unit in finished:
            worker.restore(unit)
        for unit in plan.units:
            if unit not in finished:
                worker.run(unit)
    progress.finish()


def _dense_writers(work: Work) -> dict[int, DenseWriter]:
    """A writer for each layer of which everything is kept, by the layer's number."""
    plan = work.plan
    writers = {}
    for number, layer in enumerate(plan.layers):
        if layer.dense:
            spec = layout.activations_spec(layer, plan.rows, plan.unit_rows)
            path = layout.layer_path(work.staged, layer.name) / layout.ACTIVATIONS
            writers[number] = DenseWriter(layer, create_array(path, spec), spec.shard[0])
    return writers


def _dense_names(asked: tuple[str, ...], layers: list[CapturedLayer]) -> set[str]:
    names = {layer.name for layer in layers}
    unknown = [name for name in asked if name not in names and name != "all"]
    if unknown:
        raise IndexingError(
            f"--retain-all names {unknown[0]!r}, which is no layer of the model; "
            f"they are {layers[0].name} to {layers[-1].name}."
        )
    return names if "all" in asked else set(asked)


def _plan(
    options: Options, source: Source, model: LoadedModel, layers: list[CapturedLayer]
) -> Plan:
    rows = len(source.rows)
    dense = _dense_names(options.retain_all, layers)
    record = ModelRecord(
        name=model.name,
        weights_source=model.weights_source,
        weights_sha256=model.weights_sha256,
        input_size=model.input_size,
        dtype=options.dtype,
        transform=tuple(str(step) for step in model.steps),
        decoder=Decoder.name,
        exif="ignored",
    )
    return Plan(
        model=record,
        layers=tuple(
            LayerRecord(
                name=layer.name,
                depth=depth,
                channels=layer.channels,
                tokens=layer.tokens,
                poolings=layer.tokens.poolings,
                top_k=min(options.top_k, rows),
                dense=layer.name in dense,
            )
            for depth, layer in enumerate(layers)
        ),
        rows=rows,
        rows_sha256=source.rows.digest(),
        batch_size=options.batch_size,
        unit_rows=min(_unit_rows(options), rows),
        thumbnail_size=options.thumbnail_size,
    )


def _check(options: Options) -> None:
    for name in ("top_k", "batch_size", "unit_rows"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise IndexingError(f"--{name.replace('_', '-')} must be at least 1.")
    if options.limit is not None and options.limit < 1:
        raise IndexingError("--limit must be at least 1.")
    if options.img_size is not None and options.img_size < 1:
        raise IndexingError("--img-size must be at least 1 pixel.")
    if options.thumbnail_size < 0:
        raise IndexingError("--thumbnail-size must be 0 or more pixels.")
    if options.dtype not in DTYPES:
        raise IndexingError(f"--dtype must be one of {', '.join(DTYPES)}.")
    if options.unit_rows and options.unit_rows % options.batch_size:
        raise IndexingError(
            f"--unit-rows ({options.unit_rows}) must be a multiple of "
            f"--batch-size ({options.batch_size})."
        )
    parent = options.out.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"The folder {parent} for --out does not exist.")


def _unit_rows(options: Options) -> int:
    return options.unit_rows or -(-1024 // options.batch_size) * options.batch_size


def _device(asked: str) -> str:
    if not asked:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError):
        raise IndexingError(
            f"The device {asked!r} cannot be used here; give --device cpu."
        ) from None
    return asked
