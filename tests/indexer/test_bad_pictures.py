"""A set with files of many odd kinds: what cannot be read is set aside and touches nothing else.

`VITSCOPE_PICTURES` says how many pictures the set has.
"""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from children import Children
from jobs import scratch
from pictures import jpeg, noise
from PIL import Image

from vitscope.store import layout
from vitscope.store.arrays import open_array
from vitscope.store.generation import Generation, open_generation
from vitscope.store.verify import verify

COUNT = int(os.environ.get("VITSCOPE_PICTURES", "1200"))
ODD_PER_KIND = max(2, COUNT // 800)
"""Eight kinds make one per cent."""

BOMB_BYTES = 50 << 20
"""How much more memory a decompression bomb may take than an ordinary picture."""


def picture(number: int) -> Image.Image:
    """A small picture, never twice the same."""
    return noise(number, 36 + number % 9, 40 + number % 7)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(width: int = 20_000, height: int = 15_000) -> bytes:
    """A PNG of one bit a pixel: some kilobytes that are 300 megapixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes(1 + width // 8) * height, 9)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def palette_with_alpha(image: Image.Image) -> bytes:
    return encoded(image.convert("P"), "PNG", transparency=bytes(range(256)))


def grey16(image: Image.Image) -> bytes:
    greys = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(greys), "PNG")


def rotated(image: Image.Image) -> bytes:
    tag = Image.Exif()
    tag[0x0112] = 6
    return encoded(image, "JPEG", exif=tag)


BOMB = bomb()
UNREADABLE: dict[str, tuple[Callable[[int], bytes], str]] = {
    "truncated": (lambda number: jpeg(picture(number))[:-200], "broken"),
    "empty": (lambda number: b"", "empty"),
    "html": (lambda number: b"<!DOCTYPE html><title>%d</title>" % number, "not an image"),
    "bomb": (lambda number: BOMB + b"%d" % number, "pixels"),
}
"""Files that are no picture, and a word of the reason that is given."""
ODD: dict[str, Callable[[int], bytes]] = {
    "cmyk": lambda number: encoded(picture(number).convert("CMYK"), "JPEG"),
    "grey16": lambda number: grey16(picture(number)),
    "palette": lambda number: palette_with_alpha(picture(number)),
    "rotated": lambda number: rotated(picture(number)),
}
"""Pictures of a kind that many readers stumble over."""


def write_sets(bad: Path, clean: Path) -> dict[int, str]:
    """The set twice: as it is, and with good pictures for what cannot be read.

    Gives a word of the reason of every unreadable row. Rows are in the order of the names.
    """
    bad.mkdir()
    clean.mkdir()
    chance = np.random.default_rng(0)
    kinds = [*UNREADABLE, *ODD]
    places = chance.permutation(COUNT)[: ODD_PER_KIND * len(kinds)].tolist()
    chosen = {row: kinds[number % len(kinds)] for number, row in enumerate(places)}
    reasons = {}
    for row in range(COUNT):
        kind = chosen.get(row, "")
        good = ODD[kind](row) if kind in ODD else jpeg(picture(row))
        (clean / f"{row:06d}.jpg").write_bytes(good)
        if kind in UNREADABLE:
            make, reasons[row] = UNREADABLE[kind]
            (bad / f"{row:06d}.jpg").write_bytes(make(row))
        else:
            os.link(clean / f"{row:06d}.jpg", bad / f"{row:06d}.jpg")
    return reasons


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as server:
        yield server


def run(children: Children, data: Path) -> Generation:
    """Index a set, and say how fast that went."""
    out = data.with_name(f"{data.name}-index")
    line = "index --model test_vit --random-weights --img-size 32 --batch-size 16 --unit-rows 512"
    start = time.monotonic()
    child = children.start([*line.split(), "--data", str(data), "--out", str(out)])
    assert child.wait() == 0, child.errors()
    seconds = time.monotonic() - start
    print(f"\n{data.name}: {COUNT:,} pictures in {seconds:.1f} s, {COUNT / seconds:,.0f}/s")
    assert verify(out, deep=True).problems == ()
    return open_generation(out)


def compare_scores(bad: Generation, clean: Generation, rows: npt.NDArray[np.int64]) -> None:
    """All scores of these rows are the same bits, and those of the others are NaN."""
    others = np.setdiff1d(np.arange(COUNT), rows)
    for layer in bad.manifest.layers:
        for pooling in layer.poolings:
            name = layout.scores_name(pooling)
            found, expected = (
                open_array(layout.layer_path(index.path, layer.name) / name).read().T
                for index in (bad, clean)
            )
            same = found[rows].view(np.uint16) == expected[rows].view(np.uint16)
            assert same.all(), f"{layer.name} {pooling}: rows {rows[~same.all(1)].tolist()[:9]}"
            assert np.isnan(found[others]).all()
            name = layout.row_scores_name(pooling)
            by_row = open_array(layout.layer_path(bad.path, layer.name) / name).read()
            assert np.array_equal(by_row.view(np.uint16), found.view(np.uint16))


def test_unreadable_files_touch_no_other_row(children: Children, tmp_path: Path) -> None:
    with scratch(tmp_path) as space:
        reasons = write_sets(space / "bad", space / "clean")
        bad, clean = (run(children, space / name) for name in ("bad", "clean"))
        rows = np.array([row for row in range(COUNT) if row not in reasons])
        assert clean.rows.valid.all()
        assert bad.rows.valid.nonzero()[0].tolist() == rows.tolist()
        for row, words in reasons.items():
            record = bad.rows.record(row)
            assert words in record.reason
            assert bad.rows.thumbnail(row) == b""
        for row in rows.tolist():
            assert bad.rows.record(row) == clean.rows.record(row)
            assert bad.rows.thumbnail(row) == clean.rows.thumbnail(row)
        compare_scores(bad, clean, rows)
        print(f"{len(reasons):,} unreadable, {len(rows):,} rows equal bit for bit")


_MEASURE = """
import sys, time
from pathlib import Path
import timm
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from vitscope.indexer.decode import Decoder

def kib(name):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(name + ":")[2].split()[0])

model = timm.create_model("test_vit", num_classes=0)
steps = create_transform(**resolve_model_data_config(model), is_training=False).transforms
decode = Decoder(steps, 256)
assert decode(Path(sys.argv[1]).read_bytes()).reason == ""
for name in sys.argv[2:]:
    data = Path(name).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is to be this picture's
    before = kib("VmHWM")
    start = time.perf_counter()
    reason = decode(data).reason
    print(kib("VmHWM") - before, time.perf_counter() - start, reason)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak in /proc here")
def test_a_bomb_does_not_go_off(tmp_path: Path) -> None:
    # The last is large and allowed: it shows that the measure sees what is decoded.
    files = {"ordinary": jpeg(noise(1)), "bomb": BOMB, "large": bomb(5_000, 5_000)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", _MEASURE, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    bomb_said, large_said = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    print(f"\n{len(BOMB):,} bytes: {bomb_said[0]} KiB more, {float(bomb_said[1]) * 1e3:.1f} ms")
    assert "pixels" in bomb_said[2]
    assert len(large_said) == 2, "the large picture is valid"
    assert int(bomb_said[0]) << 10 < BOMB_BYTES < int(large_said[0]) << 10
