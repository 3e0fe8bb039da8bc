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


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    """A thumbnail as HWC uint8 RGB, values in [0, 255]."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ServerError(
                    f"the server sent a thumbnail of {picture.width} x {picture.height} pixels"
                )
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ServerError(f"the server sent a thumbnail that does not decode: {error}") from None


def save_png(sheet: Image.Image, path: Path) -> None:
    """Write `sheet` to `path` whole or not at all."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())
