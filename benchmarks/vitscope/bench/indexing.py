"""Indexing by family, by what is kept and by batch size, and what search structures cost.

    python -m vitscope.bench.indexing [--quick] [--device DEVICE] [--json FILE]

Pictures decoded before, in turns with the bare forward of the same batches: a model of every family
with the best of each channel kept; then, of one model, what is kept, and batch sizes. Search
structures are built over drawn vectors of clusters, beside an exact ranking of all in NumPy; their
recall at 10 is the build's own, against that ranking.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import numpy as np

from vitscope.bench import arguments, forward
from vitscope.bench.record import Row, compared, show, timed, write
from vitscope.indexer.job import prepare
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.scenes import write_scenes
from vitscope.store import approximate, neighbours
from vitscope.store.vectors import Floats, Halves, Ids, ImageVectors

PACKAGES = ("vitscope", "torch", "timm", "numpy", "numba", "tensorstore", "faiss-cpu")
MODEL = "vit_tiny_patch16_224"
KEPT: dict[str, tuple[str, ...]] = {
    "every activation of one layer": ("blocks.11.mlp",),
    "every activation of all layers": ("all",),
}
BATCHES = (8, 32, 128)
FAMILIES = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "convit_tiny",
    "pit_ti_224",
    "coat_tiny",
    "swin_tiny_patch4_window7_224",
    "twins_pcpvt_small",
    "vit_base_patch32_clip_224",
)
"""One model of each."""
WIDTH, CLUSTERS = 384, 256


def main() -> int:
    """Measure, print tables, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and vectors")
    parser.add_argument("--device", type=arguments.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    pictures, few, best, rounds = (128, 32, 20, 2) if args.quick else (128, 32, 100, 5)
    command = "python -m vitscope.bench.indexing" + " --quick" * args.quick
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        show([row])
        if args.json:
            write(args.json, f"{command} --device {args.device}", rows, PACKAGES)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_scenes(folder / "scenes", pictures)
        options = Options(
            model=MODEL,
            data=folder / "scenes" / "images",
            out=folder / "index",
            weights=Weights(random=True),
            top_k=best,
            batch_size=32,
            device=args.device,
        )
        for name in FAMILIES:
            asked = replace(options, model=name, limit=few)
            keep(row_of(f"{name}, best {best}", asked, folder, rounds))
        for what, kept in KEPT.items():
            asked = replace(options, retain_all=kept)
            keep(row_of(f"best {best}, {what}", asked, folder, rounds))
        for size in BATCHES:
            asked = replace(options, batch_size=size)
            keep(row_of(f"best {best}, batches of {size}", asked, folder, rounds))
        for count in (60_000,) if args.quick else (60_000, 240_000):
            keep(search_row(folder / "search.faiss", count))
            print(f"  recall at 10: {rows[-1]['recall_at_10']:.4f}, {rows[-1]['bytes']:,} bytes")
    return 0


def row_of(what: str, options: Options, folder: Path, rounds: int) -> Row:
    """Units of decoded pictures, beside the bare forward of the same batches."""
    job = prepare(options)
    size = job.plan.batch_size
    with forward.working(job, folder) as worker:
        worker.rehearse(range(size))
    held = forward.Held(forward.copied(batch) for batch, _ in forward.decoded(job, folder))
    bare, taken, written = [], [], 0
    for _ in range(rounds):
        bare.append(forward.forward(job, held.batches))
        with forward.working(job, folder) as worker:
            worker.replace_batches(held)
            spent, written = forward.indexing(worker, job.plan.units)
            taken.append(spent)
    images = job.plan.rows
    operations = forward.operations_of(job) * images
    sides = {"bare forward": bare, "index": taken}
    row = compared(
        what,
        sides,
        "bare forward",
        images=images,
        work={options.dtype: operations},
        work_of={"index": {options.dtype: operations, "written": written}},
    )
    row["images_per_second"] = {
        name: images / side["ms"] * 1e3 for name, side in row["sides"].items()
    }
    return row


class Held:
    """Vectors in memory, read as those of a store are."""

    def __init__(self, values: Halves) -> None:
        self._values = values
        self.shape = values.shape

    def read(self, *index: Any) -> Halves:
        """A part of them."""
        part: Halves = self._values[index]
        return part


def search_row(path: Path, count: int) -> Row:
    """Ten nearest of so many vectors."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CLUSTERS, WIDTH), np.float32)
    unit = centres[generator.integers(CLUSTERS, size=count)]
    unit += generator.standard_normal((count, WIDTH), np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    vectors = ImageVectors(Held(unit.astype(np.float16)), np.arange(count))
    recall: list[approximate.Recall] = []
    build = timed(lambda: recall.append(neighbours.build(path, vectors)))
    index = neighbours.load(path.read_bytes())
    queries = unit[generator.integers(count, size=200)]
    exact, ours = [], []
    for query in queries:
        wide = query.astype(np.float64)
        exact.append(timed(nearest_of, unit, query))
        ours.append(timed(neighbours.nearest, index, vectors, wide, 10))
    floor = "exact, in NumPy"
    return compared(
        f"10 nearest of {count:,} vectors of {WIDTH}",
        {floor: exact, "search structure": ours},
        floor,
        work_of={floor: {"moved": unit.nbytes}},
        bytes=path.stat().st_size,
        build_seconds=build / 1e3,
        recall_at_10=recall[0].nearest,
    )


def nearest_of(unit: Floats, query: Floats) -> Ids:
    """The ten nearest by a product with all."""
    near = unit @ query
    best: Ids = np.argpartition(near, -10)[-10:]
    return best[np.argsort(-near[best])]


if __name__ == "__main__":
    raise SystemExit(main())
