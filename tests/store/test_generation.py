"""Opening an index: what is published is read, and everything else is refused by name."""

from __future__ import annotations

import fcntl
import gc
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from synthetic import Synthetic

from vitscope.store.errors import (
    DamagedIndexError,
    NotAnIndexError,
    NotKeptError,
    StoreError,
    UnsupportedFormatError,
)
from vitscope.store.generation import Generation, current_name, generation_name, open_generation
from vitscope.store.lock import BusyIndexError
from vitscope.store.remote import RemoteError
from vitscope.store.vectors import normalise


def test_answers_are_the_dense_truth(synthetic: Synthetic) -> None:
    generation = open_generation(synthetic.path)
    assert generation.name == synthetic.generation
    assert generation.manifest.layers == synthetic.manifest.layers
    for name, layer in synthetic.layers.items():
        maps = synthetic.maps(name)
        for pooling in layer.poolings:
            scores = synthetic.scores(name, pooling)
            for channel in range(layer.channels):
                column = generation.scores(name, pooling, channel)
                assert np.array_equal(column, scores[:, channel], equal_nan=True)
                best = synthetic.ranking(name, pooling, channel)[: layer.top_k]
                rows, values = generation.top(name, pooling, channel)
                assert list(zip(rows.tolist(), values.tolist(), strict=True)) == best
                ranks = np.array([0, len(best) - 1])
                kept = generation.top_maps(name, pooling, channel, ranks)
                assert np.array_equal(kept, maps[rows[ranks], channel])


def test_several_threads_read_the_same(synthetic: Synthetic) -> None:
    generation = open_generation(synthetic.path)
    layer = "stages.1.blocks.0.mlp"
    truth = synthetic.scores(layer, "max")
    query = normalise(synthetic.scores(layer, "mean")[1:2])[0]
    nearest = open_generation(synthetic.path).neighbours(layer).candidates(query, 5).tolist()
    wrong: list[object] = []

    def read(offset: int) -> None:
        for channel in range(24):
            number = (channel + offset) % 24
            found = generation.scores(layer, "max", number)
            if not np.array_equal(found, truth[:, number], equal_nan=True):
                wrong.append(number)
            if generation.neighbours(layer).candidates(query, 5).tolist() != nearest:
                wrong.append("neighbours")
            if generation.rows.key(number) != synthetic.records[number].key:
                wrong.append("key")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
        # First touches race: of a generation that nobody has read yet, many times.
        for _ in range(40):
            generation = open_generation(synthetic.path)
            list(pool.map(generation.scores, [layer] * 8, ["max"] * 8, [3] * 8))
    assert wrong == []


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match="is not a folder"):
        open_generation(tmp_path / "nothing")


def test_a_file_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotAnIndexError):
        open_generation(tmp_path / "file")


@pytest.mark.parametrize("content", [[], ["holiday.jpg"], ["generations"]])
def test_a_folder_of_something_else_is_no_index(tmp_path: Path, content: list[str]) -> None:
    for name in content:
        (tmp_path / name).mkdir()
    with pytest.raises(NotAnIndexError, match="is not an index; `vitscope index` makes one"):
        open_generation(tmp_path)


def test_an_unfinished_index_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "building").mkdir()
    with pytest.raises(NotAnIndexError, match="not finished; run the same `vitscope index`"):
        open_generation(tmp_path)


@pytest.mark.parametrize(
    "pointer",
    [
        b"",
        b"\n",
        b"\xff\xfe\x00",
        b"000001",
        b"000001-0123456789abcdef",
        b"000001-0123456789abcdef\n\n",
        b" 000001-0123456789abcdef\n",
        "000001-012345678９abcdef\n".encode(),
        b"../../etc",
        b"/etc",
        b"000001-ABCDEF0123456789",
        b"000001-0123456789abcdef/..",
        b"000001-0123456789abcdef\nmore",
        b"x" * 10_000,
    ],
)
def test_a_damaged_pointer_is_damage(synthetic_copy: Path, pointer: bytes) -> None:
    (synthetic_copy / "CURRENT").write_bytes(pointer)
    with pytest.raises(DamagedIndexError, match="CURRENT"):
        open_generation(synthetic_copy)


def test_a_pointer_to_a_generation_that_is_not_there_is_damage(synthetic_copy: Path) -> None:
    (synthetic_copy / "CURRENT").write_text("000009-0123456789abcdef\n")
    with pytest.raises(DamagedIndexError, match=r"CURRENT .* 000009-.* is not there"):
        open_generation(synthetic_copy)


def test_a_missing_manifest_is_damage(synthetic: Synthetic, synthetic_copy: Path) -> None:
    (synthetic_copy / "generations" / synthetic.generation / "manifest.json").unlink()
    with pytest.raises(DamagedIndexError, match=r"^manifest\.json .* is missing"):
        open_generation(synthetic_copy)


def test_every_change_of_the_manifest_is_damage(synthetic: Synthetic, synthetic_copy: Path) -> None:
    path = synthetic_copy / "generations" / synthetic.generation / "manifest.json"
    whole = path.read_bytes()
    changed = [whole[:-1], whole + b"\n", b"", whole.replace(b'"rows": 70', b'"rows": 71')]
    for bit in range(0, len(whole) * 8, len(whole) // 5):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(data))
    for content in changed:
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(DamagedIndexError, match="not what was published"):
            open_generation(synthetic_copy)


def test_a_manifest_of_a_later_format_is_named_as_that(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    folder = synthetic_copy / "generations" / synthetic.generation
    body = json.loads((folder / "manifest.json").read_bytes()) | {"format_version": 4}
    data = json.dumps(body).encode()
    (folder / "manifest.json").write_bytes(data)
    folder.rename(folder.with_name(generation_name(1, data)))
    (synthetic_copy / "CURRENT").write_text(f"{generation_name(1, data)}\n")
    with pytest.raises(UnsupportedFormatError, match="version 4; this vitscope reads"):
        open_generation(synthetic_copy)


def test_current_name_reads_the_pointer(synthetic: Synthetic) -> None:
    assert current_name(synthetic.path) == synthetic.generation


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("blocks.0.ml", "did you mean blocks.0.mlp?"),
        ("Blocks.1.mlp", "did you mean blocks.1.mlp?"),
        ("zzz", "it has 3, blocks.0.mlp to blocks.1.mlp."),
        ("", "it has 3, blocks.0.mlp to blocks.1.mlp."),
        ("../rows", "it has 3, blocks.0.mlp to blocks.1.mlp."),
    ],
)
def test_an_unknown_layer_is_answered_with_a_hint(
    synthetic: Synthetic, name: str, hint: str
) -> None:
    with pytest.raises(NotKeptError) as caught:
        open_generation(synthetic.path).layer(name)
    assert str(caught.value) == f"The index has no layer {name!r}; {hint}"


def test_a_long_layer_name_is_not_repeated_in_full(synthetic: Synthetic) -> None:
    with pytest.raises(NotKeptError) as caught:
        open_generation(synthetic.path).layer("x" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_a_damaged_faiss_file_is_refused_before_faiss_sees_it(
    synthetic: Synthetic, synthetic_copy: Path, place: int
) -> None:
    name = "faiss/blocks.0.mlp.faiss"
    path = synthetic_copy / "generations" / synthetic.generation / name
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    generation = open_generation(synthetic_copy)
    with pytest.raises(DamagedIndexError, match=f"{name} of the index is not what was published"):
        generation.neighbours("blocks.0.mlp")
    # The others serve on.
    query = normalise(synthetic.scores("blocks.1.mlp", "mean")[1:2])[0]
    assert len(generation.neighbours("blocks.1.mlp").candidates(query, 3)) >= 3


def test_a_missing_faiss_file_is_damage(synthetic: Synthetic, synthetic_copy: Path) -> None:
    name = "faiss/blocks.0.mlp.faiss"
    (synthetic_copy / "generations" / synthetic.generation / name).unlink()
    with pytest.raises(DamagedIndexError, match="cannot be read"):
        open_generation(synthetic_copy).neighbours("blocks.0.mlp")


def folder_of(index: Path) -> Path:
    return index / "generations" / current_name(index)


@pytest.mark.parametrize(
    "name",
    [
        "layers/blocks.0.mlp/scores_mean",
        "layers/blocks.0.mlp/top_rows_mean",
        "rows/key",
        "rows/valid",
    ],
)
def test_changed_metadata_of_an_array_never_gives_another_answer(
    synthetic_copy: Path, name: str
) -> None:
    """Chunk checksums cannot see a shape that shrank; the digests of the manifest can."""
    path = folder_of(synthetic_copy) / "arrays.zarr" / name / "zarr.json"
    body = json.loads(path.read_bytes())
    body["shape"][-1] -= 1
    path.write_text(json.dumps(body))
    generation = open_generation(synthetic_copy)
    ask: dict[str, Callable[[], object]] = {
        "scores_mean": lambda: generation.scores("blocks.0.mlp", "mean", 0),
        "top_rows_mean": lambda: generation.top("blocks.0.mlp", "mean", 0),
        "key": lambda: generation.rows.key(1),
        "valid": lambda: len(generation.rows),
    }
    with pytest.raises(DamagedIndexError, match=r"zarr\.json of the index is not what"):
        ask[path.parent.name]()


def test_every_error_of_the_store_ends_the_command_line_with_4() -> None:
    kinds: list[type[StoreError]] = [StoreError, *StoreError.__subclasses__()]
    assert len(kinds) > 4
    # But for these: with another writer, or with a bucket, nothing need be wrong with the index.
    elsewhere = {BusyIndexError, RemoteError}
    assert {kind.exit_code for kind in kinds if kind not in elsewhere} == {4}
    assert {kind.exit_code for kind in elsewhere} == {3}


def test_generations_do_not_share_their_caches(synthetic: Synthetic) -> None:
    one, other = Generation(synthetic.folder), Generation(synthetic.folder)
    assert one.neighbours("blocks.0.mlp") is one.neighbours("blocks.0.mlp")
    assert one.neighbours("blocks.0.mlp") is not other.neighbours("blocks.0.mlp")


def test_lost_pictures_are_damage_and_not_emptiness(synthetic_copy: Path) -> None:
    generation = open_generation(synthetic_copy)
    shutil.rmtree(generation.path / "arrays.zarr" / "rows" / "thumbnail")
    with pytest.raises(DamagedIndexError):
        generation.thumbnail(1)


LOCKED = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "rb"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("in use")
else:
    print("free")
"""


def test_another_process_can_tell_that_a_generation_is_being_read(synthetic_copy: Path) -> None:
    manifest = folder_of(synthetic_copy) / "manifest.json"

    def seen() -> str:
        command = [sys.executable, "-c", LOCKED, str(manifest)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert seen() == "free"
    one, other = Generation(manifest.parent), Generation(manifest.parent)
    assert seen() == "in use"
    del one
    gc.collect()
    assert seen() == "in use"
    assert other.name == manifest.parent.name
    del other
    gc.collect()
    assert seen() == "free"


def test_a_lost_pointer_is_damage_where_there_are_generations(synthetic_copy: Path) -> None:
    (synthetic_copy / "CURRENT").unlink()
    with pytest.raises(DamagedIndexError, match=r"^CURRENT of the index .* is missing"):
        open_generation(synthetic_copy)


def test_a_generation_goes_with_its_last_reference(synthetic_copy: Path) -> None:
    """Its lock and its caches with it, without waiting for the cyclic collector.

    Of a copy: clients of this process may read the index that all tests share.
    """
    gc.disable()
    try:
        generation = open_generation(synthetic_copy)
        layer = generation.manifest.layers[0].name
        generation.scores(layer, "mean", 0)
        generation.rows.record(0)
        generation.neighbours(layer)
        gone = weakref.ref(generation)
        manifest = str(generation.path / "manifest.json")
        assert manifest in open_files()
        del generation
        assert gone() is None
        assert manifest not in open_files()
    finally:
        gc.enable()


def open_files() -> list[str]:
    found = []
    for number in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(number.readlink()))
    return found


def test_a_reader_that_meets_a_pruner_takes_the_generation_after(
    synthetic_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = current_name(synthetic_copy)
    folder = synthetic_copy / "generations"
    # As it was a moment ago: `CURRENT` named a generation that is being removed by now.
    old = "000000-0123456789abcdef"
    shutil.copytree(folder / name, folder / old)
    names = iter([old, name, name])
    monkeypatch.setattr("vitscope.store.generation.current_name", lambda index: next(names))
    with (folder / old / "manifest.json").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert open_generation(synthetic_copy).name == name


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        ("rows", 71, "is not of the shape"),
        ("valid_rows", 64, "another number of rows than the row table"),
        ("layers.0.channels", 10, "is not of the shape"),
        ("layers.0.top_k", 5, "is not of the shape"),
        ("layers.0.tokens.width", 6, "is not of the shape"),
        ("layers.0.poolings", ["mean", "max"], ""),
        ("layers.1.poolings", ["mean", "cls"], "cannot be read"),
        ("layers.2.dense", True, "cannot be read"),
        ("layers.2.dense_prefix", True, "cannot be read"),
    ],
)
def test_arrays_have_the_shapes_that_the_manifest_makes(
    synthetic_copy: Path, path: str, value: object, word: str
) -> None:
    folder = synthetic_copy / "generations" / current_name(synthetic_copy)
    body = json.loads((folder / "manifest.json").read_bytes())
    *outer, last = path.split(".")
    inside = body
    for name in outer:
        inside = inside[int(name) if isinstance(inside, list) else name]
    inside[last] = value
    data = json.dumps(body).encode()
    (folder / "manifest.json").write_bytes(data)
    folder = folder.rename(folder.with_name(generation_name(1, data)))
    (synthetic_copy / "CURRENT").write_text(f"{folder.name}\n")
    generation = open_generation(synthetic_copy)
    if not word:
        generation.check_files()
        return
    with pytest.raises(DamagedIndexError, match=word):
        generation.check_files()
