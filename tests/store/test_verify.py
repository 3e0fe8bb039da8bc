"""`verify` names every file that is not what was published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from permissions import locked, public_folder
from synthetic import Synthetic

from vitscope.client.cli import main
from vitscope.store.verify import verify

SHARD = "arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/1"
OTHER_SHARD = "arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/0"
FAISS = "faiss/blocks.1.mlp.faiss"
METADATA = "arrays.zarr/layers/blocks.0.mlp/scores_mean/zarr.json"


@pytest.fixture
def folder(synthetic: Synthetic, synthetic_copy: Path) -> Path:
    return synthetic_copy / "generations" / synthetic.generation


def flip(path: Path, place: int = 100) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("deep", [False, True])
def test_a_clean_index_is_sound(synthetic: Synthetic, deep: bool) -> None:
    result = verify(synthetic.path, deep=deep)
    sizes = [path.stat().st_size for path in synthetic.folder.rglob("*") if path.is_file()]
    manifest = (synthetic.folder / "manifest.json").stat().st_size
    assert result.problems == ()
    assert result.generation == synthetic.generation
    assert (result.files, result.bytes) == (len(sizes) - 1, sum(sizes) - manifest)


def test_deep_finds_one_flipped_bit_in_any_file(
    synthetic: Synthetic, synthetic_copy: Path, folder: Path
) -> None:
    files = json.loads((synthetic.folder / "manifest.json").read_bytes())["files"]
    for number, name in enumerate(files):
        whole = (folder / name).read_bytes()
        flip(folder / name, number * 7919)
        assert verify(synthetic_copy, deep=True).problems == (
            f"{name} has other bytes than were published.",
        )
        (folder / name).write_bytes(whole)
    assert verify(synthetic_copy, deep=True).problems == ()


def test_the_quick_check_reads_metadata(synthetic_copy: Path, folder: Path) -> None:
    flip(folder / METADATA)
    assert verify(synthetic_copy).problems == (f"{METADATA} has other bytes than were published.",)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", [SHARD, FAISS, METADATA])
def test_a_cut_file_is_named(synthetic_copy: Path, folder: Path, name: str, deep: bool) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    assert verify(synthetic_copy, deep=deep).problems == (
        f"{name} has {len(data) - 1:,} bytes instead of {len(data):,}.",
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", [SHARD, FAISS, METADATA])
def test_a_deleted_file_is_named(synthetic_copy: Path, folder: Path, name: str, deep: bool) -> None:
    (folder / name).unlink()
    assert verify(synthetic_copy, deep=deep).problems == (f"{name} is missing.",)


@pytest.mark.parametrize("deep", [False, True])
def test_a_foreign_file_is_named(synthetic_copy: Path, folder: Path, deep: bool) -> None:
    (folder / "faiss" / "наш.tmp").write_text("x")
    assert verify(synthetic_copy, deep=deep).problems == (
        "faiss/наш.tmp does not belong to the index.",
    )


def test_two_shards_in_each_others_place_are_both_named(synthetic_copy: Path, folder: Path) -> None:
    one, other = (folder / SHARD).read_bytes(), (folder / OTHER_SHARD).read_bytes()
    assert len(one) == len(other)
    assert one != other
    (folder / SHARD).write_bytes(other)
    (folder / OTHER_SHARD).write_bytes(one)
    assert verify(synthetic_copy, deep=True).problems == (
        f"{OTHER_SHARD} has other bytes than were published.",
        f"{SHARD} has other bytes than were published.",
    )


def test_all_problems_are_listed_at_once(synthetic_copy: Path, folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / FAISS).write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    problems = verify(synthetic_copy).problems
    assert len(problems) == 3
    for name, problem in zip((SHARD, FAISS, "notes.txt"), problems, strict=True):
        assert problem.startswith(name)


def test_a_folder_in_the_place_of_a_file_is_named(synthetic_copy: Path, folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()
    assert verify(synthetic_copy).problems == (f"{SHARD} is missing.",)


def test_a_link_to_nowhere_is_foreign(synthetic_copy: Path, folder: Path) -> None:
    (folder / "seals" / "link").symlink_to("nothing")
    assert verify(synthetic_copy).problems == ("seals/link does not belong to the index.",)


def test_the_quick_check_reads_seals(synthetic_copy: Path, folder: Path) -> None:
    flip(folder / "seals" / "rows.npz")
    assert verify(synthetic_copy).problems == (
        "seals/rows.npz has other bytes than were published.",
    )


@pytest.mark.parametrize("deep", [True, False])
def test_files_that_may_not_be_read_are_named(synthetic: Synthetic, deep: bool) -> None:
    with public_folder() as root:
        index = Path(shutil.copytree(synthetic.path, root / "index"))
        seals = index / "generations" / synthetic.generation / "seals"
        with locked(seals):
            problems = verify(index, deep=deep).problems
        names = [f"seals/{path.name}" for path in sorted(seals.iterdir())]
        assert problems == tuple(f"{name} cannot be read (Permission denied)." for name in names)


def test_an_index_that_may_not_be_read_is_one_sentence(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str]
) -> None:
    with public_folder() as root:
        index = Path(shutil.copytree(synthetic.path, root / "index"))
        for name in ("CURRENT", "generations"):
            with locked(index / name):
                assert main(["verify", str(index)]) in (3, 4)
            said = capsys.readouterr().err
            assert said.startswith("vitscope: ")
            assert said.count("\n") == 1
