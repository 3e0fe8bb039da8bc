"""Copies of pictures without their background, without their objects, or without their detail.

In the pixels of the source picture, before any resize, as Ghiasi et al., "What do Vision
Transformers Learn?" (arXiv 2212.06727) mask ImageNet by its boxes to tell what a model takes from
foreground and background. An index of the copies has the rows of the original's, so that the two
can be held against each other row by row.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from vitscope.indexer.decode import check_size, in_rgb, opened
from vitscope.indexer.errors import IndexingError, OutputError, SourceError
from vitscope.indexer.sources import Source, SourceRow
from vitscope.indexer.sources.files import SUFFIXES
from vitscope.store.files import PARTIAL, sha256_bytes, write_atomically
from vitscope.store.progress import Progress

Part = Literal["background", "foreground"]

LIST = "list.csv"
FILLS: Mapping[str, tuple[int, int, int] | None] = {
    "gray": (124, 116, 104),
    "black": (0, 0, 0),
    "mean": None,
}
"""What covers a part: the mean colour of ImageNet, which most models see as 0; black; the mean
colour of the picture itself. Any other colour goes by its numbers."""

_RECORD = "variant.json"
_NUMBER = re.compile("[0-9]{1,3}")
_FOLDER_ROWS = 1_000
_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of every picture."""

    mask: Part | None = None
    """What is covered: all outside the boxes, or all inside."""
    fill: str = "gray"
    """One of `FILLS`, or red, green and blue from 0 to 255, as `255,0,0`."""
    low_pass: float | None = None
    """Standard deviation in pixels of a Gaussian that takes the detail away."""

    def check(self) -> None:
        """Raise `IndexingError` for a change that cannot be meant."""
        if (self.mask is None) == (self.low_pass is None):
            raise IndexingError("Give either --mask or --low-pass.")
        if self.low_pass is not None and not 0 < self.low_pass <= 1_000:
            raise IndexingError("--low-pass must be more than 0 pixels, and at most 1,000.")
        self.colour()

    def colour(self) -> tuple[int, int, int] | None:
        """Red, green and blue of `fill`; None for the mean colour of each picture."""
        if self.fill in FILLS:
            return FILLS[self.fill]
        told = self.fill.split(",")
        if len(told) != 3 or not all(_NUMBER.fullmatch(each) and int(each) < 256 for each in told):
            raise IndexingError(
                f"--fill {self.fill[:40]!r} is no colour; give {', '.join(FILLS)}, or red, green "
                "and blue from 0 to 255, such as 255,0,0."
            )
        red, green, blue = map(int, told)
        return red, green, blue


@dataclass(slots=True)
class Made:
    """How many pictures a variant has."""

    pictures: int = 0
    unmasked: int = 0
    """Copied as they are, since they have no boxes."""
    invalid: int = 0
    """Copied byte for byte, since they are no pictures."""


class Variant:
    """A variant of a source's pictures below the folder `out`."""

    def __init__(
        self, source: Source, out: Path, change: Change, masks: Path | None = None
    ) -> None:
        """`masks` is a folder of pictures named as the keys are, but for their ending, white where
        the object is; without it the boxes of the source say where.

        Raises `SourceError` where nothing says so of any picture, `OutputError` for a folder that
        holds something else.
        """
        change.check()
        self._source, self._out, self._change = source, out, change
        self._masks = None if masks is None else _masks(masks)
        boxed = change.mask is None or masks is not None or any(row.boxes for row in source.rows)
        if not boxed:
            raise SourceError(
                "No picture of the source has boxes that would say what to mask; give --boxes, a "
                "list with boxes, or --masks."
            )
        self._check_masks()
        self._claim()

    def make(self) -> Made:
        """Write a copy of every picture that has none yet, then the list that names them.

        Raises `SourceError` for a mask that is missing or does not fit its picture.
        """
        made = Made()
        rows = iter(range(len(self._source.rows)))
        progress = Progress("pictures", len(self._source.rows))
        lines = io.StringIO(newline="")
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(("path", "key", "label", "boxes"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while some := list(islice(rows, _AT_ONCE)):
                for row, name in zip(some, pool.map(self._copy, some), strict=True):
                    found = self._source.rows[row]
                    made.pictures += 1
                    made.invalid += name.endswith(".bin")
                    made.unmasked += self._unmasked(found) and name.endswith(".png")
                    boxes = self._boxes(found, name)
                    table.writerow((name, found.key, found.label or "", boxes))
                progress.advance(len(some))
        progress.finish()
        write_atomically(self._out / LIST, lines.getvalue().encode())
        return made

    def _check_masks(self) -> None:
        """Raise unless every picture has a mask, where these say where objects are."""
        for key in self._source.rows.keys if self._masks is not None else ():
            if os.path.splitext(key)[0] not in (self._masks or {}):
                raise SourceError(f"--masks has no picture for {key}; give one for each.")

    def _claim(self) -> None:
        """Make the folder this variant's own, or find that it is."""
        told = {
            **asdict(self._change),
            "masks": _digest(self._masks),
            "rows_sha256": self._source.rows.digest(),
        }
        record = json.dumps(told, indent=1).encode() + b"\n"
        if not self._out.absolute().parent.is_dir():
            raise OutputError(f"The folder {self._out.absolute().parent} for --out does not exist.")
        try:
            self._out.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder {self._out} for --out cannot be made ({error.strerror})."
            ) from None
        path = self._out / _RECORD
        # A run that was killed at once leaves no more than a part of the record.
        begun = path.with_name(f".{_RECORD}{PARTIAL}")
        if not path.exists() and set(self._out.iterdir()) <= {begun}:
            write_atomically(path, record)
        if not path.is_file() or path.read_bytes() != record:
            raise OutputError(
                f"{self._out} holds something else, or a variant of other pictures or options; "
                "choose another --out."
            )

    def _copy(self, row: int) -> str:
        """Write the copy of a row, unless it is there; gives its path below the folder."""
        name = f"pictures/{row // _FOLDER_ROWS:06d}/{row:09d}"
        whole, broken = self._out / f"{name}.png", self._out / f"{name}.bin"
        if whole.is_file():
            return f"{name}.png"
        if broken.is_file():
            return f"{name}.bin"
        whole.parent.mkdir(parents=True, exist_ok=True)
        try:
            data = self._source.read(row)
        except OSError:
            # What cannot be read is not there in the copy either.
            return f"{name}.bin"
        picture = _decoded(data)
        if picture is None:
            write_atomically(broken, data)
            return f"{name}.bin"
        out = io.BytesIO()
        self._changed(self._source.rows[row], picture).save(out, "PNG", compress_level=1)
        write_atomically(whole, out.getvalue())
        return f"{name}.png"

    def _changed(self, row: SourceRow, picture: Image.Image) -> Image.Image:
        if self._change.low_pass is not None:
            return picture.filter(ImageFilter.GaussianBlur(self._change.low_pass))
        if self._unmasked(row):
            return picture
        inside = self._inside(row, picture.size)
        pixels = np.array(picture)
        fill = self._change.colour()
        colour = pixels.mean((0, 1)).round() if fill is None else fill
        pixels[~inside if self._change.mask == "background" else inside] = colour
        return Image.fromarray(pixels)

    def _unmasked(self, row: SourceRow) -> bool:
        """Whether nothing says where the object of a picture is."""
        return self._change.mask is not None and self._masks is None and not row.boxes

    def _inside(self, row: SourceRow, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Where the object is: (H, W)."""
        width, height = size
        inside = np.zeros((height, width), np.bool_)
        if self._masks is None:
            for box in row.boxes.in_pixels(width, height):
                # Pixels whose middle lies in the box.
                x0, y0, x1, y1 = (max(0, ceil(corner - 0.5)) for corner in box.corners)
                inside[y0:y1, x0:x1] = True
            return inside
        path = self._masks[os.path.splitext(row.key)[0]]
        mask = _decoded(path.read_bytes())
        if mask is None or mask.size != size:
            what = "is no picture" if mask is None else f"has {mask.width} x {mask.height} pixels"
            raise SourceError(
                f"The mask {path.name} of {row.key} {what}; it must be one of {width} x {height}."
            )
        values = np.asarray(mask.convert("L"))
        if 0 < values.max() < 128:
            raise SourceError(
                f"The mask {path.name} of {row.key} has no white, but values up to "
                f"{values.max()}; make objects 255."
            )
        return values >= 128

    def _boxes(self, row: SourceRow, name: str) -> str:
        """The boxes as a list has them, in pixels of the picture."""
        boxes = row.boxes.boxes
        if row.boxes.frame and name.endswith(".png"):
            with Image.open(self._out / name) as picture:
                boxes = row.boxes.in_pixels(*picture.size)
        told = [{"label": box.label, "box": box.corners} for box in boxes]
        return json.dumps(told, ensure_ascii=False) if told else ""


def _masks(folder: Path) -> dict[str, Path]:
    """Mask pictures by their path below the folder without its ending."""
    if not folder.is_dir():
        raise SourceError(f"The folder {folder} for --masks does not exist.")
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
    }


def _digest(masks: Mapping[str, Path] | None) -> str | None:
    """Of names, sizes and times of masks: others make another variant."""
    if masks is None:
        return None
    told = [(key, path.stat().st_size, path.stat().st_mtime_ns) for key, path in masks.items()]
    return sha256_bytes(json.dumps(told).encode())


def _decoded(data: bytes) -> Image.Image | None:
    """What the indexer would see, in RGB; None where it would see no picture."""
    try:
        with opened(data) as picture:
            check_size(picture.size)
            return in_rgb(picture)
    # Whatever a codec raises on bad bytes.
    except Exception:
        return None
