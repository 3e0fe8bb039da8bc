"""Chunk shapes: the ones of `layout` (marked *) beside others, written and read in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitscope.bench.beds import (
    FLOOR,
    Half,
    dense_writing,
    halves,
    layer,
    mapped,
    raw,
    sealed,
    write_parts,
)
from vitscope.bench.record import Prepare, Row, compared, rates, timed
from vitscope.store import layout
from vitscope.store.arrays import Array, ArraySpec, create_array

Question = tuple[Any, ...]


@dataclass(frozen=True)
class Contest:
    """Shapes of one array, how it is written, and what is asked of it."""

    name: str
    values: Half
    """As a plain file has them."""
    specs: Mapping[str, ArraySpec]
    store: Callable[[Array, ArraySpec], Callable[[], None]]
    """Makes ready to write, which is not timed."""
    questions: Mapping[str, tuple[Half, Sequence[Question]]]
    """By name: the values as a plain file has them, and indexes."""


def activations(quick: bool) -> Contest:
    """All tokens of a layer: maps of a channel, and all of an image."""
    record, images = layer(1536), 256 if quick else 512
    ready = halves(images, record.tokens.tokens, record.channels)
    part, batches = torch.from_numpy(ready), range(0, images, 32)
    base = layout.activations_spec(record, images, images)
    tall = [(1, 64), (2, 64), (4, 64), (8, 64), (4, 32), (8, 32), (2, 32)]
    tall += [(8, 16), (16, 16), (64, 8)]
    specs = [_dense(base, 64, shape) for shape in (*tall, (1, record.channels))]
    specs += [_dense(base, rows, (4, 64)) for rows in (32, 128, 256)]
    specs += [_dense(base, 256, (8, 64)), replace(_dense(base, 64, (4, 64)), order=())]

    def store(array: Array, spec: ArraySpec) -> Callable[[], None]:
        return dense_writing(record, array, spec.shard[0], [part[i : i + 32] for i in batches])

    generator = np.random.default_rng(0)
    some = [
        (int(generator.integers(record.channels)), generator.choice(images, 50, replace=False))
        for _ in range(_count(quick))
    ]
    by_image = np.ascontiguousarray(ready.transpose(0, 2, 1))
    questions: dict[str, tuple[Half, Sequence[Question]]] = {
        "50 maps of a channel": (by_image, [(rows, channel) for channel, rows in some]),
        "all channels of an image": (by_image, [(int(rows[0]),) for _, rows in some]),
    }
    return Contest("activations", by_image, _named(specs, base, _label), store, questions)


def _dense(base: ArraySpec, rows: int, chunk: tuple[int, int]) -> ArraySpec:
    tokens = base.shape[2]
    return replace(base, shard=(rows, base.shard[1], tokens), chunk=(*chunk, tokens))


def _label(spec: ArraySpec) -> str:
    order = ", tokens before channels" if spec.order else ", channels before tokens"
    return f"{spec.chunk[:2]} in {spec.shard[0]} rows{order}"


def scores(quick: bool) -> Contest:
    """Pooled scores by channel: one channel over all rows."""
    record, rows = layer(768), 16_384 if quick else 131_072
    values = halves(record.channels, rows)
    specs = []
    for unit in (1024, 4096):
        base = layout.scores_spec(record, rows, unit)
        specs += [replace(base, chunk=(count, unit)) for count in (1, 2, 4, 8, 16, 32)]

    def store(array: Array, spec: ArraySpec) -> Callable[[], None]:
        units = [slice(i, i + spec.shard[1]) for i in range(0, rows, spec.shard[1])]
        return lambda: write_parts(array, values, [(slice(None), unit) for unit in units])

    asked = [(int(c),) for c in np.random.default_rng(0).permutation(768)[: _count(quick)]]
    chosen = [layout.scores_spec(record, rows, unit) for unit in (1024, 4096)]
    named = _named(
        specs, chosen, lambda spec: f"{spec.chunk[0]} channels, units of {spec.chunk[1]}"
    )
    return Contest("scores", values, named, store, {f"a channel, {rows:,} rows": (values, asked)})


def row_scores(quick: bool) -> Contest:
    """Pooled scores by image: all channels of one."""
    record, rows, unit = layer(3072), 4096 if quick else 16_384, 1024
    values = halves(rows, record.channels)
    base = layout.row_scores_spec(record, rows, unit)
    specs = [replace(base, chunk=(count, record.channels)) for count in (1, 2, 4, 8, 32)]

    def store(array: Array, _: ArraySpec) -> Callable[[], None]:
        units = [(slice(i, i + unit),) for i in range(0, rows, unit)]
        return lambda: write_parts(array, values, units)

    asked = [(int(row),) for row in np.random.default_rng(0).permutation(rows)[: _count(quick)]]
    named = _named(specs, base, lambda spec: f"{spec.chunk[0]} rows")
    return Contest(
        "row_scores", values, named, store, {"all channels of an image": (values, asked)}
    )


def top_maps(quick: bool) -> Contest:
    """Maps of the top images of every channel."""
    record = layer(1536)
    base = layout.top_maps_spec(record)
    values = halves(*base.shape)
    rest = base.chunk[2:]
    specs = [replace(base, chunk=(1, count, *rest)) for count in (1, 8, 32)]
    specs.append(replace(base, chunk=(4, 32, *rest)))
    asked = [(int(c),) for c in np.random.default_rng(0).permutation(1536)[: _count(quick)]]
    first = [(channel, slice(0, 8)) for (channel,) in asked]
    named = _named(specs, base, lambda spec: f"{spec.chunk[:2]} maps")
    questions: dict[str, tuple[Half, Sequence[Question]]] = {
        "32 maps of a channel": (values, asked),
        "first 8 maps": (values, first),
    }
    return Contest(
        "top_maps", values, named, lambda array, _: lambda: array.write(values), questions
    )


def _count(quick: bool) -> int:
    return 10 if quick else 40


def _named(
    specs: Sequence[ArraySpec],
    chosen: ArraySpec | Sequence[ArraySpec],
    label: Callable[[ArraySpec], str],
) -> dict[str, ArraySpec]:
    ours = [chosen] if isinstance(chosen, ArraySpec) else chosen
    return {label(spec) + " *" * (spec in ours): spec for spec in specs}


def _run(contest: Contest, folder: Path, quick: bool) -> Iterator[Row]:
    sides: dict[str, Prepare] = {"raw file": lambda path: lambda: raw(path, contest.values)}
    for name, spec in contest.specs.items():

        def prepare(path: Path, spec: ArraySpec = spec) -> Callable[[], None]:
            return contest.store(create_array(path, spec), spec)

        sides[name] = prepare
    size = contest.values.nbytes
    what = f"{contest.name}: write {size >> 20} MiB"
    yield rates(what, folder, 5, sides, size)
    places = {name: folder / str(place + 1) for place, name in enumerate(contest.specs)}
    for name, (values, asked) in contest.questions.items():
        yield _reading(f"{contest.name}: {name}", folder, places, values, asked)


def _reading(
    what: str, folder: Path, places: Mapping[str, Path], values: Half, asked: Sequence[Question]
) -> Row:
    floor = mapped(folder / "floor.npy", values.shape)
    floor[...] = values
    samples: dict[str, list[float]] = {name: [] for name in (FLOOR, *places)}
    openers = {name: sealed(path) for name, path in places.items()}
    for question in asked:
        samples[FLOOR].append(timed(lambda: np.array(floor[question])))  # noqa: B023
        for name, opener in openers.items():
            samples[name].append(timed(opener().read, *question))
    return compared(what, samples, FLOOR, work={"moved": np.array(floor[asked[0]]).nbytes})


def _measurement(contest: Callable[[bool], Contest]) -> Callable[[Path, bool], Iterator[Row]]:
    return lambda folder, quick: _run(contest(quick), folder, quick)


MEASUREMENTS = {
    f"{contest.__name__}-shapes": _measurement(contest)
    for contest in (activations, scores, row_scores, top_maps)
}
