"""What an index costs over the bare forward of the same decoded batches.

    python benchmarks/forward.py [--quick] [--json FILE] [--device DEVICE]

Retention `top`, K = 100, all layers, three poolings where there is a class token. A unit is
indexed, everything but decoding counted (putting batches together, capture, reduction, writing,
receipt), and its batches go through the bare model, in turns. First of new pictures, of which many
enter the best of some channel; then of the same with bars that none can beat, as nearly none does
late in a large data set: of N pictures, about K (1 + ln(N / K)) are ever among a channel's best K.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from record import Row, compared, show, write

from vitscope.indexer.decode import Picture
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Unit
from vitscope.indexer.scenes import write_scenes
from vitscope.indexer.stage import stage
from vitscope.indexer.topk import NONE
from vitscope.indexer.unit import Worker
from vitscope.indexer.work import Work

MODELS = ("vit_tiny_patch16_224", "vit_small_patch32_224", "swin_tiny_patch4_window7_224")
PACKAGES = ("vitscope", "torch", "timm", "numpy", "numba", "tensorstore")
BATCH = 32


def main() -> int:
    """Run every model, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="1,024 pictures instead of 4,096")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", 1_024 if args.quick else 4_096)
        for name in MODELS:
            rows += model_rows(name, Path(folder), args.device)
            show(rows[-2:])
    if args.json:
        quick = " --quick" if args.quick else ""
        command = f"python benchmarks/forward.py{quick} --device {args.device}"
        write(args.json, command, rows, PACKAGES)
    return 0


def model_rows(name: str, folder: Path, device: str) -> list[Row]:
    """New pictures, and the same again."""
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
    options.out.mkdir()
    work = Work(options.out, job.plan)
    work.begin()
    stage(work, None)
    worker = Decoded(job, work)
    # Compiles, and makes what a process makes once.
    worker.rehearse(range(BATCH))
    worker.close()
    worker = Decoded(job, work)
    rows = []
    for what in ("new pictures", "none of which enters"):
        index, forward = [], []
        for unit in job.plan.units:
            worker.decode(unit)
            forward.append(worker.forward())
            index.append(worker.index(unit))
        samples = {"index": index, "bare forward": forward}
        count = f"{job.plan.rows:,} {what}"
        rows.append(compared(f"{name}, {count}", samples, "bare forward", total=_total(samples)))
        worker.bar()
    worker.close()
    return rows


def _total(samples: dict[str, list[float]]) -> float:
    return sum(samples["index"]) / sum(samples["bare forward"])


class Decoded(Worker):
    """A worker to which the pictures of a unit come decoded."""

    def __init__(self, job: Job, work: Work) -> None:
        super().__init__(job, work, lambda done: None)
        self._plain = job
        self._held: Sequence[tuple[int, list[Picture]]] = ()

    def decode(self, unit: Unit) -> None:
        """Decode the pictures of a unit."""
        self._held = list(super()._batches(range(unit.start, unit.stop)))

    def forward(self) -> float:
        """Milliseconds of the bare model over them."""
        model, device = self._plain.model, self._plain.device
        blank = torch.zeros(3, *model.input_size)
        batches = [
            torch.stack([blank if each.pixels is None else each.pixels for each in pictures])
            for _, pictures in self._held
        ]
        start = time.perf_counter()
        with torch.inference_mode():
            for pixels in batches:
                model.module(pixels.to(device, model.dtype))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3

    def index(self, unit: Unit) -> float:
        """Milliseconds of the whole unit."""
        start = time.perf_counter()
        self.run(unit)
        return (time.perf_counter() - start) * 1e3

    def bar(self) -> None:
        """Let no picture enter from now on, as late in a large data set."""
        for reduction in self._reductions:
            reduction._top.keys.fill_(NONE)
            reduction._top.bars.fill_(torch.iinfo(torch.int64).max)

    def _batches(self, rows: range) -> Iterator[tuple[int, list[Picture]]]:
        yield from self._held or super()._batches(rows)


if __name__ == "__main__":
    raise SystemExit(main())
