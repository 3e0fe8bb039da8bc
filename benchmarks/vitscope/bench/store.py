"""The store against zarr-python and memory-mapped files: writing, and each direction of reading.

    python -m vitscope.bench.store [--quick] [--only NAME] [--folder DIR] [--json FILE]

All sides of a row take turns in one run, and give the same values. Needs 5 GB under DIR.
Reads are from the page cache unless a row says otherwise: `first` with nothing in the process's
own caches, `again` the same question once more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from vitscope.bench import arguments, shapes
from vitscope.bench.beds import (
    FLOOR,
    GUARDED,
    OURS,
    ZARR,
    Bed,
    Half,
    dense_writing,
    forget,
    halves,
    layer,
    mapped,
    published,
    raw,
    scratch,
    write_parts,
)
from vitscope.bench.record import Prepare, Row, compared, rates, show, timed, write
from vitscope.store import layout
from vitscope.store.arrays import Array, create_array
from vitscope.store.ranking import top_rows

PACKAGES = ("vitscope", "tensorstore", "zarr", "numpy", "torch")
IMAGENET = 1_281_167
Reader = Callable[..., Any]


def main() -> int:
    """Run what was asked for, print tables, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller arrays, fewer rounds")
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, measure in MEASUREMENTS.items():
            if args.only in (None, name):
                with scratch(Path(folder), name) as mine:
                    found = list(measure(mine, args.quick))
                show(found)
                rows += found
    if args.json:
        command = "python -m vitscope.bench.store" + " --quick" * args.quick
        command += f" --only {args.only}" if args.only else ""
        write(args.json, command, rows, PACKAGES)
    return 0


def writing(folder: Path, quick: bool) -> Iterator[Row]:
    """Retention `all`, from activations as a model gives them, against one raw file."""
    record, images, batch = layer(1536), 128 if quick else 1024, 32
    floats = torch.randn(batch, record.tokens.tokens, record.channels)
    spec = layout.activations_spec(record, images, images)
    ready = halves(images, record.tokens.tokens, record.channels)
    exchanged = np.ascontiguousarray(ready.transpose(0, 2, 1))
    parts = [(slice(i, i + spec.shard[0]),) for i in range(0, images, spec.shard[0])]

    def dense(array: Array, part: torch.Tensor) -> Callable[[], None]:
        return dense_writing(record, array, spec.shard[0], [part] * (images // batch))

    def shards(path: Path) -> Callable[[], None]:
        array = create_array(path, spec)
        return lambda: write_parts(array, ready.transpose(0, 2, 1), parts)

    def plain(path: Path) -> Callable[[], None]:
        create_array(path, spec)
        array: Any = zarr.open(str(path), mode="r+")

        def write_once() -> None:
            for part in parts:
                array[part] = ready[part].transpose(0, 2, 1)

        return write_once

    def turned(path: Path) -> Callable[[], None]:
        return lambda: raw(path, np.ascontiguousarray(ready.transpose(0, 2, 1)))

    sides: dict[str, Prepare] = {
        "raw file": lambda path: lambda: raw(path, exchanged),
        "raw file, axes exchanged first": turned,
        "DenseWriter, float32 in": lambda path: dense(create_array(path, spec), floats),
        "DenseWriter, float16 in": lambda path: dense(create_array(path, spec), floats.half()),
        "of that: gathering float32": lambda path: dense(_Nowhere(), floats),
        "of that: shards, one by one": shards,
        "zarr-python, no fsync": plain,
    }
    what = f"write {exchanged.nbytes >> 20} MiB, ViT-S, {images} images"
    unwritten = ("of that: gathering float32", "zarr-python, no fsync")
    yield rates(what, folder, 5 if quick else 11, sides, exchanged.nbytes, unwritten)


class _Nowhere(Array):
    """Takes what is written, and forgets it."""

    def __init__(self) -> None: ...

    def write(self, values: Any, *index: Any) -> None:
        """Nothing."""


def maps(folder: Path, quick: bool) -> Iterator[Row]:
    """Fifty maps of one channel at random rows."""
    record, images = layer(1536), 256 if quick else 2048
    spec = layout.activations_spec(record, images, images)
    part = halves(64, record.channels, record.tokens.tokens)
    mapped(folder / "floor.npy", (record.channels, images, record.tokens.tokens))

    def fill(array: Array) -> None:
        for start in range(0, images, 64):
            mine = np.roll(part, start, axis=0)
            array.write(mine, slice(start, start + 64))
            floor = np.load(folder / "floor.npy", mmap_mode="r+")
            floor[:, start : start + 64] = mine.transpose(1, 0, 2)

    bed = published(folder / "index", {record: {layout.ACTIVATIONS: (spec, fill)}})
    generator = np.random.default_rng(1)
    asked = [
        (generator.choice(images, 50, replace=False), int(generator.integers(record.channels)))
        for _ in range(20 if quick else 200)
    ]
    yield from reads(
        f"50 maps of a channel, ViT-S, {images} images",
        bed,
        layout.ACTIVATIONS,
        asked,
        (folder / "floor.npy", lambda floor, rows, channel: floor[channel, rows]),
    )


def scores(folder: Path, quick: bool) -> Iterator[Row]:
    """One channel's scores over as many rows as ImageNet, and the top of them."""
    rows, record = (65_536 if quick else IMAGENET), layer(64 if quick else 256)
    values = halves(record.channels, rows)
    mapped(folder / "floor.npy", values.shape)[...] = values
    generator = np.random.default_rng(2)
    for unit in (1024, 4096):
        spec = layout.scores_spec(record, rows, unit)

        def fill(array: Array, unit: int = unit) -> None:
            for start in range(0, rows, 16 * unit):
                mine = slice(start, min(start + 16 * unit, rows))
                array.write(values[:, mine], slice(None), mine)

        name = layout.scores_name("mean")
        bed = published(folder / f"index{unit}", {record: {name: (spec, fill)}})
        asked = [(channel,) for channel in generator.permutation(record.channels)]
        what = f"a channel's scores on {rows:,} images, units of {unit:,}"
        asked = asked[: 5 if quick else 25]
        yield from reads(what, bed, name, asked, (folder / "floor.npy", getitem))
        yield top_row(f"top 100, {what}", bed, name, asked, values)


def top_row(what: str, bed: Bed, name: str, asked: Sequence[tuple[Any]], values: Half) -> Row:
    """The exact top 100 by way of the store, against one partition in memory."""
    floor = "argpartition in memory"
    samples: dict[str, list[float]] = {
        key: [] for key in (floor, "ranking in memory", f"{GUARDED} and ranking")
    }
    samples[f"{GUARDED} and ranking, again"] = []
    for (channel,) in asked:
        column = values[channel].copy()
        _, guarded, _ = bed.fresh(name)
        samples[floor].append(timed(np.argpartition, column, len(column) - 100))
        samples["ranking in memory"].append(timed(top_rows, column, 100))
        for key in (f"{GUARDED} and ranking", f"{GUARDED} and ranking, again"):
            samples[key].append(timed(lambda: top_rows(guarded(channel), 100)))  # noqa: B023
    return compared(what, samples, floor, work={"moved": values.shape[1] * values.itemsize})


def image(folder: Path, quick: bool) -> Iterator[Row]:
    """All channels of one image in twelve layers."""
    rows, unit, depth = (1024, 1024, 12) if quick else (4096, 1024, 12)
    name = layout.row_scores_name("mean")
    values = halves(rows, depth, 3072)
    mapped(folder / "floor.npy", values.shape)[...] = values
    layers = {}
    for number in range(depth):

        def fill(array: Array, number: int = number) -> None:
            array.write(values[:, number])

        record = layer(3072, number)
        layers[record] = {name: (layout.row_scores_spec(record, rows, unit), fill)}
    bed = published(folder / "index", layers)
    generator = np.random.default_rng(3)
    asked = [(int(row),) for row in generator.integers(1, rows, 20 if quick else 200)]
    what = f"all 3,072 channels of an image in {depth} layers"
    yield from reads(
        what,
        bed,
        name,
        asked,
        (folder / "floor.npy", getitem),
        depth=depth,
    )


def reads(
    what: str,
    bed: Bed,
    array: str,
    asked: Sequence[tuple[Any, ...]],
    floor: tuple[Path, Reader],
    depth: int = 1,
) -> Iterator[Row]:
    """Rows of one question put to every side: first, again, and with the page cache dropped."""
    for state, questions in (("first and again", asked), ("page cache dropped", asked[:15])):
        samples: dict[str, list[float]] = {}
        size = 0
        for number, question in enumerate(questions):
            sides = _sides(bed, array, floor, depth)
            order = list(sides)
            for name in order[number % 4 :] + order[: number % 4]:
                if state == "page cache dropped":
                    bed.forget()
                    forget(floor[0])
                answer = []
                for label in (name, f"{name}, again"):
                    start = time.perf_counter()
                    answer.append(sides[name](*question))
                    samples.setdefault(label, []).append((time.perf_counter() - start) * 1e3)
                    if state == "page cache dropped":
                        break
                if number == 0:
                    wanted = sides[FLOOR](*question)
                    _check(answer[-1], wanted)
                    size = wanted.nbytes
        work = {"moved" if state == "first and again" else "read": size}
        yield compared(f"{what}, {state}", dict(sorted(samples.items())), FLOOR, work=work)


def _sides(bed: Bed, array: str, floor: tuple[Path, Reader], depth: int) -> Mapping[str, Reader]:
    opened = [bed.fresh(array, number) for number in range(depth)]

    def each(side: int) -> Reader:
        readers: list[Reader] = [
            entry[0].read if side == 0 else entry[1] if side == 1 else _zarr(entry[2])
            for entry in opened
        ]
        return lambda *index: [read(*index) for read in readers]

    sides = {OURS: each(0), GUARDED: each(1), ZARR: each(2)}
    # Opened anew: pages that are mapped are not dropped.
    values = np.load(floor[0], mmap_mode="r")
    return sides | {FLOOR: lambda *index: np.array(floor[1](values, *index))}


def _zarr(array: Any) -> Reader:
    return lambda *index: array.oindex[index]


def _check(answer: Any, floor: Any) -> None:
    if not np.array_equal(np.squeeze(answer), np.squeeze(floor), equal_nan=True):
        raise RuntimeError("The sides do not give the same values.")


MEASUREMENTS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "writing": writing,
    "maps": maps,
    "scores": scores,
    "image": image,
    **shapes.MEASUREMENTS,
}


if __name__ == "__main__":
    raise SystemExit(main())
