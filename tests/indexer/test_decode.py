"""Decoding: timm's own transform, and a reason for every bad file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pictures import BAD, jpeg, noise
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from vitscope.indexer.decode import Decoder


@pytest.fixture(scope="module")
def transform() -> Any:
    model = timm.create_model("test_vit", num_classes=0)
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    return create_transform(**config, is_training=False)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_pixels_are_those_of_the_whole_transform(transform: Any, mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    if mode == "I;16":
        picture = Image.fromarray(np.arange(70 * 90, dtype=np.uint16).reshape(70, 90) * 10)
    else:
        picture = noise(5).convert(mode)
    data = encoded(picture, kind)
    opened: Image.Image = Image.open(io.BytesIO(data))
    if mode == "I;16":
        opened = Image.fromarray((np.asarray(opened) // 256).astype(np.uint8))
    expected = transform(opened.convert("RGB"))
    found = Decoder(transform.transforms, 256)(data)
    assert found.reason == ""
    assert found.pixels is not None
    assert torch.equal(found.pixels, expected)


def test_the_thumbnail_is_what_the_model_sees(transform: Any) -> None:
    # Wide, and red outside of the centre square that the transform crops.
    picture = Image.new("RGB", (400, 100), "red")
    picture.paste("blue", (150, 0, 250, 100))
    found = Decoder(transform.transforms, 64)(encoded(picture, "PNG"))
    view = np.asarray(Image.open(io.BytesIO(found.thumbnail)).convert("RGB"))
    assert view.shape == (64, 64, 3)
    assert view[:, 8:-8].mean((0, 1))[2] > 200
    assert view[:, 8:-8].mean((0, 1))[0] < 50


def test_no_thumbnail_where_none_is_wanted(transform: Any) -> None:
    assert Decoder(transform.transforms, 0)(jpeg(noise(1))).thumbnail == b""


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_give_a_reason(transform: Any, name: str) -> None:
    found = Decoder(transform.transforms, 64)(BAD[name])
    assert found.pixels is None
    assert found.reason
    assert "0x" not in found.reason, "an address differs from run to run"
    assert len(found.sha256) == 64


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused(transform: Any) -> None:
    bomb = encoded(Image.new("1", (10_000, 10_000)), "PNG")
    found = Decoder(transform.transforms, 64)(bomb)
    assert found.pixels is None
    assert "pixels" in found.reason


def test_a_thread_of_a_picture_is_refused(transform: Any) -> None:
    # Resized to the model's input it would be 224 by 13 million pixels.
    found = Decoder(transform.transforms, 64)(encoded(Image.new("L", (1, 60_000)), "PNG"))
    assert found.pixels is None
    assert "1 x 60000 pixels" in found.reason


def test_the_orientation_tag_is_not_applied(transform: Any) -> None:
    picture = noise(3)
    tag = Image.Exif()
    tag[0x0112] = 6
    plain, rotated = (encoded(picture, "JPEG", exif=e) for e in (Image.Exif(), tag))
    decode = Decoder(transform.transforms, 0)
    first, second = decode(plain).pixels, decode(rotated).pixels
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_postscript_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand it to Ghostscript, which runs it as a program."""
    told = tmp_path / "told"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {told}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    found = Decoder([], 0)(data)
    assert found.reason == "the file is not an image that Pillow knows"
    assert not told.exists()
