"""From the bytes of a file to the model's input, by timm's own evaluation transform."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from vitscope.indexer import view
from vitscope.store.geometry import Rectangle

MAX_PIXELS = 89_478_485
"""Larger pictures are taken for decompression bombs, as Pillow's own warning does."""

MAX_ASPECT = 100
"""How many times longer than the other a side may be: resizing a thread fills the memory."""

# Pillow warns and goes on; here such a picture is refused before it is decoded.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_JPEG_QUALITY = 88

Step: TypeAlias = Callable[[Any], Any]
"""Of a timm evaluation transform."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded image, or the reason why there is none."""

    pixels: torch.Tensor | None
    """Model input (3, H, W) float32, normalised; None where the image is invalid."""
    thumbnail: bytes
    """The picture as the model sees it, as a JPEG; empty where none is wanted or it is invalid."""
    sha256: str
    """Digest of the file's bytes."""
    reason: str
    """Why the image is invalid; empty where it is valid."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the source image; zeros where it is invalid."""
    view: Rectangle | None = None
    """What of the source image the model sees, in pixels of it and rounded to float32; beyond its
    edges where the transform pads. None where the image is invalid."""


class Decoder:
    """Pillow, then the steps of a timm evaluation transform; safe to call from many threads.

    The reference that the other decoders (`vitscope.indexer.decoders`) are held to.
    """

    name: ClassVar[str] = "pillow"

    def __init__(self, steps: Sequence[Step], thumbnail_size: int) -> None:
        """Raises `ModelError` for a step of which it is not known where it moves pixels."""
        view.check_steps(steps)
        self._steps = steps
        self._thumbnail_size = thumbnail_size

    def __call__(self, data: bytes) -> Picture:
        """Decode one file; bad bytes give a `reason`, never an exception."""
        digest = hashlib.sha256(data).hexdigest()
        try:
            # The orientation tag is not applied, as in timm's own evaluation.
            with opened(data) as image:
                size = image.size
                check_size(size)
                decoded, steps = self._decoded(image, data)
            seen, shown, pixels = self._transform(decoded, size, steps)
            return Picture(pixels, self._thumbnail(seen), digest, "", size, shown)
        except torch.OutOfMemoryError:
            # Of the device, not of the picture.
            raise
        # Whatever a codec raises on bad bytes, the row stays and says why.
        except Exception as error:
            return Picture(None, b"", digest, _reason(data, error))

    def _decoded(self, image: Image.Image, data: bytes) -> tuple[Image.Image, Sequence[Step]]:
        """What `image`, opened from `data`, shows in RGB at any size, and the steps left for it."""
        return in_rgb(image), self._steps

    def _transform(
        self, decoded: Image.Image, size: view.Size, steps: Sequence[Step]
    ) -> tuple[Image.Image, Rectangle, torch.Tensor]:
        """What the model sees, where that lies in a source of `size`, and as the model's input."""
        value: Any = decoded
        seen = decoded
        shown = (0.0, 0.0, float(size[0]), float(size[1]))
        for step in steps:
            before = view.size_of(value)
            value = step(value)
            shown = view.after(step, shown, before, view.size_of(value))
            # The last picture before it becomes numbers is what the model sees.
            if isinstance(value, Image.Image):
                seen = value
        x0, y0, x1, y1 = np.array(shown, np.float32).tolist()
        return seen, (x0, y0, x1, y1), value

    def _thumbnail(self, seen: Image.Image) -> bytes:
        if not self._thumbnail_size:
            return b""
        small = seen.copy()
        small.thumbnail((self._thumbnail_size, self._thumbnail_size), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, "JPEG", quality=_JPEG_QUALITY)
        return out.getvalue()


def opened(data: bytes) -> Image.Image:
    """A picture of any format that Pillow reads by itself: not PostScript, which is a program."""
    Image.init()
    return Image.open(io.BytesIO(data), formats=[name for name in Image.ID if name != "EPS"])


def check_size(size: view.Size) -> None:
    """Raise for a picture, by width and height, that is too large or too long to be read."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if max(size) > MAX_ASPECT * min(size):
        raise ValueError(f"{width} x {height} pixels is no shape of a picture")


def in_rgb(image: Image.Image) -> Image.Image:
    """Decode a picture that was opened, of whatever mode."""
    return (_scaled(image) if image.mode.startswith("I") else image).convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """A picture of 16-bit greys in 8 bits; Pillow's own conversion would cut off at 255."""
    greys = np.asarray(image).astype(np.int64) >> 8
    return Image.fromarray(greys.clip(0, 255).astype(np.uint8))


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "the file is not an image that Pillow knows"
    if isinstance(error, Image.DecompressionBombError):
        return f"the image has more than {MAX_PIXELS:,} pixels"
    return f"the image data is broken ({error or type(error).__name__})"
