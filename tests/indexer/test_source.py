"""Freezing the row list."""

from __future__ import annotations

from pathlib import Path

import pytest
from permissions import locked, public_folder

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.folder import open_folder


def touch(path: Path, data: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_rows_are_sorted_paths_with_labels_of_the_first_folder(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/deep/1.PNG", "a/9.jpeg", "top.webp", "é/x.jpg"):
        touch(tmp_path / name, b"12345")
    source = open_folder(tmp_path)
    assert [(row.key, row.label) for row in source.rows] == [
        ("a/9.jpeg", "a"),
        ("b/2.jpg", "b"),
        ("b/deep/1.PNG", "b"),
        ("top.webp", None),
        ("é/x.jpg", "é"),
    ]
    assert {row.bytes for row in source.rows} == {5}
    assert source.read(0) == b"12345"


def test_other_and_hidden_files_are_no_rows(tmp_path: Path) -> None:
    for name in ("a.jpg", "notes.txt", ".hidden.jpg", ".cache/b.jpg", "jpg"):
        touch(tmp_path / name)
    assert [row.key for row in open_folder(tmp_path).rows] == ["a.jpg"]


def test_limit_takes_the_first(tmp_path: Path) -> None:
    for number in range(9):
        touch(tmp_path / f"{number}.jpg")
    assert [row.key for row in open_folder(tmp_path, limit=2).rows] == ["0.jpg", "1.jpg"]


def test_the_digest_tells_lists_apart(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.jpg")
    before = open_folder(tmp_path).rows.digest()
    assert open_folder(tmp_path).rows.digest() == before
    touch(tmp_path / "a" / "1.jpg", b"longer")
    assert open_folder(tmp_path).rows.digest() != before


def test_a_dangling_link_keeps_its_row(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    touch(tmp_path / "z.jpg")
    source = open_folder(tmp_path)
    assert [row.bytes for row in source.rows] == [0, 1]
    with pytest.raises(OSError, match="No such file"):
        source.read(0)


@pytest.mark.parametrize(("name", "words"), [("none", "no folder"), ("empty", "holds no picture")])
def test_nothing_to_index_is_said(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=words):
        open_folder(tmp_path / name)


def test_a_folder_that_may_not_be_looked_into_is_not_passed_over() -> None:
    with public_folder() as root:
        for name in ("seen", "hidden"):
            (root / name).mkdir()
            (root / name / "a.jpg").write_bytes(b"a")
        with (
            locked(root / "hidden"),
            pytest.raises(SourceError, match=r"Folder .*hidden cannot be read \(Permission denied"),
        ):
            open_folder(root)
