"""What of a picture the model sees: asked of pictures whose pixels say where they lie.

The oracle is a picture of floats, each pixel 1,000 and its own x (or y), through a transform that
timm makes: resizing keeps such a ramp a ramp (to a twentieth of the new pixels, since filters
are sampled), so the model's input says itself where it came from.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
from PIL import Image
from runs import tiny
from timm.data.config import resolve_data_config
from timm.data.transforms import RandomCropOrPad
from timm.data.transforms_factory import create_transform, transforms_imagenet_eval
from timm.models import get_pretrained_cfg
from torchvision import transforms

from vitscope.indexer.decode import Decoder
from vitscope.indexer.errors import ModelError
from vitscope.indexer.run import index
from vitscope.indexer.view import check_steps
from vitscope.store.generation import open_generation
from vitscope.store.geometry import Rectangle

BASE = 1000.0
SIZES = [
    (64, 64), (65, 64), (64, 65), (97, 53), (53, 97), (500, 375), (375, 500), (333, 334),
    (1200, 90), (90, 1200), (40, 40), (41, 39), (30, 200), (201, 31), (640, 427),
]  # fmt: skip
"""Width and height: even and odd, large and small, wide and tall."""
INPUTS = [(32, 32), (33, 33), (48, 32), (32, 49), (75, 120)]
"""Height and width of the model's input."""


def evaluation(channels: int, **options: Any) -> Any:
    """timm's evaluation transform; what it pads with has the value 128, so far below `BASE`."""
    half = (0.5,) * channels
    return transforms_imagenet_eval(mean=half, std=half, **options)


def origins(transform: Callable[[Any], Any], size: tuple[int, int], axis: int) -> Any:
    """Where every line along an axis of the input lies in a picture of `size`: (n,) float64.

    In pixels of the picture, middles at .5; NaN near its edges, where resizing bends the ramp,
    and beyond them. `axis` 0 is x, 1 is y.
    """
    ramp = BASE + np.arange(size[axis]) + 0.5
    picture = np.tile(ramp, (size[1], 1)) if axis == 0 else np.tile(ramp[:, None], (1, size[0]))
    pixels = transform(Image.fromarray(picture.astype(np.float32)))[0].numpy() * 0.5 + 0.5
    # Padded lines, and some at the other axis' edges, say nothing: the middle one knows all.
    middle = pixels[pixels.shape[0] // 2] if axis == 0 else pixels[:, pixels.shape[1] // 2]
    found = middle.astype(np.float64) - BASE
    bent = 3 * max(1.0, np.diff(found[found > -BASE / 2]).max(initial=0))
    found[(found < bent) | (found > size[axis] - bent)] = np.nan
    return found


def check(found: npt.NDArray[np.float64], view: tuple[float, float], what: str) -> None:
    """A view puts every line of an input where it came from.

    To a tenth of an input pixel: rounding any size or offset another way is half of one at least.
    """
    pixel = (view[1] - view[0]) / len(found)
    lines = view[0] + pixel * (np.arange(len(found)) + 0.5)
    told = np.isfinite(found)
    np.testing.assert_allclose(lines[told], found[told], rtol=0, atol=0.1 * pixel, err_msg=what)


def seen(steps: Any, size: tuple[int, int]) -> Rectangle:
    out = io.BytesIO()
    Image.new("RGB", size, "teal").save(out, "PNG")
    picture = Decoder(steps, 0)(out.getvalue())
    assert picture.reason == ""
    assert picture.size == size
    assert picture.view is not None
    return picture.view


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 0.9])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("img_size", INPUTS, ids=str)
def test_the_view_is_where_the_pixels_came_from(
    img_size: tuple[int, int], crop_mode: str, crop_pct: float, interpolation: str
) -> None:
    options: dict[str, Any] = {
        "img_size": img_size,
        "crop_mode": crop_mode,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }
    told = evaluation(1, **options)
    steps = evaluation(3, **options).transforms
    checked = 0
    for size in SIZES:
        x0, y0, x1, y1 = seen(steps, size)
        for axis, view in enumerate([(x0, x1), (y0, y1)]):
            found = origins(told, size, axis)
            check(found, view, f"{size}, axis {axis}")
            checked += np.isfinite(found).sum() > len(found) / 4
    assert checked > len(SIZES)


def test_the_view_through_a_trimmed_border() -> None:
    options: dict[str, Any] = {"img_size": (32, 40), "crop_border_pixels": 7}
    told, steps = evaluation(1, **options), evaluation(3, **options).transforms
    for size in SIZES[:10]:
        x0, y0, x1, y1 = seen(steps, size)
        check(origins(told, size, 0), (x0, x1), f"{size}, x")
        check(origins(told, size, 1), (y0, y1), f"{size}, y")


@pytest.mark.parametrize("size", [(20, 20), (21, 18), (15, 60), (60, 15), (40, 31), (31, 33)])
def test_pictures_that_are_too_small_are_padded(size: tuple[int, int]) -> None:
    """A centre crop alone, without a resize before it: padding on the shorter sides."""
    crop = transforms.Compose([transforms.CenterCrop((32, 33)), transforms.ToTensor()])
    shown = seen(
        [*evaluation(3, img_size=9).transforms[-2:], transforms.CenterCrop((32, 33))], size
    )
    for axis, view in enumerate([(shown[0], shown[2]), (shown[1], shown[3])]):
        ramp = np.arange(size[axis], dtype=np.float32) + BASE
        picture = np.tile(ramp, (size[1], 1)) if axis == 0 else np.tile(ramp[:, None], (1, size[0]))
        values = crop(Image.fromarray(picture))[0].numpy().max(axis)
        first = int(np.argmax(values > 0))
        assert view[0] == values[first] - BASE - first
        assert view[1] - view[0] == len(values)


def test_steps_that_are_not_known_are_refused() -> None:
    known = evaluation(3, img_size=32).transforms

    class MyCrop(transforms.CenterCrop):  # type: ignore[misc]
        """May do anything."""

    for step in (RandomCropOrPad(32), transforms.RandomHorizontalFlip(), MyCrop(32), abs):
        with pytest.raises(ModelError, match=r"has the step \w+, and which pixels") as caught:
            Decoder([known[0], step, *known[1:]], 64)
        assert str(caught.value).count(".") == 1


def test_they_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(**config: Any) -> Any:
        return transforms.Compose([RandomCropOrPad(9), *create_transform(**config).transforms])

    monkeypatch.setattr("vitscope.indexer.model.create_transform", create)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "a.png")
    with pytest.raises(ModelError, match="has the step RandomCropOrPad, and"):
        index(tiny(tmp_path / "pictures", tmp_path / "index"))
    assert not (tmp_path / "index").exists()


def test_every_transform_of_timms_own_models_is_known() -> None:
    names = timm.list_pretrained()
    assert len(names) > 1000
    for name in names:
        known: Any = get_pretrained_cfg(name)
        config: Any = resolve_data_config(pretrained_cfg=known.to_dict())  # type: ignore[no-untyped-call]
        check_steps(create_transform(**config, is_training=False).transforms)


def test_an_invalid_picture_has_no_view() -> None:
    steps = evaluation(3, img_size=32).transforms
    assert Decoder(steps, 0)(b"no picture").view is None


def test_a_view_is_kept_as_float32() -> None:
    steps = evaluation(3, img_size=(32, 48), crop_pct=0.9).transforms
    view = seen(steps, (333, 334))
    assert view == tuple(np.array(view, np.float32).tolist())


def test_an_index_holds_the_view_of_every_picture(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    sizes = [(90, 40), (40, 90), (57, 57), (300, 41)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "teal").save(pictures / f"{number}.png")
    (pictures / "bad.png").write_bytes(b"no picture")
    index(tiny(pictures, tmp_path / "index"))
    table = open_generation(tmp_path / "index").rows
    for row, (width, height) in enumerate(sizes):
        x0, y0, x1, y1 = table.view(row) or pytest.fail("no view")
        # A square in the middle, to a pixel of the resized picture.
        pixel = min(width, height) / 32
        assert x1 - x0 == pytest.approx(y1 - y0, abs=pixel)
        assert (x0 + x1) / 2 == pytest.approx(width / 2, abs=pixel)
        assert (y0 + y1) / 2 == pytest.approx(height / 2, abs=pixel)
        assert 0.8 * min(width, height) < x1 - x0 < min(width, height) + pixel
    assert table.view(4) is None
