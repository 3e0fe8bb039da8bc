"""Small picture files for tests, good and bad."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int, height: int = 70, width: int = 90) -> Image.Image:
    """A smooth random picture, never twice the same."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG bytes."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92)
    return out.getvalue()


def write_pictures(folder: Path, count: int, *, classes: int = 3) -> list[Path]:
    """`count` pictures in `classes` sub-folders; gives the files in the order of their rows."""
    files = []
    for number in range(count):
        path = folder / f"class{number % classes}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(noise(number)))
        files.append(path)
    return sorted(files)


BAD = {
    "a_truncated.jpg": jpeg(noise(1))[:700],
    "b_text.jpg": b"<html><body>404</body></html>",
    "c_empty.png": b"",
}
"""Files that are no readable image, by name."""
