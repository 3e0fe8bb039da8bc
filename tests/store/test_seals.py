"""Seals: the checksums of all chunks, and a reader that wants exactly these."""

from __future__ import annotations

import io
import itertools
import math
import shutil
import tempfile
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.store.arrays import ArraySpec, create_array, shard_names, write_array
from vitscope.store.errors import DamagedIndexError, NotWrittenError
from vitscope.store.generation import open_generation
from vitscope.store.publish import publish
from vitscope.store.seals import Seal, pack_seals, seal_files, unpack_seals
from vitscope.store.verify import verify

SPEC = ArraySpec("int32", (5, 7), ("y", "x"), (4, 6), (2, 2))
VALUES = np.arange(35, dtype=np.int32).reshape(5, 7)


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, a bit at a time."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def expected(values: npt.NDArray[Any], spec: ArraySpec, place: tuple[int, ...]) -> list[int]:
    """The checksums of a shard's inner chunks, 0 for those outside, from the values alone."""
    padded = np.zeros([-(-n // s) * s for n, s in zip(spec.shape, spec.shard, strict=True)], "<i4")
    padded[tuple(map(slice, spec.shape))] = values
    found = []
    shards = zip(place, spec.shard, spec.chunk, strict=True)
    for corner in itertools.product(*(range(p * s, (p + 1) * s, c) for p, s, c in shards)):
        inside = all(low < n for low, n in zip(corner, spec.shape, strict=True))
        box = tuple(slice(low, low + c) for low, c in zip(corner, spec.chunk, strict=True))
        found.append(crc32c(padded[box].tobytes()) if inside else 0)
    return found


def written(folder: Path, spec: ArraySpec = SPEC) -> npt.NDArray[np.int32]:
    values = np.arange(1, 1 + math.prod(spec.shape), dtype=np.int32).reshape(spec.shape)
    write_array(folder / "a", values, spec)
    return values


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@st.composite
def specs(draw: st.DrawFn) -> ArraySpec:
    axes = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(axes))
    chunk = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    return ArraySpec("int32", shape, tuple("abc"[:axes]), shard, chunk)


def test_the_checksum_of_this_file_is_the_standard_one() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@settings(max_examples=25, deadline=None)
@given(specs())
def test_seals_are_the_checksums_of_the_values(spec: ArraySpec) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = written(folder, spec)
        seals = seal_files(folder, files(folder))
        assert seals.keys() - {"a/zarr.json"} == {f"a/{shard}" for shard in shard_names(spec)}
        for path, seal in seals.items():
            data = (folder / path).read_bytes()
            assert (seal.bytes, seal.blake3) == (len(data), blake3(data).hexdigest())
            if path == "a/zarr.json":
                assert seal.crc32c == ""
                continue
            *chunks, index = (
                int(seal.crc32c[i : i + 8], 16) for i in range(0, len(seal.crc32c), 8)
            )
            assert chunks == expected(values, spec, tuple(map(int, path.split("/")[2:])))
            entries = 16 * len(chunks)
            assert index == crc32c(data[-4 - entries : -4])
        assert all(Seal(**asdict(seal)) == seal for seal in seals.values())


def test_names_of_the_shards_that_a_region_touches() -> None:
    assert shard_names(SPEC) == ["c/0/0", "c/0/1", "c/1/0", "c/1/1"]
    assert shard_names(SPEC, slice(4, 5)) == ["c/1/0", "c/1/1"]
    assert shard_names(SPEC, slice(None), slice(5, 7)) == ["c/0/0", "c/0/1", "c/1/0", "c/1/1"]
    assert shard_names(SPEC, slice(0, 4), slice(0, 6)) == ["c/0/0"]
    assert shard_names(SPEC, slice(2, 2)) == []


def test_a_shard_that_is_not_complete_is_not_sealed(tmp_path: Path) -> None:
    create_array(tmp_path / "a", SPEC).write(VALUES[:2], slice(0, 2))
    with pytest.raises(NotWrittenError, match="File a/c/0/0 is not a complete shard"):
        seal_files(tmp_path, ["a/c/0/0"])


@pytest.mark.parametrize("data", [b"", b"abc", b"x" * 1000])
def test_what_is_no_shard_is_not_sealed_as_one(tmp_path: Path, data: bytes) -> None:
    written(tmp_path)
    (tmp_path / "a/c/0/0").write_bytes(data)
    with pytest.raises(NotWrittenError, match="not a complete shard"):
        seal_files(tmp_path, ["a/c/0/0"])


@pytest.mark.parametrize("name", ["a/c/0/9", "a/c/0", "a/c/0/0/0", "b/c/0", "faiss/none"])
def test_what_is_not_there_or_belongs_nowhere_is_not_sealed(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    if name.startswith("a/c/0/"):
        shutil.rmtree(tmp_path / "a/c/0")
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x" * 200)
    with pytest.raises(NotWrittenError, match=f"File {name} "):
        seal_files(tmp_path, [name])


def test_packed_seals_have_no_time_in_them(synthetic: Synthetic) -> None:
    for path in (synthetic.folder / "seals").iterdir():
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            assert [member.filename for member in members] == sorted(
                member.filename for member in members
            )
            assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}


def test_packed_seals_come_apart_by_array(tmp_path: Path) -> None:
    written(tmp_path)
    seals = seal_files(tmp_path, files(tmp_path))
    tables = unpack_seals(pack_seals(tmp_path, seals))
    assert list(tables) == ["a"]
    assert (tables["a"].dtype.name, tables["a"].shape) == ("uint32", (4, 7))
    rows = ["".join(f"{crc:08x}" for crc in row) for row in tables["a"].tolist()]
    assert rows == [seals[f"a/{name}"].crc32c for name in shard_names(SPEC)]
    del seals["a/c/1/0"]
    with pytest.raises(NotWrittenError, match="a/c/1/0 was never written"):
        pack_seals(tmp_path, seals)


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 100])
def test_what_is_no_seals_file_is_damage(data: bytes) -> None:
    with pytest.raises(DamagedIndexError):
        unpack_seals(data)


def test_seals_are_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], object))
    with pytest.raises(DamagedIndexError):
        unpack_seals(buffer.getvalue())


def staged_again(synthetic: Synthetic, index: Path) -> Path:
    staged = index / "building" / "staged"
    shutil.copytree(synthetic.folder, staged)
    (staged / "manifest.json").unlink()
    return staged


def test_files_sealed_by_their_writer_are_taken_at_its_word(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    staged = staged_again(synthetic, synthetic_copy)
    names = [name for name in files(staged) if "scores_mean/c/" in name]
    given = seal_files(staged, names)
    name = publish(synthetic_copy, staged, synthetic.manifest, given)
    assert name[7:] == synthetic.generation[7:]
    staged = staged_again(synthetic, synthetic_copy)
    # A digest that is not true shows that nobody read the file.
    lie = {names[0]: replace(given[names[0]], blake3="0" * 64)}
    publish(synthetic_copy, staged, synthetic.manifest, given | lie)
    assert open_generation(synthetic_copy).manifest.files[names[0]].blake3 == "0" * 64
    assert verify(synthetic_copy, deep=True).problems == (
        f"{names[0]} has other bytes than were published.",
    )


def test_a_file_that_changed_its_length_since_it_was_sealed_is_not_published(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    staged = staged_again(synthetic, synthetic_copy)
    name = next(name for name in files(staged) if "scores_mean/c/" in name)
    given = seal_files(staged, [name])
    (staged / name).write_bytes(b"short")
    with pytest.raises(NotWrittenError, match=name):
        publish(synthetic_copy, staged, synthetic.manifest, given)
    assert open_generation(synthetic_copy).name == synthetic.generation


def test_an_array_without_one_of_its_shards_is_not_published(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    staged = staged_again(synthetic, synthetic_copy)
    name = "arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/1"
    (staged / name).unlink()
    with pytest.raises(NotWrittenError, match=name):
        publish(synthetic_copy, staged, synthetic.manifest)
    assert open_generation(synthetic_copy).name == synthetic.generation
