"""A folder of the exemplars of channels: pictures, masks, overlays and what they are, as JSON."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitscope.client.client import Client
from vitscope.client.commands import _common, _export
from vitscope.client.commands.top_images import ranking, ranking_told
from vitscope.client.entries import PatchGrid, ScoredImage
from vitscope.client.errors import UsageError
from vitscope.client.files import folder_target, is_partial, write_atomically
from vitscope.client.pictures import decode, mask, overlay, png_bytes
from vitscope.client.progress import Progress
from vitscope.client.results import Image, Index, TopImages

EXPORT = "export.json"
"""What the folder is an export of; the first file of it that is written."""
EXEMPLARS = "exemplars.json"
"""What the files of a channel are; the last one of it that is written."""
_PICTURES_AT_ONCE = 256


def export(args: argparse.Namespace) -> None:
    """Write the folder, or what is missing of it."""
    with _common.connect(args) as client:
        index = client.index(args.index)
        channels = _export.chosen_channels(index, args)
        told = {**_export.described(index), "layer": args.layer, "channels": channels}
        # One answer at least, before anything is written.
        first = _top(client, args, index, channels[0])
        folder = _begun(args.out, {**told, **ranking_told(args)})
        progress = Progress("channels", len(channels))
        for channel in channels:
            target = folder / f"channel_{channel:05d}"
            if not (target / EXEMPLARS).is_file():
                top = first if channel == channels[0] else _top(client, args, index, channel)
                _write_channel(client, args, index, top, folder_target(str(target)))
            progress.advance(1)
        progress.finish()
    _common.report_written(folder)


def _top(client: Client, args: argparse.Namespace, index: Index, channel: int) -> TopImages:
    top = client.top_images(args.layer, channel, maps=True, **ranking(args))
    _export.require_generation(index, top.generation)
    return top


def _begun(name: str, told: Mapping[str, object]) -> Path:
    """The folder, which is empty or holds a part of this very export."""
    folder = folder_target(name)
    note = folder / EXPORT
    text = _json(told)
    try:
        if note.is_file():
            if note.read_bytes() != text:
                raise UsageError(
                    f"{name} holds another export ({_difference(note.read_bytes(), told)}); name "
                    "another folder for --out."
                )
        elif any(not is_partial(path) for path in folder.iterdir()):
            raise UsageError(f"{name} is not empty; name a new folder for --out.")
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror}.") from None
    write_atomically(note, text)
    return folder


def _difference(data: bytes, told: Mapping[str, object]) -> str:
    """By what an earlier export differs from this one."""
    try:
        earlier = json.loads(data)
        names = [name for name in told if earlier.get(name) != json.loads(_json(told))[name]]
    except (ValueError, AttributeError):
        names = []
    return f"its {names[0]} differs" if names else "its description is damaged"


def _write_channel(
    client: Client, args: argparse.Namespace, index: Index, top: TopImages, folder: Path
) -> None:
    maps = top.maps
    by_row = {} if maps is None else dict(zip(maps.rows.tolist(), maps.values, strict=True))
    grid = None if maps is None else maps.grid
    finite = [values[np.isfinite(values)] for values in by_row.values()]
    hottest = max(0.0, *(float(each.max()) for each in finite if each.size), 0.0)
    ranks = range(len(top.images))
    described = []
    for some in _export.in_blocks(ranks, _PICTURES_AT_ONCE):
        ranked = [top.images[rank] for rank in some]
        pictures = client.images([image.row for image in ranked], index=args.index)
        for rank, image, picture in zip(some, ranked, pictures, strict=True):
            _export.require_generation(index, picture.generation)
            stem = f"{rank + 1:04d}_row_{image.row:09d}"
            values = by_row.get(image.row)
            drawn = _draw(picture, values, grid, hottest, folder / stem)
            described.append({"rank": rank + 1, **_described(image), **drawn})
    told: dict[str, object] = {
        **_export.described(index),
        "layer": top.layer,
        "channel": top.channel,
        **ranking_told(args),
        "candidates": top.candidates,
        "grid": None if grid is None else asdict(grid),
        "overlay_scale": [0.0, hottest],
        "images": described,
    }
    write_atomically(folder / EXEMPLARS, _json(told))


def _described(image: ScoredImage) -> dict[str, object]:
    [told] = _common.ranking_json([image])
    return told


def _draw(
    image: Image,
    values: NDArray[np.float16] | None,
    grid: PatchGrid | None,
    hottest: float,
    stem: Path,
) -> dict[str, object]:
    """Write the picture, the mask and the overlay that there can be, and say which these are."""
    files: dict[str, Any] = {"picture": None, "mask": None, "overlay": None, "mask_scale": None}
    pixels = None
    if image.jpeg:
        pixels = decode(image.jpeg)
        files["picture"] = _write(stem, ".jpg", image.jpeg)
    if values is None:
        return files
    known = values[np.isfinite(values)].astype(np.float64)
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    if pixels is not None:
        height, width = pixels.shape[:2]
    else:
        height, width = (grid.input_height, grid.input_width) if grid else values.shape
    grey = mask(values, height, width, low=low, high=high, grid=grid)
    files["mask"] = _write(stem, "_mask.png", png_bytes(grey))
    files["mask_scale"] = [low, high]
    if pixels is not None:
        laid = overlay(pixels, values, top=hottest, grid=grid)
        files["overlay"] = _write(stem, "_overlay.png", png_bytes(laid))
    return files


def _write(stem: Path, ending: str, data: bytes) -> str:
    path = stem.with_name(stem.name + ending)
    write_atomically(path, data)
    return path.name


def _json(told: Mapping[str, object]) -> bytes:
    finite = _common.finite(told)
    return (json.dumps(finite, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()
