"""Decoders by name: the reference, and faster ones that differ from it a little.

docs/decoding.md says by how much, as `benchmarks/decoders.py` measures it.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar

import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from timm.data.transforms import ResizeKeepRatio
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from vitscope.indexer.decode import Decoder, Picture, Step, in_rgb
from vitscope.indexer.errors import IndexingError
from vitscope.indexer.jpeg import has_sound_tables, is_luminance_first, is_whole
from vitscope.indexer.view import Size, size_of

_RESIZES = (transforms.Resize, ResizeKeepRatio)
_SMOOTH = (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
"""Filters that Pillow and torch have alike, and that average over what they leave out."""


class _Faster(Decoder):
    """JPEGs come at once at the size that they have after the transform's first step.

    So all later steps, and with them the view, are those of the reference. It also reads whatever
    else there is: other formats, all pictures where the transform does not begin with a smooth
    resize, and again what could not be read, so that bad rows and their reasons agree.
    """

    def __init__(self, steps: Sequence[Step], thumbnail_size: int) -> None:
        """Raises `ModelError` for a step of which it is not known where it moves pixels."""
        super().__init__(steps, thumbnail_size)
        self._reference = Decoder(steps, thumbnail_size)
        self._resize: Any = steps[0] if steps and _is_smooth(steps[0]) else None

    def __call__(self, data: bytes) -> Picture:
        """Decode one file; bad bytes give a `reason`, never an exception."""
        picture = super().__call__(data)
        return self._reference(data) if picture.reason else picture

    def _decoded(self, image: Image.Image, data: bytes) -> tuple[Image.Image, Sequence[Step]]:
        if self._resize and isinstance(image, JpegImageFile):
            small = self._resized(image, data, resized(self._resize, image.size))
            if small:
                return small, self._steps[1:]
        return super()._decoded(image, data)

    def _resized(self, image: JpegImageFile, data: bytes, size: Size) -> Image.Image | None:
        """The picture in RGB at that width and height; None leaves it to the reference."""
        raise NotImplementedError


class PillowDct(_Faster):
    """Large JPEGs are decoded by Pillow at 1/2, 1/4 or 1/8 of their size."""

    name = "pillow-dct"
    margin: ClassVar[float] = 2.0
    """How many times larger than after the resize a picture is decoded at least."""

    def _resized(self, image: JpegImageFile, data: bytes, size: Size) -> Image.Image | None:
        whole = image.size
        width, height = (math.ceil(self.margin * side) for side in size)
        drafted = image.draft(None, (width, height))
        if drafted is None or image.size == whole:
            return None
        # The last block of a scaled picture may reach beyond the source; the box does not.
        _, box = drafted
        sampling = Image.Resampling[self._resize.interpolation.name]
        return in_rgb(image).resize(size, sampling, box)


class TorchCodec(_Faster):
    """JPEGs of greys or RGB are decoded by TorchCodec, and resized, on the processor or a GPU."""

    name = "torchcodec"

    def __init__(self, steps: Sequence[Step], thumbnail_size: int, device: str = "cpu") -> None:
        """Raises `IndexingError` without the library, `ModelError` for a step that is not known."""
        super().__init__(steps, thumbnail_size)
        self._decode = _decode_jpeg()
        self._device = device
        self._own = threading.local()

    def _resized(self, image: JpegImageFile, data: bytes, size: Size) -> Image.Image | None:
        if image.mode not in ("RGB", "L") or not is_whole(data):
            return None
        on_gpu = self._device.startswith("cuda")
        if on_gpu and not (is_luminance_first(image) and has_sound_tables(data)):
            return None
        with self._stream():
            upright = _without_orientation(image, data)
            pixels = self._decode(upright, mode="RGB", device=self._device)  # (3, H, W) uint8
            how = self._resize.interpolation
            small: torch.Tensor = resize(pixels, [size[1], size[0]], how, antialias=True)
            return Image.fromarray(small.permute(1, 2, 0).cpu().numpy())

    def _stream(self) -> AbstractContextManager[Any]:
        """Each thread has one, so that it does not wait for the model where it fetches pixels."""
        if not self._device.startswith("cuda"):
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._own.stream)


DECODERS: tuple[type[Decoder], ...] = (Decoder, PillowDct, TorchCodec)
NAMES = tuple(decoder.name for decoder in DECODERS)


def check(name: str) -> None:
    """Raise `IndexingError` for a decoder that there is not, or not here."""
    if name not in NAMES:
        raise IndexingError(f"--decoder must be one of {', '.join(NAMES)}.")
    if name == TorchCodec.name:
        _decode_jpeg()


def make_decoder(name: str, steps: Sequence[Step], thumbnail_size: int, device: str) -> Decoder:
    """The decoder `name` of a run on `device`; raises as its class does."""
    if name == TorchCodec.name:
        return TorchCodec(steps, thumbnail_size, device if device.startswith("cuda") else "cpu")
    return next(each for each in DECODERS if each.name == name)(steps, thumbnail_size)


@lru_cache(1 << 14)
def resized(step: Any, size: Size) -> Size:
    """Width and height that a step of resizing makes of a picture of `size`, told by itself."""
    asked = copy.copy(step)
    # No pixel is moved on this device; even so a smooth filter takes a millisecond.
    asked.interpolation = InterpolationMode.NEAREST
    return size_of(asked(torch.empty((1, size[1], size[0]), device="meta")))


def _is_smooth(step: Any) -> bool:
    smooth = type(step) in _RESIZES and step.interpolation in _SMOOTH
    return smooth and getattr(step, "antialias", True) is True


def _without_orientation(image: JpegImageFile, data: bytes) -> bytes:
    """The same JPEG with its EXIF segments renamed: TorchCodec would turn the picture by them."""
    for name, payload in image.applist:
        if name == "APP1":
            rest = (len(payload) + 2).to_bytes(2, "big") + payload
            data = data.replace(b"\xff\xe1" + rest, b"\xff\xef" + rest, 1)
    return data


def _decode_jpeg() -> Callable[..., torch.Tensor]:
    try:
        decode: Callable[..., torch.Tensor] = import_module("torchcodec.decoders").decode_jpeg
    # Older versions decode no pictures; one built for another torch fails in ways of its own.
    except (ImportError, AttributeError, OSError, RuntimeError):
        raise IndexingError(
            "--decoder torchcodec needs TorchCodec 0.16 or newer, of the installed torch's time; "
            "install both with: pip install 'vitscope[torchcodec]'"
        ) from None
    return decode
