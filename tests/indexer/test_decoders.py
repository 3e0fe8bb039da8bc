"""Faster decoders: nearly the reference's pixels, and everything else as the reference has it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import BAD, jpeg, noise
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from runs import tiny, write_mixed
from timm.data.transforms import ResizeKeepRatio
from timm.data.transforms_factory import create_transform
from torchvision import transforms

from vitscope.indexer.decode import Decoder, Picture
from vitscope.indexer.decoders import PillowDct, TorchCodec, check, make_decoder, resized
from vitscope.indexer.errors import IndexingError, OutputError
from vitscope.indexer.jpeg import has_sound_tables, is_luminance_first, is_whole
from vitscope.indexer.run import index
from vitscope.store.generation import open_generation

MEAN = STD = (0.5, 0.5, 0.5)
TRANSFORMS: dict[str, dict[str, Any]] = {
    "square": {"input_size": (3, 32, 32), "crop_pct": 0.875},
    "bilinear": {"input_size": (3, 33, 33), "interpolation": "bilinear"},
    "wide": {"input_size": (3, 32, 48), "crop_pct": 1.0},
    "squash": {"input_size": (3, 32, 40), "crop_mode": "squash"},
    "border": {"input_size": (3, 32, 32), "crop_mode": "border"},
}
SIZES = [(400, 300), (401, 299), (333, 517), (1201, 150), (150, 1201)]
"""Width and height, all large enough to be scaled, most not divisible by anything."""
NAMES = ["pillow-dct", "torchcodec"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec")
    return str(request.param)


def steps(**options: Any) -> Any:
    given = {"input_size": (3, 32, 32), "interpolation": "bicubic", **options}
    return create_transform(**given, mean=MEAN, std=STD, is_training=False).transforms


def photograph(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth colours with grain on them, as a camera gives them."""
    smooth = np.asarray(noise(seed, size[1], size[0])).astype(np.float32)
    grain = np.random.default_rng(seed).normal(0, 12, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def both(name: str, data: bytes, **options: Any) -> tuple[Picture, Picture]:
    """The picture by the reference and by the decoder `name`."""
    same = steps(**options)
    return Decoder(same, 24)(data), make_decoder(name, same, 24, "cpu")(data)


def off_by(one: Picture, other: Picture) -> torch.Tensor:
    """How far the inputs are apart, on the scale of 0 to 255."""
    assert one.pixels is not None
    assert other.pixels is not None
    assert other.pixels.dtype == torch.float32
    return (one.pixels - other.pixels).abs() * 127.5


def assert_same_but_for_pixels(one: Picture, other: Picture) -> None:
    assert (one.reason, one.size, one.view) == (other.reason, other.size, other.view)
    assert one.sha256 == other.sha256
    small, same = (np.asarray(Image.open(io.BytesIO(each.thumbnail))) for each in (one, other))
    assert small.shape == same.shape
    assert abs(small.astype(int) - same).mean() < 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_size_view_and_nearly_the_pixels_are_the_reference_s(
    name: str, kind: str, size: tuple[int, int]
) -> None:
    expected, found = both(name, encoded(photograph(size)), **TRANSFORMS[kind])
    assert found.size == size
    assert_same_but_for_pixels(expected, found)
    apart = off_by(expected, found)
    # A shift by half an input pixel would be 4 of 255 in the mean.
    assert apart.mean() < 1
    assert apart.max() < 12


@pytest.mark.parametrize(
    ("size", "scale"),
    [((127, 400), 1), ((128, 400), 2), ((255, 300), 2), ((256, 256), 4), ((1000, 512), 8)],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_leaves_twice_the_size(
    size: tuple[int, int], scale: int
) -> None:
    """By hand: the transform resizes the shorter side to 32."""
    data = encoded(photograph(size))
    image = Image.open(io.BytesIO(data))
    image.draft(None, (size[0] // scale, size[1] // scale))
    assert image.width == -(-size[0] // scale)
    box = (0, 0, size[0] / scale, size[1] / scale)
    width, height = transforms.Resize(32)(Image.new("L", size)).size
    small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, box)
    same = steps(crop_pct=1.0)
    expected: Any = small
    for step in same[1:]:
        expected = step(expected)
    found = PillowDct(same, 0)(data).pixels
    assert found is not None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [*SIZES, (32, 32), (20, 31), (2, 90), (7, 5)])
def test_a_step_tells_the_size_that_it_resizes_to(size: tuple[int, int]) -> None:
    made: Any = ResizeKeepRatio
    whole = [transforms.Resize(37), transforms.Resize((30, 50))]
    for step in (*whole, made((32, 48)), made(33, longest=1.0)):
        assert resized(step, size) == step(Image.new("L", size)).size


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "grey": lambda image: encoded(image.convert("L")),
    "cmyk": lambda image: encoded(image.convert("CMYK")),
    "progressive": lambda image: encoded(image, progressive=True),
    "full colour": lambda image: encoded(image, subsampling=0),
    "rgb": lambda image: encoded(image, keep_rgb=True),
    "two pictures": lambda image: encoded(image, "MPO", save_all=True, append_images=[image]),
    "more behind": lambda image: encoded(image) + b"more" * 99,
    "turned": lambda image: encoded(image, exif=turned()),
    "turned, with a comment": lambda image: encoded(image, exif=turned(), comment=b"\xff\xe1"),
}
"""JPEGs that many readers stumble over."""


def turned() -> Image.Exif:
    tag = Image.Exif()
    tag[0x0112] = 6
    return tag


@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_of_all_kinds_are_read_as_by_the_reference(name: str, kind: str) -> None:
    expected, found = both(name, KINDS[kind](photograph((420, 310))))
    assert expected.reason == ""
    assert_same_but_for_pixels(expected, found)
    assert off_by(expected, found).mean() < 1


@pytest.mark.parametrize("kind", ["cmyk", "more behind"])
def test_what_a_gpu_might_read_otherwise_is_read_by_the_reference(kind: str) -> None:
    pytest.importorskip("torchcodec")
    expected, found = both("torchcodec", KINDS[kind](photograph((420, 310))))
    assert torch.equal(*pixels(expected, found))
    usual = both("torchcodec", KINDS["rgb"](photograph((420, 310))))
    assert not torch.equal(*pixels(*usual)), "nothing would be told apart"


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"])
def test_other_formats_are_read_by_the_reference(name: str, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.arange(700 * 90, dtype=np.uint16).reshape(700, 90))
    else:
        image = photograph((300, 400)).convert(mode)
    expected, found = both(name, encoded(image, "PNG"))
    assert torch.equal(*pixels(expected, found))
    assert expected.thumbnail == found.thumbnail


def pixels(one: Picture, other: Picture) -> tuple[torch.Tensor, torch.Tensor]:
    assert one.pixels is not None
    assert other.pixels is not None
    return one.pixels, other.pixels


@pytest.mark.parametrize("how", ["lanczos", "nearest"])
def test_other_filters_are_the_reference_s(name: str, how: str) -> None:
    expected, found = both(name, encoded(photograph((400, 300))), interpolation=how)
    assert torch.equal(*pixels(expected, found))


def test_what_is_cut_off_before_the_resize_is_decoded_in_full(name: str) -> None:
    expected, found = both(name, encoded(photograph((400, 300))), crop_border_pixels=5)
    assert expected.view is not None
    assert expected.view[1] > 0
    assert torch.equal(*pixels(expected, found))
    assert found.view == expected.view


WHOLE = encoded(photograph((420, 310)))
UNREADABLE = {
    **BAD,
    "half": WHOLE[: len(WHOLE) // 2],
    "without an end": WHOLE[:-2],
    "bomb": encoded(Image.new("1", (10_000, 10_000)), "PNG"),
    "jpeg bomb": encoded(Image.new("L", (12_000, 8_000))),
    "thread": encoded(Image.new("L", (4_000, 2))),
    "flipped": WHOLE[:200] + b"\xff\xd8\xff" + WHOLE[203:],
    "half, with an end": WHOLE[: len(WHOLE) // 2] + b"\xff\xd9",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_bad_pictures_have_the_reference_s_reason(name: str, kind: str) -> None:
    expected, found = both(name, UNREADABLE[kind])
    assert (found.reason, found.size, found.view) == (expected.reason, expected.size, expected.view)
    assert (found.pixels is None) == (expected.pixels is None)
    assert bool(expected.reason) == (kind != "half, with an end")


def test_a_picture_that_is_resized_to_nothing_has_the_reference_s_reason(name: str) -> None:
    expected, found = both(name, encoded(Image.new("L", (1, 90))), **TRANSFORMS["border"])
    assert expected.reason
    assert found.reason == expected.reason


def test_a_decoder_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexingError, match=r"must be one of pillow, pillow-dct, torchcodec\.$"):
        index(tiny(tmp_path, tmp_path / "index", decoder="turbo"))


def test_a_missing_library_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(IndexingError, match=r"install both with: pip install 'vitscope\[torchco"):
        check("torchcodec")
    check("pillow-dct")


def test_an_index_names_its_decoder_and_keeps_to_it(tmp_path: Path, name: str) -> None:
    write_mixed(tmp_path / "pictures", 9)
    (tmp_path / "pictures" / "large.jpg").write_bytes(WHOLE)
    base = tiny(tmp_path / "pictures", tmp_path / "index", decoder=name)
    index(base)
    index(replace(base, decoder="pillow", out=tmp_path / "reference"))
    found, expected = (open_generation(tmp_path / each) for each in ("index", "reference"))
    assert (found.manifest.model.decoder, expected.manifest.model.decoder) == (name, "pillow")
    assert found.manifest.rows == expected.manifest.rows == 10
    for row in range(10):
        assert found.rows.record(row) == expected.rows.record(row)
    row = [found.rows.key(row) for row in range(10)].index("large.jpg")
    ours, theirs = (each.scores("blocks.1.mlp", "mean", 3) for each in (found, expected))
    np.testing.assert_allclose(ours, theirs, atol=0.05)
    assert np.isfinite(ours[row])
    (tmp_path / "pictures" / "new.jpg").write_bytes(jpeg(noise(99)))
    with pytest.raises(OutputError, match=rf"--decoder {name} \(not pillow\)"):
        index(replace(base, decoder="pillow", append=True))
    index(replace(base, append=True))


def test_a_run_is_not_resumed_with_another_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mixed(tmp_path / "pictures", 9)
    base = tiny(tmp_path / "pictures", tmp_path / "index")

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitscope.indexer.run.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            index(base)
    said = re.escape("--decoder pillow (not pillow-dct)")
    with pytest.raises(OutputError, match=said):
        index(replace(base, decoder="pillow-dct"))
    index(base)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_is_given_what_libjpeg_takes_for_luminance_and_colours(kind: str) -> None:
    """What libjpeg itself finds: without a conversion, its components are those of RGB."""
    data = KINDS[kind](photograph((420, 310)))
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, JpegImageFile)
        assert is_luminance_first(image) == (kind != "rgb")
    assert is_whole(data) == (kind != "more behind")
    assert has_sound_tables(data)


def test_names_of_components_tell_rgb_where_no_marker_does() -> None:
    image: Any = Image.open(io.BytesIO(encoded(photograph((64, 64)), keep_rgb=True)))
    assert is_luminance_first(image) is False
    del image.info["adobe"], image.info["adobe_transform"]
    assert is_luminance_first(image) is False
    image.layer = [(number, *component[1:]) for number, component in enumerate(image.layer, 1)]
    assert is_luminance_first(image) is True
    image.info |= {"adobe": 100, "adobe_transform": 1}
    assert is_luminance_first(image) is True


@settings(max_examples=300)
@given(st.integers(5, 32), st.integers(0, 255))
def test_tables_are_sound_where_libjpeg_takes_them(place: int, byte: int) -> None:
    """One byte of the first Huffman table changed, of its 16 counts or its 12 symbols."""
    start = WHOLE.index(b"\xff\xc4")
    data = bytearray(WHOLE)
    data[start + place] = byte
    assert has_sound_tables(bytes(data)) == (not Decoder(steps(), 24)(bytes(data)).reason)


@pytest.mark.parametrize("header", [0x20, 0x04, 0xFF])
def test_tables_that_there_are_not_are_refused_as_by_libjpeg(header: int) -> None:
    """Of another class than of DC and AC, or a fifth one."""
    data = bytearray(WHOLE)
    data[WHOLE.index(b"\xff\xc4") + 4] = header
    assert not has_sound_tables(bytes(data))
    assert Decoder(steps(), 24)(bytes(data)).reason


def test_tables_of_which_all_codes_are_taken_are_refused_as_by_libjpeg() -> None:
    """Two codes of one bit leave none that continues."""
    start = WHOLE.index(b"\xff\xc4") + 5
    full = bytes([2, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0])
    data = WHOLE[:start] + full + WHOLE[start + 16 :]
    assert not has_sound_tables(data)
    assert Decoder(steps(), 24)(data).reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_pictures_are_nearly_those_of_the_processor(kind: str) -> None:
    pytest.importorskip("torchcodec")
    same, data = steps(), KINDS[kind](photograph((420, 310)))
    expected, found = Decoder(same, 24)(data), TorchCodec(same, 24, "cuda")(data)
    assert_same_but_for_pixels(expected, found)
    assert off_by(expected, found).mean() < 2
    assert found.pixels is not None
    assert found.pixels.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_on_cuda_bad_pictures_have_the_reference_s_reason(kind: str) -> None:
    pytest.importorskip("torchcodec")
    same, data = steps(), UNREADABLE[kind]
    assert TorchCodec(same, 24, "cuda")(data).reason == Decoder(same, 24)(data).reason
