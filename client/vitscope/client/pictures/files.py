"""Pictures in and out: JPEG bytes to arrays, sheets to PNG files."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitscope.client.errors import ServerError
from vitscope.client.files import write_atomically

MAX_PIXELS = 1 << 26
"""A thumbnail larger than this is refused before it is decoded."""

# 52 shades of each colour, white and black among them: nobody sees it, and a PNG of photographs
# takes three fifths of the room.
_SHADES = [round(value / 5) * 5 for value in range(256)] * 3


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    """A thumbnail as HWC uint8 RGB, values in [0, 255]."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ServerError(
                    f"The server sent a thumbnail of {picture.width} x {picture.height} pixels."
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ServerError("The server sent a thumbnail that does not decode as JPEG.") from None


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    """HWC uint8 RGB or HW uint8 grey as a PNG, to the bit."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def sheet_png(sheet: Image.Image) -> bytes:
    """`sheet`, in RGB, as a PNG of moderate size; its colours move by up to 2 of 255."""
    buffer = io.BytesIO()
    sheet.point(_SHADES).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_png(sheet: Image.Image, path: Path) -> None:
    """Write `sheet_png` of it to `path` whole or not at all."""
    write_atomically(path, sheet_png(sheet))
