"""What an index costs over the bare forward, and how near it comes to its slower stage.

    python benchmarks/forward.py [--quick] [--json FILE] [--device DEVICE] [--model NAME …]

Retention `top`, K = 100, all layers, three poolings where there is a class token. In turns, the
bare model goes through decoded batches, and units of the same are indexed, everything but decoding
counted: capture, reduction, writing, receipts. First of new pictures, many of which enter the best
of some channel, then with bars that none can beat, as late in a large data set: of N pictures,
about K (1 + ln(N / K)) are ever among a channel's best K. Last, pictures are decoded, run, and both
together indexed. On a processor decoding and the model share the cores, and whoever does both
cannot be faster than 1 / (1 / one + 1 / other); a GPU leaves decoding a machine of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import torch
from record import Row, compared, show, write

from vitscope.indexer.batches import Batch, Batches
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.scenes import write_scenes
from vitscope.indexer.stage import stage
from vitscope.indexer.topk import NONE
from vitscope.indexer.unit import Worker
from vitscope.indexer.work import Work

MODELS = ("vit_tiny_patch16_224", "vit_small_patch32_224", "swin_tiny_patch4_window7_224")
PACKAGES = ("vitscope", "torch", "timm", "numpy", "numba", "tensorstore", "pillow")
BATCH = 32


def main() -> int:
    """Run every model, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="1,024 pictures instead of 4,096")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--model", action="append", help="another model than the three")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", 1_024 if args.quick else 4_096)
        for name in args.model or MODELS:
            rows += model_rows(name, Path(folder), args.device)
            show(rows[-3:])
    if args.json:
        quick = " --quick" if args.quick else ""
        more = "".join(f" --model {name}" for name in args.model or ())
        command = f"python benchmarks/forward.py{quick} --device {args.device}{more}"
        write(args.json, command, rows, PACKAGES)
    return 0


def model_rows(name: str, folder: Path, device: str) -> list[Row]:
    """New pictures, the same where none enters, and from files."""
    options = Options(
        model=name,
        data=folder / "scenes" / "images",
        out=folder / name,
        weights=Weights(random=True),
        top_k=100,
        batch_size=BATCH,
        device=device,
    )
    job = prepare(options)
    with working(job, folder) as worker:
        # Compiles, and makes what a process makes once.
        worker.rehearse(range(BATCH))
    decoding = sum(taken for _, taken in decoded(job, folder)) * 1e3
    held = Held(replace(batch, pixels=batch.pixels.clone()) for batch, _ in decoded(job, folder))
    rows = []
    forwards = [forward(job, held.batches)]
    for what, barred in (("new pictures", False), ("none of which enters", True)):
        with working(job, folder) as worker:
            worker.replace_batches(held)
            if barred:
                worker.bar()
            taken = indexing(worker)
        forwards.append(forward(job, held.batches))
        samples = {"bare forward": [sum(forwards[-2:]) / 2], "index": [taken]}
        count = f"{name}, {job.plan.rows:,} pictures decoded before, {what}"
        shares = worker.stages.shares()
        rows.append(compared(count, samples, "bare forward", stages=shares))
    del held.batches[:]
    with working(job, folder) as worker:
        taken = indexing(worker)
    samples = {"forward alone": [forwards[-1]], "decoding alone": [decoding], "index": [taken]}
    slower = max(decoding, forwards[-1])
    row = compared(
        f"{name}, {job.plan.rows:,} pictures from files",
        samples,
        "forward alone",
        images_per_second=job.plan.rows / taken * 1e3,
        of_the_slower_stage=slower / taken,
        of_both_on_the_same_cores=(decoding + forwards[-1]) / taken,
        stages=worker.stages.shares(),
    )
    return [*rows, row]


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
        for _ in range(0, job.plan.rows, BATCH):
            start = time.perf_counter()
            batch = batches.take()
            yield batch, time.perf_counter() - start


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


def indexing(worker: Worker) -> float:
    """Milliseconds of all units, to the last receipt."""
    start = time.perf_counter()
    worker.run_all(worker._job.plan.units)
    return (time.perf_counter() - start) * 1e3


class Measured(Worker):
    """A worker whose pictures can come decoded, and whose bars can be raised."""

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
