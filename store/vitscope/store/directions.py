"""Directions that lie beside an index: probes, or the rows of a dictionary's decoder.

INDEX/directions/LAYER/NAME.npy holds floats (C,), one direction called NAME, or (D, C), of which
number i is called NAME/i. They are no part of any generation: nothing of them is published,
digested or checked before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.store import layout
from vitscope.store.errors import NotKeptError, StoreError
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord

_ENDING = ".npy"


class UnusableDirectionError(StoreError):
    """The file of a direction is not one, or does not fit its layer."""


@dataclass(frozen=True, slots=True)
class NamedDirections:
    """The directions of one file."""

    layer: str
    name: str
    count: int
    """0 where it is one direction, else how many there are."""


class Directions:
    """What lies beside an index at the moment it is asked for."""

    def __init__(self, generation: Generation) -> None:
        # INDEX/generations/NAME
        self._folder = generation.path.parents[1] / layout.DIRECTIONS

    def named(self, layer: LayerRecord) -> list[NamedDirections]:
        """Those of a layer, by name; files that cannot be used are left out."""
        found = []
        for name, path in self._files(layer).items():
            try:
                array = _opened(path, name, layer)
            except UnusableDirectionError:
                continue
            count = len(array) if array.ndim == 2 else 0
            found.append(NamedDirections(layer.name, name, count))
        return found

    def read(self, layer: LayerRecord, name: str) -> npt.NDArray[np.float64]:
        """The direction (C,) called `name`.

        Raises `NotKeptError` where there is none, `UnusableDirectionError` where its file is not
        what it has to be.
        """
        files = self._files(layer)
        if name in files:
            array = _opened(files[name], name, layer)
            if array.ndim == 2:
                raise NotKeptError(
                    f"{name!r} holds {len(array)} directions; choose one, from {name}/0 to "
                    f"{name}/{len(array) - 1}."
                )
            return _whole(array, name)
        stem, _, number = name.rpartition("/")
        if stem in files and number.isascii() and number.isdecimal():
            array = _opened(files[stem], stem, layer)
            # Of a long number only its length matters.
            if array.ndim == 2 and len(number) < 20 and int(number) < len(array):
                return _whole(array[int(number)], name)
        known = ", ".join(list(files)[:5]) + (", …" if len(files) > 5 else "")
        raise NotKeptError(
            f"there is no direction {name[:80]!r} of {layer.name}; "
            + (f"there are: {known}." if files else "none lies beside the index.")
        )

    def _files(self, layer: LayerRecord) -> dict[str, Path]:
        """By name, sorted; what is asked for is looked up here and never made into a path."""
        try:
            paths = sorted((self._folder / layer.name).iterdir())
        except OSError:
            return {}
        return {
            path.name.removesuffix(_ENDING): path
            for path in paths
            if path.name.endswith(_ENDING) and _sayable(path.name) and path.is_file()
        }


def _sayable(name: str) -> bool:
    """Whether a file's name is text, and not hidden."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not name.startswith(".")


def _opened(path: Path, name: str, layer: LayerRecord) -> npt.NDArray[Any]:
    """The array of a file, (C,) or (D, C), of which nothing is read yet."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    # What reads a header runs Python's own parser, and raises whatever that does on bad bytes.
    except Exception as error:
        raise UnusableDirectionError(
            f"the file of {name!r} is not readable as a NumPy array; save it anew with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UnusableDirectionError(
            f"the file of {name!r} holds no floats; save an array of them with numpy.save."
        )
    if array.ndim not in (1, 2) or array.shape[-1] != layer.channels or not len(array):
        shape = " x ".join(map(str, array.shape)) or "no axis"
        raise UnusableDirectionError(
            f"the array of {name!r} has the shape {shape}; directions of {layer.name} have "
            f"{layer.channels} channels along the last of one or two axes."
        )
    return array


def _whole(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        direction = np.array(array, np.float64)
    if not np.isfinite(direction).all():
        raise UnusableDirectionError(
            f"the direction {name!r} has weights that are not finite; save it without them."
        )
    return direction
