"""Scenes as a folder of pictures with their ground truth beside them.

::

    folder/images/<class>/scene_000123.png    the pictures, one folder for each class
    folder/truth.json                         class, background and box of each picture
    folder/masks.npz                          which pixels the object covers, packed

A picture's key is its path below ``images``, such as ``red-plain-disc/scene_000009.png``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitscope.indexer.scenes.catalogue import CLASSES, plan_scene
from vitscope.indexer.scenes.render import SIZE, Scene, render_scene

_FORMAT = 1


@dataclass(frozen=True)
class SceneTruth:
    """What one stored picture shows; ``box`` is ``(x0, y0, x1, y1)`` in pixels, half-open."""

    key: str
    index: int
    label: str
    background: str
    box: tuple[int, int, int, int]


def scene_key(index: int, label: str) -> str:
    """The path of a scene's picture below ``images``, with forward slashes."""
    return f"{label}/scene_{index:06d}.png"


def write_scenes(
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    size: int = SIZE,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write scenes 0 to ``count`` of the set ``seed`` as ``size`` x ``size`` PNG pictures.

    Writing the same set again changes nothing, and completes a set that was cut short; a larger
    ``count`` adds to the set. ``progress`` is told after each scene how many are done. Raises
    ``ValueError``, with the folder left alone, where it holds anything that is not in this set.
    """
    if count < 1:
        raise ValueError(f"a set holds at least one scene, not {count}")
    keys = [scene_key(i, plan_scene(i, seed=seed).label) for i in range(count)]
    if _is_complete(folder, keys, seed, size):
        if progress is not None:
            progress(count)
        return
    for label in CLASSES:
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").unlink(missing_ok=True)  # it vouches for what is rewritten below
    truths: list[SceneTruth] = []
    masks = np.empty((count, (size * size + 7) // 8), dtype=np.uint8)
    for index, key in enumerate(keys):
        scene = render_scene(index, seed=seed, size=size)
        # Noise hardly compresses: the fastest level costs a few per cent in bytes.
        Image.fromarray(scene.image).save(folder / "images" / key, compress_level=1)
        masks[index] = np.packbits(scene.mask)
        truths.append(_truth(scene, key))
        if progress is not None:
            progress(index + 1)
    np.savez_compressed(folder / "masks.npz", masks=masks)
    _write_truth(folder, truths, seed, size)


def read_truth(folder: Path) -> tuple[SceneTruth, ...]:
    """The ground truth of every picture that ``write_scenes`` put there, by index."""
    return tuple(
        SceneTruth(
            key=key,
            index=int(entry["index"]),
            label=str(entry["label"]),
            background=str(entry["background"]),
            box=_box(entry["box"]),
        )
        for key, entry in _load(folder)["scenes"].items()
    )


def read_masks(folder: Path) -> dict[str, NDArray[np.bool_]]:
    """The mask ``(Y, X)`` bool of every picture by key: true where the object covers it."""
    document = _load(folder)
    size = int(document["size"])
    with np.load(folder / "masks.npz") as stored:
        flat = np.unpackbits(stored["masks"], axis=1, count=size * size)
    shaped = flat.reshape(-1, size, size).astype(np.bool_)
    return dict(zip(document["scenes"], shaped, strict=True))


def _truth(scene: Scene, key: str) -> SceneTruth:
    return SceneTruth(key, scene.index, scene.label, scene.background, scene.box)


def _box(values: list[int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = values
    return x0, y0, x1, y1


def _is_complete(folder: Path, keys: list[str], seed: int, size: int) -> bool:
    """Whether the folder holds exactly this set; ``ValueError`` where it holds something else."""
    images = folder / "images"
    present = {path.relative_to(images).as_posix() for path in images.glob("*/*")}
    strangers = present.difference(keys)
    if strangers:
        raise ValueError(f"{images} holds {min(strangers)}, which is not in the set asked for")
    if not (folder / "truth.json").exists():
        return False
    document = _load(folder)
    if (document["seed"], document["size"]) != (seed, size):
        raise ValueError(
            f"{folder} holds scenes of seed {document['seed']} and size {document['size']},"
            f" not of seed {seed} and size {size}"
        )
    whole = len(present) == len(keys) == len(document["scenes"])
    return whole and (folder / "masks.npz").exists()


def _load(folder: Path) -> dict[str, Any]:
    """The parsed truth file; ``ValueError`` where it is of another format."""
    path = folder / "truth.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a truth file of format {_FORMAT}")
    return document


def _write_truth(folder: Path, truths: list[SceneTruth], seed: int, size: int) -> None:
    """Write the truth file last and at once: where it stands, the rest is complete."""
    scenes = {
        truth.key: {
            "index": truth.index,
            "label": truth.label,
            "background": truth.background,
            "box": truth.box,
        }
        for truth in truths
    }
    document = {"format": _FORMAT, "seed": seed, "size": size, "scenes": scenes}
    draft = folder / "truth.json.part"
    draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, folder / "truth.json")
