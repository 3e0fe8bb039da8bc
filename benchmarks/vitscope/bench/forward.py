"""What an index costs over the bare forward, and how near it comes to its slower stage.

    python -m vitscope.bench.forward [--quick] [--pictures N] [--model NAME …] [--device DEVICE]
        [--dtype DTYPE] [--top-k K] [--json FILE]

Retention `top`, all layers, four units of pictures, three poolings where there is a class token.
In turns, the bare model goes through decoded batches, and units of the same are indexed, everything
but decoding counted: capture, reduction, writing, receipts. First of new pictures, many of which
enter the best of some channel: of N pictures, about K (1 + ln(N / K)) are ever among a channel's
best K, so that they cost the more of the time the fewer there are. Then a quarter of them with bars
that none can beat, as late in a large data set. Last, all are indexed from files, where decoding,
measured alone before, comes in. On a processor decoding and the model share the cores, and whoever
does both needs at least the sum of both times; a GPU leaves decoding a machine of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitscope.bench import arguments
from vitscope.bench.record import Row, compared, show, size_of, write
from vitscope.indexer.batches import Batch, Batches
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Unit
from vitscope.indexer.scenes import write_scenes
from vitscope.indexer.stage import stage
from vitscope.indexer.topk import NONE
from vitscope.indexer.unit import Worker
from vitscope.indexer.work import Work

MODELS = {
    "vit_tiny_patch16_224": 1_024,
    "vit_small_patch32_224": 1_024,
    "swin_tiny_patch4_window7_224": 256,
}
"""And the pictures that each is given: a forward of Swin takes five times as long."""
PACKAGES = ("vitscope", "torch", "timm", "numpy", "numba", "tensorstore", "pillow")
BATCH, BATCH_OF_DEVICE = 32, 256
QUICK, QUICK_ON_DEVICE = ("vit_tiny_patch16_224", 256, 20), ("vit_base_patch16_224", 2_048, 20)
"""The one model, its pictures, and the best kept of each channel."""


def main() -> int:
    """Run every model, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one model, few pictures")
    parser.add_argument("--pictures", type=int, help="so many for every model")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    parser.add_argument("--device", type=arguments.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the forward")
    parser.add_argument("--model", action="append", help="another model than the three")
    parser.add_argument("--top-k", type=int, default=100, metavar="K", help="images kept a channel")
    args = parser.parse_args()
    if args.quick:
        model, few, args.top_k = QUICK if args.device == "cpu" else QUICK_ON_DEVICE
        args.model, args.pictures = args.model or [model], args.pictures or few
    command = f"python -m vitscope.bench.forward --device {args.device} --dtype {args.dtype}"
    command += f" --top-k {args.top_k}" + " --quick" * args.quick
    command += f" --pictures {args.pictures}" if args.pictures else ""
    command += "".join(f" --model {name}" for name in args.model or ())
    rows: list[Row] = []
    for name in args.model or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            pictures = args.pictures or MODELS.get(name, 2_048)
            batch = BATCH if args.device == "cpu" else BATCH_OF_DEVICE
            write_scenes(Path(folder) / "scenes", pictures)
            options = Options(
                model=name,
                data=Path(folder) / "scenes" / "images",
                out=Path(folder) / name,
                weights=Weights(random=True),
                top_k=args.top_k,
                batch_size=batch,
                unit_rows=max(batch, pictures // 4),
                device=args.device,
                dtype=args.dtype,
            )
            rows += model_rows(options, Path(folder))
        show(rows[-3:])
        if args.json:
            write(args.json, command, rows, PACKAGES)
    return 0


def model_rows(options: Options, folder: Path) -> list[Row]:
    """New pictures, the same where none enters, and from files."""
    called = f"{options.model}, best {options.top_k}"
    called += "" if options.dtype == "float32" else f", {options.dtype}"
    job = prepare(options)
    with working(job, folder) as worker:
        # Compiles, and makes what a process makes once.
        worker.rehearse(range(job.plan.batch_size))
    decoding = sum(taken for _, taken in decoded(job, folder)) * 1e3
    held = Held(copied(batch) for batch, _ in decoded(job, folder))
    units = job.plan.units
    few = units[: max(1, len(units) // 4)]
    before = f"{called}, {{:,}} pictures decoded before"
    rows = [
        held_row(f"{before}, new pictures", job, folder, held, units, barred=False),
        held_row(f"{before}, none of which enters", job, folder, held, few, barred=True),
    ]
    alone = rows[0]["sides"]["bare forward"]["ms"]
    del held.batches[:]
    with working(job, folder) as worker:
        taken, written = indexing(worker, units)
    operations = rows[0]["work"][options.dtype]
    row = compared(
        f"{called}, {job.plan.rows:,} pictures from files",
        {"forward alone": [alone], "decoding alone": [decoding], "index": [taken]},
        "forward alone",
        images=job.plan.rows,
        work={options.dtype: operations},
        work_of={
            "decoding alone": {},
            "index": {options.dtype: operations, "written": written},
        },
        images_per_second=job.plan.rows / taken * 1e3,
        of_the_slower_stage=max(decoding, alone) / taken,
        of_both_on_the_same_cores=(decoding + alone) / taken,
        stages=worker.stages.shares(),
    )
    return [*rows, row]


def held_row(
    what: str, job: Job, folder: Path, held: Held, units: Sequence[Unit], *, barred: bool
) -> Row:
    """Units of decoded pictures indexed, between two times the bare forward."""
    count = units[-1].stop
    batches = held.batches[: -(-count // job.plan.batch_size)]
    before = forward(job, batches)
    with working(job, folder) as worker:
        worker.replace_batches(held)
        if barred:
            worker.bar()
        taken, written = indexing(worker, units)
    mean = (before + forward(job, batches)) / 2
    work = {job.plan.model.dtype: operations_of(job) * count}
    return compared(
        what.format(count),
        {"bare forward": [mean], "index": [taken]},
        "bare forward",
        images=count,
        work=work,
        work_of={"index": {**work, "written": written}},
        stages=worker.stages.shares(),
    )


@contextmanager
def working(job: Job, place: Path) -> Iterator[Measured]:
    """A worker of the run, with a folder in `place` to work in, that goes again."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        work = Work(Path(folder), job.plan)
        work.begin()
        stage(work, None)
        worker = Measured(job, work, lambda done: None)
        try:
            yield worker
        finally:
            worker.close()


def decoded(job: Job, folder: Path) -> Iterator[tuple[Batch, float]]:
    """All batches of a run, and the seconds that each was waited for."""
    with working(job, folder) as worker:
        batches = worker._batches
        for unit in job.plan.units:
            batches.announce(range(unit.start, unit.stop))
        for _ in (start for unit in job.plan.units for start in batches_of(job, unit)):
            start = time.perf_counter()
            batch = batches.take()
            yield batch, time.perf_counter() - start


def copied(batch: Batch) -> Batch:
    """One that stays, in memory that a device copies from as from the batch itself."""
    pixels = torch.empty_like(batch.pixels, pin_memory=batch.pixels.is_pinned())
    return replace(batch, pixels=pixels.copy_(batch.pixels))


def batches_of(job: Job, unit: Unit) -> range:
    """Where the batches of a unit begin."""
    return range(unit.start, unit.stop, job.plan.batch_size)


def forward(job: Job, batches: Iterable[Batch]) -> float:
    """Milliseconds of the bare model over batches."""
    model = job.model
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model.module(batch.pixels.to(job.device, model.dtype, non_blocking=True))
    if job.device.startswith("cuda"):
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def operations_of(job: Job) -> float:
    """Floating point operations of the forward of one image."""
    model = job.model
    picture = torch.zeros(1, 3, *model.input_size, device=job.device, dtype=model.dtype)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.module(picture)
    return float(counter.get_total_flops())


def indexing(worker: Measured, units: Sequence[Unit]) -> tuple[float, int]:
    """Milliseconds of units, to the last receipt, and the bytes that are on the disk then."""
    start = time.perf_counter()
    worker.run_all(units)
    return (time.perf_counter() - start) * 1e3, size_of(worker.folder)


class Measured(Worker):
    """A worker whose pictures can come decoded, and whose bars can be raised."""

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self._work.path

    def replace_batches(self, held: Held) -> None:
        """Take batches that were decoded before."""
        self._batches.close()
        self._batches = held

    def bar(self) -> None:
        """Let no picture enter from now on."""
        for reduction in self._reductions:
            reduction._top.keys.fill_(NONE)
            reduction._top.bars.fill_(torch.iinfo(torch.int64).max)


class Held(Batches):
    """All batches of a run, decoded."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = list(batches)
        self._next = iter(self.batches)

    def announce(self, rows: range) -> None:
        """All are there."""
        if rows.start == 0:
            self._next = iter(self.batches)

    def take(self) -> Batch:
        """The next one."""
        return next(self._next)

    def close(self) -> None:
        """Nothing to stop."""


if __name__ == "__main__":
    raise SystemExit(main())
