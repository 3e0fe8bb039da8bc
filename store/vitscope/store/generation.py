"""Opening an index and reading a published generation of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt

from vitscope.store import layout
from vitscope.store.arrays import Array, open_array
from vitscope.store.errors import DamagedIndexError, NotAnIndexError, NotKeptError
from vitscope.store.files import sha256_bytes
from vitscope.store.manifest import LayerRecord, Manifest, Pooling
from vitscope.store.neighbours import Neighbours, load
from vitscope.store.rows import RowTable
from vitscope.store.statistics import ScoreStatistics, read_statistics

_NAME = re.compile(r"(\d{6})-([0-9a-f]{16})")


def generation_name(number: int, manifest: bytes) -> str:
    """Name of the generation with this manifest: its ordinal and part of the digest."""
    return f"{number:06d}-{sha256_bytes(manifest)[:16]}"


def generation_names(folder: Path) -> list[str]:
    """Names of the generations in `folder`, oldest first; anything else there is passed over."""
    return sorted(path.name for path in folder.glob("*") if _NAME.fullmatch(path.name))


def open_generation(index: Path) -> Generation:
    """Open the published generation of the index at `index`, read-only.

    Raises `NotAnIndexError` where nothing is published there, `UnsupportedFormatError` for a
    format this reader does not know, `DamagedIndexError` where the manifest is not what was
    published.
    """
    return Generation(index / layout.GENERATIONS / current_name(index))


def current_name(index: Path) -> str:
    """Name of the published generation of the index at `index`."""
    if not index.is_dir():
        raise NotAnIndexError(f"{index} is not a folder; give the folder of an index.")
    pointer = index / layout.CURRENT
    if not pointer.is_file():
        if (index / layout.WORK).is_dir():
            raise NotAnIndexError(
                f"The index {index} is not finished; run the same `vitscope index` command again."
            )
        raise NotAnIndexError(f"{index} is not an index; `vitscope index` makes one.")
    name = pointer.read_bytes()[:64].decode(errors="replace").strip()
    if not _NAME.fullmatch(name):
        raise DamagedIndexError(f"{layout.CURRENT} of the index {index} is damaged.")
    return name


class Generation:
    """One published version of an index; safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The generation's folder."""
        self.name = path.name
        """Its name, which every answer carries."""
        self.manifest = _read_manifest(path)
        # A lost array must not read as a picture without boxes: the manifest knows.
        has_boxes = layout.BOX_EDGES in self.manifest.files
        self.rows = RowTable(layout.rows_path(path), self._open, has_boxes=has_boxes)
        self._layers = {layer.name: layer for layer in self.manifest.layers}
        # Caches of this object, so that they go when it goes.
        self._array: Callable[[str, str], Array] = cache(self._open_of_layer)
        self._neighbours: dict[str, Neighbours] = {}
        self._neighbours_lock = Lock()

    def layer(self, name: str) -> LayerRecord:
        """The layer called `name`; raises `NotKeptError` where there is none."""
        if name not in self._layers:
            close = difflib.get_close_matches(name, self._layers, n=1)
            known = f"did you mean {close[0]}?" if close else f"it has {self._span}."
            raise NotKeptError(f"The index has no layer {name[:80]!r}; {known}")
        return self._layers[name]

    def scores(self, layer: str, pooling: Pooling, channel: int) -> npt.NDArray[np.float16]:
        """Scores of one channel on every image: (N,); NaN on invalid rows."""
        return self._array(layer, layout.scores_name(pooling)).read(channel)

    def image_scores(self, layer: str, pooling: Pooling, row: int) -> npt.NDArray[np.float16]:
        """Scores of all channels on one image: (C,); NaN on an invalid row."""
        return self._array(layer, layout.row_scores_name(pooling)).read(row)

    def statistics(self, layer: str, pooling: Pooling) -> ScoreStatistics:
        """Moments and quantiles of every channel's scores over the valid images."""
        return read_statistics(layout.layer_path(self.path, layer), pooling, self._open)

    def correlation(self, layer: str, channel: int) -> npt.NDArray[np.float32]:
        """Correlation (C,) of a channel's mean-pooled scores with those of all of its layer."""
        return self._array(layer, layout.CORRELATION).read(channel)

    def activations(
        self, layer: str, rows: npt.NDArray[np.int64] | int, channel: int | slice
    ) -> npt.NDArray[np.float16]:
        """Activations (…, T) of images and channels, all tokens, where the layer keeps them all.

        NaN on invalid rows. Raises `NotKeptError` where the layer does not.
        """
        if not self.layer(layer).dense:
            raise NotKeptError(f"The index does not keep all activations of {layer}.")
        return self._array(layer, layout.ACTIVATIONS).read(rows, channel)

    def top(
        self, layer: str, pooling: Pooling, channel: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
        """Rows and scores of a channel's kept top images, best first: (≤ K,) each."""
        rows = self._array(layer, layout.top_rows_name(pooling)).read(channel)
        scores = self._array(layer, layout.top_scores_name(pooling)).read(channel)
        kept = int(np.count_nonzero(rows >= 0))
        return rows[:kept], scores[:kept]

    def top_maps(
        self, layer: str, pooling: Pooling, channel: int, ranks: npt.NDArray[np.int64] | slice
    ) -> npt.NDArray[np.float16]:
        """Patch maps (M, H, W) of a channel's kept top images at `ranks` (M,)."""
        return self._array(layer, layout.top_maps_name(pooling)).read(channel, ranks)

    def thumbnail(self, row: int) -> bytes:
        """The picture of an image as the model saw it, as a JPEG; empty where none is kept."""
        return self.rows.thumbnail(row) if self.manifest.thumbnail_size else b""

    def neighbours(self, layer: str) -> Neighbours:
        """The layer's FAISS index, loaded once after its digest was checked."""
        # Large, so that threads that ask at once wait for one to load it.
        with self._neighbours_lock:
            if layer not in self._neighbours:
                data = self._checked_bytes(layout.faiss_file(layer))
                self._neighbours[layer] = load(data)
            return self._neighbours[layer]

    @cached_property
    def _span(self) -> str:
        names = [layer.name for layer in self.manifest.layers]
        return names[0] if len(names) == 1 else f"{len(names)}, {names[0]} to {names[-1]}"

    def _open_of_layer(self, layer: str, array: str) -> Array:
        return self._open(layout.layer_path(self.path, layer) / array)

    def _open(self, path: Path) -> Array:
        # Checksums of chunks say nothing of a shape or type that has changed.
        self._checked_bytes((path / "zarr.json").relative_to(self.path).as_posix())
        return open_array(path)

    def _checked_bytes(self, name: str) -> bytes:
        # FAISS has no checksum and reads damaged files: it only sees bytes that were verified.
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise DamagedIndexError(f"File {name} of the index cannot be read.") from error
        record = self.manifest.files.get(name)
        if record is None or sha256_bytes(data) != record.sha256:
            raise DamagedIndexError(f"File {name} of the index is not what was published.")
        return data


def _read_manifest(path: Path) -> Manifest:
    try:
        data = (path / layout.MANIFEST).read_bytes()
    except OSError as error:
        raise DamagedIndexError(f"The manifest of generation {path.name} is missing.") from error
    if generation_name(int(path.name[:6]), data) != path.name:
        raise DamagedIndexError(
            f"The manifest of generation {path.name} is not what was published."
        )
    return Manifest.from_json(data)
