"""Tar shards: samples, hostile members, cuts and damage."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import jpeg, noise
from sources import tar_bytes

from vitscope.client.cli import main
from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources import Source, open_source
from vitscope.store.generation import open_generation
from vitscope.store.text import counted

Files = Iterable[tuple[str | tarfile.TarInfo, bytes]]
FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def opened(folder: Path, files: Files, *, form: int = tarfile.PAX_FORMAT) -> Source:
    (folder / "a.tar").write_bytes(tar_bytes(files, form=form))
    return open_source(folder / "a.tar")


def listed(source: Source) -> list[tuple[str, str | None]]:
    return [(row.key, row.label) for row in source.rows]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def test_a_sample_is_a_picture_with_what_lies_beside_it(tmp_path: Path) -> None:
    body = {"label": "from json", "boxes": [[1, 2, 3, 4], {"label": 5, "box": [0, 0, 1.5, 9]}]}
    source = opened(
        tmp_path,
        [
            ("./0.jpg", b"zero"),
            ("./0.cls", b" 7\n"),
            ("./0.json", json.dumps(body).encode()),
            ("./0.txt", b"a caption"),
            ("1.json", json.dumps({"label": 3}).encode()),
            ("1.PNG", b"one"),
            ("sub/1.jpg", b"another"),
            ("2.jpg", b"picture"),
            ("2.seg.png", b"its mask"),
            ("my.photo.1.jpg", b"dots"),
            ("my.photo.2.jpg", b"more dots"),
            ("._3.jpg", b"hidden"),
            (special("folder", tarfile.DIRTYPE), b""),
        ],
    )
    assert listed(source) == [
        ("a.tar/0.jpg", "7"),
        ("a.tar/1.PNG", "3"),
        ("a.tar/sub/1.jpg", None),
        ("a.tar/2.jpg", None),
        ("a.tar/my.photo.1.jpg", None),
        ("a.tar/my.photo.2.jpg", None),
    ]
    boxes = source.rows[0].boxes.boxes
    assert [(box.label, box.corners) for box in boxes] == [
        (None, (1, 2, 3, 4)),
        ("5", (0, 0, 1.5, 9)),
    ]
    wanted = [b"zero", b"one", b"another", b"picture", b"dots", b"more dots"]
    assert [source.read(row) for row in range(6)] == wanted
    assert source.notices == ()


@pytest.mark.parametrize("form", FORMS)
def test_long_and_odd_names(tmp_path: Path, form: str) -> None:
    names = ["é/белка 🦊.jpg", f"{'deep/' * 25}x.jpg"]
    if form != "ustar":
        names += [f"{'n' * 300}.jpg", f"{'d' * 200}/{'e' * 200}/y.jpg"]
    source = opened(tmp_path, [(name, name.encode()) for name in names], form=FORMS[form])
    assert [row.key for row in source.rows] == [f"a.tar/{name}" for name in names]
    assert [source.read(row).decode() for row in range(len(names))] == names


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    source = opened(tmp_path, [("caf\udce9.jpg", b"x")], form=tarfile.GNU_FORMAT)
    assert source.rows[0].key == "a.tar/caf\\udce9.jpg"
    assert source.read(0) == b"x"


HOSTILE: dict[str, tuple[str | tarfile.TarInfo, str]] = {
    "absolute": ("/etc/0.jpg", "its name leads out of its archive"),
    "above": ("a/../../0.jpg", "its name leads out of its archive"),
    "soft link": (special("0.jpg", tarfile.SYMTYPE, "/etc/passwd"), "it is a link"),
    "hard link": (special("0.jpg", tarfile.LNKTYPE, "1.jpg"), "it is a link"),
    "pipe": (special("0.jpg", tarfile.FIFOTYPE), "it is no plain file"),
    "device": (special("0.jpg", tarfile.CHRTYPE), "it is no plain file"),
    "disk": (special("0.jpg", tarfile.BLKTYPE), "it is no plain file"),
    "unknown": (special("0.jpg", b"Z"), "it is no plain file"),
    "sparse": (special("0.jpg", tarfile.GNUTYPE_SPARSE), "it is no plain file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_rows_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    member, words = HOSTILE[kind]
    source = opened(tmp_path, [(member, b""), ("1.jpg", b"good")])
    assert [row.key for row in source.rows][1] == "a.tar/1.jpg"
    assert source.read(1) == b"good"
    with pytest.raises(OSError, match=words):
        source.read(0)


def test_a_hostile_archive_gives_an_index_with_invalid_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files: list[tuple[str | tarfile.TarInfo, bytes]] = [(m, b"") for m, _ in HOSTILE.values()]
    files = [(f"{n}.jpg", jpeg(noise(n))) for n in range(3)] + files
    data = tar_bytes(files) + b"junk behind the end"
    (tmp_path / "a.tar").write_bytes(data)
    (tmp_path / "b.tar").write_bytes(data[:900])
    line = ["index", "--model", "test_vit", "--random-weights", "--img-size", "64"]
    out = tmp_path / "index"
    assert main([*line, "--data", str(tmp_path / "*.tar"), "--out", str(out)]) == 0
    said, errors = capsys.readouterr()
    assert (
        "b.tar is not a whole archive (it is cut off after 900 bytes); it gives 1 picture,"
        in errors
    )
    assert "b.tar/0.jpg: the file cannot be read (it is cut off by the end of" in said
    assert "the file cannot be read (it is a link in its archive)" in said
    generation = open_generation(out)
    assert generation.rows.valid.tolist() == [True] * 3 + [False] * (len(HOSTILE) + 1)


def test_a_link_is_no_label(tmp_path: Path) -> None:
    source = opened(tmp_path, [("0.jpg", b"x"), (special("0.cls", tarfile.SYMTYPE, "/y"), b"")])
    assert listed(source) == [("a.tar/0.jpg", None)]
    assert "a.tar/0.cls (it is a link in its archive)" in source.notices[0]


BAD_SIDECARS = [
    ("cls", b"\xff\xfe", "it is not UTF-8"),
    ("json", b"{", "it is not readable as JSON"),
    ("json", b"[" * 100_000, "it is not readable as JSON"),
    ("json", b'{"label": 1.5}', "a label is text or a whole number"),
    ("json", b'{"boxes": 3}', "boxes are a list"),
    ("json", b'{"boxes": [[1, 2, 3]]}', "four finite numbers"),
    ("json", b'{"boxes": [[1, 2, 3, "4"]]}', "four numbers"),
    ("json", b'{"boxes": [[1, 2, 3, 1e999]]}', "four finite numbers"),
    ("json", b'{"boxes": [[0, 0, 1, NaN]]}', "four finite numbers"),
    ("json", b'{"boxes": [[0, 0, 1, 1' + b"0" * 400 + b"]]}", "four finite numbers"),
    ("json", b'{"boxes": [[5, 0, 5, 1]]}', "is empty"),
    ("json", b'{"boxes": [{"box": 1}]}', "a box is"),
]


@pytest.mark.parametrize(("kind", "data", "words"), BAD_SIDECARS)
def test_bad_labels_and_boxes_are_counted_and_said(
    tmp_path: Path, kind: str, data: bytes, words: str
) -> None:
    files = [("0.jpg", b"x"), (f"0.{kind}", data), ("1.jpg", b"y"), (f"1.{kind}", data)]
    source = opened(tmp_path, files)
    assert [(row.label, row.boxes.boxes) for row in source.rows] == [(None, ())] * 2
    [notice] = source.notices
    assert notice.startswith(
        f"Left out (2): labels or boxes of pictures, the first in a.tar/0.{kind}"
    )
    assert words in notice
    assert notice.endswith(".")


def test_labels_that_lost_their_picture_are_said(tmp_path: Path) -> None:
    source = opened(tmp_path, [("0.jpg", b"x"), ("1.jpg", b"y"), ("0.cls", b"7")])
    assert listed(source) == [("a.tar/0.jpg", None), ("a.tar/1.jpg", None)]
    assert "Left out (1): labels or boxes without their picture" in source.notices[0]
    assert "tar --sort=name" in source.notices[0]


def test_a_label_of_half_a_character_can_be_stored(tmp_path: Path) -> None:
    source = opened(tmp_path, [("0.jpg", b"x"), ("0.json", b'{"label": "\\ud83d"}')])
    assert source.rows[0].label == "\\ud83d"


def test_members_of_one_name_and_shards_of_one_name(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        opened(tmp_path / folder, [("0.jpg", b"old"), ("0.jpg", folder.encode())])
    source = open_source(tmp_path / "{train,val}" / "a.tar")
    keys = [f"{folder}/a.tar/0.jpg{number}" for folder in ("train", "val") for number in ("", "#2")]
    assert [row.key for row in source.rows] == keys
    assert [source.read(row) for row in range(4)] == [b"old", b"train", b"old", b"val"]


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 1500), min_size=1, max_size=6),
    st.integers(0, 20_000),
    st.sampled_from(sorted(FORMS.values())),
)
def test_a_cut_archive_keeps_what_is_whole(sizes: list[int], cut: int, form: int) -> None:
    """And says that it was cut; the picture in which the cut lies cannot be read."""
    files = [(f"{number}.jpg", bytes([number + 1]) * size) for number, size in enumerate(sizes)]
    whole = tar_bytes(files, form=form)
    data = whole[: min(cut, len(whole))]
    ends, place = [], 0
    for size in sizes:
        ends.append(place + 512 + size)
        place += 512 + -(-size // 512) * 512
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        if len(data) < 512:
            with pytest.raises(SourceError, match=r"is no tar archive|holds no picture"):
                open_source(path)
            return
        source = open_source(path)
        assert len(source.rows) == sum(
            end - size <= len(data) for end, size in zip(ends, sizes, strict=True)
        )
        for row, (name, content) in enumerate(files[: len(source.rows)]):
            assert source.rows[row].key == f"a.tar/{name}"
            if ends[row] <= len(data):
                assert source.read(row) == content
            else:
                with pytest.raises(OSError, match="cut off by the end"):
                    source.read(row)
        assert bool(source.notices) == (len(data) < place + 512)
        for notice in source.notices:
            assert "is not a whole archive (it is cut off after" in notice
            assert f"it gives {counted(len(source.rows), 'picture')}, and any" in notice


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6 * 1024 - 1), st.integers(0, 7))
def test_a_flipped_bit_never_loses_rows_in_silence(place: int, bit: int) -> None:
    files = [(f"{number}.jpg", bytes([number + 65]) * 512) for number in range(6)]
    data = bytearray(tar_bytes(files, form=tarfile.USTAR_FORMAT))
    data[place] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        try:
            source = open_source(path)
        except SourceError:
            assert place < 512
            return
        assert len(source.rows) == 6 or "it is damaged near byte" in source.notices[0]
        for row, listed in enumerate(source.rows):
            assert listed.key == f"a.tar/{row}.jpg"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arbitrary_bytes_are_an_archive_or_an_error(draw: st.DataObject) -> None:
    form = draw.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    whole = tar_bytes([(f"{'n' * 120}{n}.jpg", b"x" * 600) for n in range(3)], form=form)
    data = bytearray(draw.draw(st.just(whole) | st.binary(max_size=2000)))
    for _ in range(draw.draw(st.integers(0, 8))):
        if data:
            data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(data)
        try:
            source = open_source(path)
        except SourceError:
            return
        for row in range(len(source.rows)):
            try:
                assert len(source.read(row)) == source.rows[row].bytes
            except OSError:
                continue


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_archives_are_refused_with_the_mend(tmp_path: Path, name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.jpg"))
    (tmp_path / name).write_bytes(out.getvalue())
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(SourceError, match=r"is compressed.*decompress it once.*\.tar\.$"):
            open_source(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<html>", "is no tar archive"),
        (b"x" * 5000, "is no tar archive"),
        (b"", "holds no picture"),
        (tar_bytes([]), "holds no picture"),
        (tar_bytes([("notes.txt", b"x")]), "holds no picture"),
    ],
)
def test_archives_without_pictures(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match=words) as caught:
        open_source(tmp_path / "a.tar")
    assert str(caught.value).endswith(".")


def test_an_archive_that_changes_while_it_is_read(tmp_path: Path) -> None:
    source = opened(tmp_path, [("0.jpg", b"x" * 99)])
    (tmp_path / "a.tar").write_bytes(tar_bytes([("0.jpg", b"y" * 2000)]))
    with pytest.raises(OSError, match="has changed since the rows were listed"):
        source.read(0)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(OSError, match="No such file"):
        source.read(0)
