"""Whatever happens to the published files: no wrong answer, and `verify` names the files.

`VITSCOPE_DAMAGES=FLIPS,OTHERS` sets how many single bits are turned and how many files are cut,
deleted, exchanged or replaced by those of another index of the same shape.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from blake3 import blake3
from synthetic import Synthetic, build

from vitscope.store import neighbours
from vitscope.store.arrays import open_array
from vitscope.store.errors import DamagedIndexError, StoreError
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.shards import CRC_BYTES, ShardGrid
from vitscope.store.verify import verify

FLIPS, OTHERS = map(int, os.environ.get("VITSCOPE_DAMAGES", "150,60").split(","))
ROWS = 40
SOME = np.array([39, 0, 7, 33])
NUMBERS = itertools.count()

Contents = Mapping[str, bytes | None]
"""By path below the index: what a damage leaves there; None for nothing."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return build(tmp_path_factory.mktemp("sound") / "zoo", rows=ROWS, complete=True)


@pytest.fixture(scope="module")
def stale(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """Of other activations, pictures and boxes, but of the same shape."""
    return build(tmp_path_factory.mktemp("stale") / "zoo", rows=ROWS, complete=True, seed=1)


def contents(index: Synthetic) -> dict[str, bytes]:
    """All published files, the generation's below `generation/`."""
    found = {
        f"generation/{path.relative_to(index.folder).as_posix()}": path.read_bytes()
        for path in sorted(index.folder.rglob("*"))
        if path.is_file()
    }
    return found | {"CURRENT": (index.path / "CURRENT").read_bytes()}


def kind(name: str) -> str:
    if "/c/" in name:
        return "shard"
    file = name.rpartition("/")[2]
    return file.rpartition(".")[2] if file.endswith((".npz", ".faiss")) else file


class Patient:
    """A copy of an index to damage and to mend; it moves, since caches go by the path."""

    def __init__(self, index: Synthetic, folder: Path) -> None:
        self._name = index.generation
        self._whole = contents(index)
        self._folder = folder
        self.path = Path(shutil.copytree(index.path, folder / "first"))

    def move(self) -> None:
        self.path = self.path.rename(self._folder / f"{next(NUMBERS)}")

    def suffer(self, damage: Contents) -> None:
        for name, data in damage.items():
            if data is None:
                self.file(name).unlink()
            else:
                self.file(name).write_bytes(data)

    def mend(self, damage: Contents) -> None:
        self.suffer({name: self._whole[name] for name in damage})

    def file(self, name: str) -> Path:
        return self.path / name.replace("generation/", f"generations/{self._name}/", 1)


Question = tuple[str, Callable[[], Any]]


def questions(generation: Generation) -> Iterator[Question]:
    """Every kind of question, so many that together they need every chunk of every array."""
    table = generation.rows
    yield "rows", lambda: (len(table), table.valid, table.labels, table.label_names)
    for row in range(0, ROWS, 3):
        yield f"row {row}", partial(table.record, row)
        yield f"picture {row}", partial(generation.thumbnail, row)
    for layer in generation.manifest.layers:
        for pooling in layer.poolings:
            yield from score_questions(generation, layer, pooling)
        name = layer.name
        for channel in range(0, layer.channels, 4):
            yield f"{name} {channel}", partial(generation.correlation, name, channel)
        for row in (1, 38):
            yield f"{name} near {row}", partial(nearest, generation, name, row)
        if layer.dense:
            for row in range(ROWS):
                yield f"{name} all {row}", partial(generation.activations, name, row, 2)
            yield f"{name} some", partial(generation.activations, name, SOME, slice(1, 4))
            yield f"{name} near a patch", partial(nearest_patches, generation, name, 5)


def score_questions(
    generation: Generation, layer: LayerRecord, pooling: Pooling
) -> Iterator[Question]:
    of = (layer.name, pooling)
    yield f"{of} statistics", partial(statistics, generation, *of)
    for row in range(1, ROWS, 8):
        yield f"{of} image {row}", partial(generation.image_scores, *of, row)
    for channel in range(0, layer.channels, 4):
        yield f"{of} {channel} scores", partial(generation.scores, *of, channel)
        yield f"{of} {channel} top", partial(generation.top, *of, channel)
    for channel in range(layer.channels):
        yield f"{of} {channel} maps", partial(generation.top_maps, *of, channel, slice(None))


def nearest(generation: Generation, layer: str, row: int) -> Any:
    query = generation.image_scores(layer, "mean", row).astype(np.float64)
    index, vectors = generation.neighbours(layer), generation.image_vectors(layer)
    return neighbours.nearest(index, vectors, query, 5, range(row, row + 1))


def nearest_patches(generation: Generation, layer: str, patch: int) -> Any:
    index, vectors = generation.patch_neighbours(layer), generation.patch_vectors(layer)
    query = vectors.read(np.array([patch]))[0].astype(np.float64)
    assert index is not None
    return neighbours.nearest(index, vectors, query, 5, range(patch, patch + 1))


def statistics(generation: Generation, layer: str, pooling: Pooling) -> Any:
    found = generation.statistics(layer, pooling)
    return tuple(getattr(found, field.name) for field in dataclasses.fields(found))


def plain(answer: Any) -> Any:
    """What can be compared, to the bit."""
    if isinstance(answer, np.ndarray):
        return answer.dtype.str, answer.shape, answer.tobytes()
    return tuple(map(plain, answer)) if isinstance(answer, tuple) else answer


def answers(generation: Generation) -> dict[str, Any]:
    return {question: plain(ask()) for question, ask in questions(generation)}


def refusals(generation: Generation, truth: Mapping[str, Any]) -> int:
    """How many questions are refused; all others are answered rightly."""
    refused = 0
    for question, ask in questions(generation):
        try:
            assert plain(ask()) == truth[question], question
        except StoreError:
            refused += 1
    return refused


def named(index: Path) -> set[str]:
    """The files that `verify` names, each at the start of a sentence of its own."""
    try:
        problems = verify(index, deep=True).problems
    except StoreError as error:
        problems = (str(error),)
    assert len({problem.split()[0] for problem in problems}) == len(problems)
    return {problem.split()[0] for problem in problems}


def flip(chance: random.Random, whole: Mapping[str, bytes], name: str) -> Contents:
    data = bytearray(whole[name])
    bit = chance.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    return {name: bytes(data)}


def elements(whole: Mapping[str, bytes], name: str, shard: bytes | None) -> bytes:
    """What a reader needs of a shard: not its index, nor the checksums beside the sealed ones."""
    grid = ShardGrid.from_metadata(whole[f"{name.partition('/c/')[0]}/zarr.json"])
    end = len(whole[name]) - grid.index_bytes - CRC_BYTES
    chunks = (shard or b"")[:end]
    return b"".join(chunks[i : i + grid.step - CRC_BYTES] for i in range(0, end, grid.step))


def cut(chance: random.Random, whole: Mapping[str, bytes], name: str) -> Contents:
    return {name: whole[name][: chance.randrange(len(whole[name]))]}


def delete(chance: random.Random, whole: Mapping[str, bytes], name: str) -> Contents:
    return {name: None}


def exchange(chance: random.Random, whole: Mapping[str, bytes], name: str) -> Contents:
    """With another of its kind, of the same length where there is one."""
    others = [other for other in whole if kind(other) == kind(name) and whole[other] != whole[name]]
    alike = [other for other in others if len(whole[other]) == len(whole[name])]
    if not others:
        return {}
    other = chance.choice(alike or others)
    return {name: whole[other], other: whole[name]}


@pytest.fixture
def seen_by_faiss(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of all that FAISS is given to read."""
    neighbours.prepare(threads=1)
    seen: list[str] = []
    deserialize = faiss.deserialize_index

    def read(data: Any) -> Any:
        seen.append(blake3(bytes(data)).hexdigest())
        return deserialize(data)

    monkeypatch.setattr(faiss, "deserialize_index", read)
    return seen


def damages(
    whole: Mapping[str, bytes], other: Mapping[str, bytes]
) -> Iterator[tuple[str, Contents]]:
    """Kind of damage and what it leaves: half of them to shards, half to all other kinds alike."""
    chance = random.Random(11)
    by_kind: dict[str, list[str]] = {}
    for name in whole:
        by_kind.setdefault(kind(name), []).append(name)
    assert set(by_kind) == {"CURRENT", "manifest.json", "zarr.json", "npz", "faiss", "shard"}
    few = [names for what, names in by_kind.items() if what != "shard"]

    def replace(chance: random.Random, whole: Mapping[str, bytes], name: str) -> Contents:
        return {} if other[name] == whole[name] else {name: other[name]}

    for make, count in (
        (flip, FLIPS),
        *((make, OTHERS // 4) for make in (cut, delete, exchange, replace)),
    ):
        done = 0
        while done < count:
            names = by_kind["shard"] if done % 2 else chance.choice(few)
            damage = make(chance, whole, chance.choice(names))
            if damage:
                done += 1
                yield make.__name__, damage


def test_no_damage_gives_a_wrong_answer(
    sound: Synthetic, stale: Synthetic, seen_by_faiss: list[str], tmp_path: Path
) -> None:
    whole = contents(sound)
    truth = answers(open_generation(sound.path))
    arrays = {name.rpartition("/c/")[0] for name in whole if "/c/" in name}
    group_metadata = {name for name in whole if name.endswith("zarr.json")}
    group_metadata -= {f"{array}/zarr.json" for array in arrays}
    published = {record.blake3 for record in open_generation(sound.path).manifest.files.values()}
    patient = Patient(sound, tmp_path)
    count: Counter[str] = Counter()
    for make, damage in damages(whole, contents(stale)):
        patient.move()
        patient.suffer(damage)
        assert named(patient.path) == {name.removeprefix("generation/") for name in damage}
        try:
            refused = refusals(open_generation(patient.path), truth)
        except StoreError:
            refused = len(truth)
        # All bytes are needed for some answer, but for the metadata of groups and shards' indexes.
        needless = all(
            name in group_metadata
            or (
                kind(name) == "shard"
                and elements(whole, name, data) == elements(whole, name, whole[name])
            )
            for name, data in damage.items()
        )
        assert refused or needless, (make, list(damage))
        count[make] += 1
        count["refused" if refused else "not refused"] += 1
        patient.mend(damage)
    patient.move()
    assert refusals(open_generation(patient.path), truth) == 0
    assert verify(patient.path, deep=True).problems == ()
    assert set(seen_by_faiss) <= published
    assert count["flip"] == FLIPS
    print(dict(count))


def test_files_that_change_under_an_open_generation(
    sound: Synthetic, stale: Synthetic, tmp_path: Path
) -> None:
    """Opened before the damage, but asked only after it."""
    truth = answers(open_generation(sound.path))
    whole, other = contents(sound), contents(stale)
    patient = Patient(sound, tmp_path)
    changed = [name for name in whole if kind(name) in ("shard", "npz", "faiss")]
    for name in changed[:: max(1, len(changed) // 25)]:
        for data in (other[name], None):
            if data == whole[name]:
                continue
            patient.move()
            generation = open_generation(patient.path)
            patient.suffer({name: data})
            assert refusals(generation, truth) > 0, name
            patient.mend({name: data})


def test_a_sound_shard_of_another_index_is_refused_by_its_seal_alone(
    sound: Synthetic, stale: Synthetic, tmp_path: Path
) -> None:
    """Nothing else could: its checksums are right, and without the seals it is read."""
    patient = Patient(sound, tmp_path)
    name = "generation/arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/0"
    generation = open_generation(patient.path)
    patient.suffer({name: contents(stale)[name]})
    array = open_array(patient.file(name).parents[2])
    assert np.array_equal(
        array.read(slice(None), slice(0, 32)),
        stale.scores("blocks.0.mlp", "mean")[:32].T,
        equal_nan=True,
    )
    with pytest.raises(DamagedIndexError, match=r"^Array scores_mean is not what was published"):
        generation.scores("blocks.0.mlp", "mean", 3)
