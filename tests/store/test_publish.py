"""Publication: the pointer moves last, what is published is whole, and a cut is mended."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from synthetic import Synthetic, build

from vitscope.store.errors import NotAnIndexError
from vitscope.store.files import tree_files, write_atomically
from vitscope.store.generation import open_generation
from vitscope.store.manifest import Manifest
from vitscope.store.publish import complete_publication, publish
from vitscope.store.verify import verify


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_manifest_has_the_digest_of_every_file(synthetic: Synthetic) -> None:
    found = contents(synthetic.folder)
    manifest = found.pop("manifest.json")
    body = json.loads(manifest)
    assert body["files"] == {
        name: {"bytes": len(data), "blake3": blake3(data).hexdigest()}
        for name, data in found.items()
    }
    assert synthetic.generation == f"000001-{hashlib.sha256(manifest).hexdigest()[:16]}"


def test_an_index_holds_its_pointer_and_its_generation_only(synthetic: Synthetic) -> None:
    assert sorted(path.name for path in synthetic.path.iterdir()) == ["CURRENT", "generations"]
    assert (synthetic.path / "CURRENT").read_text() == f"{synthetic.generation}\n"
    assert not [name for name in contents(synthetic.path) if "partial" in name]


def test_the_same_input_gives_the_same_bytes(synthetic: Synthetic, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    assert contents(again.path) == contents(synthetic.path)
    assert build(tmp_path / "other", seed=1).generation != synthetic.generation


def staged_again(synthetic: Synthetic, index: Path) -> Path:
    """A working folder with what the published generation holds, less the manifest."""
    staged = index / "building" / "staged"
    shutil.copytree(synthetic.folder, staged)
    (staged / "manifest.json").unlink()
    return staged


def test_the_next_generation_takes_the_next_number_and_leaves_the_old_one(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    before = contents(synthetic_copy / "generations" / synthetic.generation)
    reader = open_generation(synthetic_copy)
    name = publish(synthetic_copy, staged_again(synthetic, synthetic_copy), synthetic.manifest)
    assert name == f"000002-{synthetic.generation[7:]}"
    assert open_generation(synthetic_copy).name == name
    assert contents(synthetic_copy / "generations" / synthetic.generation) == before
    # Who had opened the old generation goes on reading it.
    assert reader.scores("blocks.0.mlp", "mean", 5).shape == (70,)
    assert verify(synthetic_copy, deep=True).problems == ()


def anyone(manifest: Manifest) -> bool:
    return True


def test_before_the_pointer_moves_the_old_generation_is_read(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    staged = staged_again(synthetic, synthetic_copy)
    pointer = (synthetic_copy / "CURRENT").read_bytes()
    name = publish(synthetic_copy, staged, synthetic.manifest)
    # As a kill just before the last step leaves it.
    (synthetic_copy / "CURRENT").write_bytes(pointer)
    assert open_generation(synthetic_copy).name == synthetic.generation
    assert complete_publication(synthetic_copy, staged, lambda manifest: False) is None
    assert open_generation(synthetic_copy).name == synthetic.generation
    assert complete_publication(synthetic_copy, staged, anyone) == name
    assert open_generation(synthetic_copy).name == name


def test_a_first_publication_that_was_cut_off_is_completed(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    (synthetic_copy / "CURRENT").unlink()
    (synthetic_copy / "building").mkdir()
    with pytest.raises(NotAnIndexError):
        open_generation(synthetic_copy)
    staged = synthetic_copy / "building" / "staged"
    assert complete_publication(synthetic_copy, staged, anyone) == synthetic.generation
    assert open_generation(synthetic_copy).name == synthetic.generation
    assert verify(synthetic_copy, deep=True).problems == ()


def test_there_is_nothing_to_complete_while_the_staged_folder_is_there(
    synthetic: Synthetic, synthetic_copy: Path
) -> None:
    (synthetic_copy / "CURRENT").unlink()
    staged = staged_again(synthetic, synthetic_copy)
    assert complete_publication(synthetic_copy, staged, anyone) is None
    assert not (synthetic_copy / "CURRENT").exists()


@pytest.mark.parametrize("generations", [False, True])
def test_there_is_nothing_to_complete_in_a_new_folder(tmp_path: Path, generations: bool) -> None:
    if generations:
        (tmp_path / "generations").mkdir()
    assert complete_publication(tmp_path, tmp_path / "building" / "staged", anyone) is None
    assert not (tmp_path / "CURRENT").exists()


def test_atomic_writes_replace_the_whole_file_and_leave_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"long old content")
    write_atomically(path, b"new")
    assert contents(tmp_path) == {"file": b"new"}


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    (tmp_path / ".file.partial").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_files_of_a_tree_come_in_one_order(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a.b", "a/b/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "empty").mkdir()
    assert [path.as_posix() for path in tree_files(tmp_path)] == ["a.b", "a/b/c", "a/z", "b"]


def test_foreign_entries_beside_generations_are_passed_over(synthetic_copy: Path) -> None:
    (synthetic_copy / "generations" / ".DS_Store").write_bytes(b"")
    (synthetic_copy / "generations" / "backup").mkdir()
    name = (synthetic_copy / "CURRENT").read_text().strip()
    assert complete_publication(synthetic_copy, synthetic_copy / "none", anyone) == name
