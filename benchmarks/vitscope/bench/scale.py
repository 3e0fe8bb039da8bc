"""Exact filtered rankings of an index of many rows, beside NumPy in memory.

    python -m vitscope.bench.scale [--quick] [--json FILE]

Random scores of 64 channels over as many rows as ImageNet has, 1,281,167 of 1,000 classes (a tenth
with --quick), stored as the indexer stores
them. A query selects, reads the column from the store and ranks, with nothing of the column in the
process's memory ("from the files") or with it in the store's cache. NumPy has the column in memory
and does no more than `argpartition` and sorting of the k that it finds, without a filter.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitscope.bench import arguments
from vitscope.bench.beds import GRID
from vitscope.bench.record import Row, compared, show, timed, write
from vitscope.server.queries.filters import ImageFilter
from vitscope.server.queries.images import Question, top_images
from vitscope.store import layout
from vitscope.store.arrays import Array, create_array, write_group
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord, Manifest, ModelRecord
from vitscope.store.publish import publish
from vitscope.store.rows import RowRecord, write_rows

PACKAGES = ("vitscope", "numpy", "tensorstore")
ROWS, CLASSES, UNIT = 1_281_167, 1_000, 4_096
K = 20
LAYER = LayerRecord("blocks.11.mlp", 0, 64, GRID, ("mean",), K, dense=False, dense_prefix=False)
_MODEL = ModelRecord("none", "random", "0" * 64, (224, 224), "float32", (), "pillow", "ignored")


def main() -> int:
    """Make the index, ask, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    count = ROWS // 10 if args.quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        generation = Path(folder) / layout.GENERATIONS / make(Path(folder), count)
        rows = [
            filter_row(generation, count, what, asked)
            for what, asked in (
                ("all images", ImageFilter()),
                ("one class", ImageFilter(labels=(_label(7),))),
                ("100 classes", ImageFilter(labels=tuple(map(_label, range(0, 1_000, 10))))),
                ("all classes but one", ImageFilter(labels=tuple(map(_label, range(1, 1_000))))),
                (
                    "100,000 rows",
                    ImageFilter(rows=tuple(range(0, count, count // 100_000)[:100_000])),
                ),
            )
        ]
    show(rows)
    if args.json:
        command = f"python -m vitscope.bench.scale{' --quick' if args.quick else ''}"
        write(args.json, command, rows, PACKAGES)
    return 0


def filter_row(path: Path, count: int, what: str, asked: ImageFilter) -> Row:
    """The best of each channel among the images that a filter lets through."""
    held = Generation(path)
    # More than the best ones that an index keeps, so that the column is read.
    question = Question(k=K + 1, asked=asked)
    columns = [held.scores(LAYER.name, "mean", channel) for channel in range(LAYER.channels)]
    top_images(held, LAYER.name, 0, question)
    sides: dict[str, list[float]] = {
        "argpartition, float32 in memory": [],
        "argpartition, float16 in memory": [],
        "query, column in the store's cache": [],
        "query, from the files": [],
    }
    best, halves_best, warm, cold = sides.values()
    for channel in range(0, LAYER.channels, 3):
        column = columns[channel]
        best.append(timed(argpartition, column.astype(np.float32)))
        halves_best.append(timed(argpartition, column))
        fresh = Generation(path)
        # Of another channel, whose scores lie in other chunks: what a generation reads once.
        top_images(fresh, LAYER.name, (channel + 8) % LAYER.channels, question)
        cold.append(timed(top_images, fresh, LAYER.name, channel, question))
        warm.append(timed(top_images, fresh, LAYER.name, channel, question))
    return compared(
        f"top {K + 1} of {what}, {count:,} rows",
        sides,
        "argpartition, float32 in memory",
        work={"moved": 2 * count},
        work_of={"argpartition, float32 in memory": {"moved": 4 * count}},
    )


def argpartition(column: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The best, best first."""
    found = np.argpartition(column, -K - 1)[-K - 1 :]
    return found[np.argsort(-column[found])]


def make(index: Path, count: int) -> str:
    """An index of row table and scores; gives the generation's name."""
    staged = index / layout.WORK / "staged"
    for group in ("", "layers"):
        write_group(staged / layout.ARRAYS / group)
    folder = layout.layer_path(staged, LAYER.name)
    write_group(folder)
    array = create_array(
        folder / layout.scores_name("mean"), layout.scores_spec(LAYER, count, UNIT)
    )
    generator = np.random.default_rng(0)
    for start in range(0, count, UNIT):
        shape = (LAYER.channels, min(UNIT, count - start))
        part = generator.standard_normal(shape, np.float32).astype(np.float16)
        array.write(part, slice(None), slice(start, start + shape[1]))
    _write_top(folder, array)
    write_rows(layout.rows_path(staged), lambda: records(count))
    manifest = Manifest(
        model=_MODEL,
        layers=(LAYER,),
        rows=count,
        valid_rows=count,
        rows_sha256="0" * 64,
        batch_size=1,
        unit_rows=UNIT,
        threads=0,
        saturated=0,
        thumbnail_size=0,
        recall_at_10={LAYER.name: 1.0},
        written_by="benchmarks",
    )
    return publish(index, staged, manifest)


def _write_top(folder: Path, scores: Array) -> None:
    rows = create_array(folder / layout.top_rows_name("mean"), layout.top_rows_spec(LAYER))
    tops = create_array(folder / layout.top_scores_name("mean"), layout.top_scores_spec(LAYER))
    columns = [scores.read(channel) for channel in range(LAYER.channels)]
    best = np.array([argpartition(column.astype(np.float32))[:K] for column in columns])
    rows.write(best)
    tops.write(np.take_along_axis(np.array(columns), best, 1))


def records(count: int) -> Iterator[list[RowRecord]]:
    """The row list, part by part."""
    for start in range(0, count, UNIT):
        yield [
            RowRecord(
                row=row,
                key=f"{_label(row % CLASSES)}/{row}.jpg",
                label=_label(row % CLASSES),
                valid=True,
                reason="",
                bytes=1,
                sha256="0" * 64,
                width=500,
                height=375,
                view=(0.0, 0.0, 500.0, 375.0),
            )
            for row in range(start, min(start + UNIT, count))
        ]


def _label(number: int) -> str:
    return f"class {number:03d}"


if __name__ == "__main__":
    raise SystemExit(main())
