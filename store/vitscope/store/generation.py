"""Opening an index and reading a published generation of it."""

from __future__ import annotations

import difflib
import fcntl
import re
import weakref
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vitscope.store import layout
from vitscope.store.arrays import Index
from vitscope.store.errors import DamagedIndexError, NotAnIndexError, NotKeptError
from vitscope.store.files import sha256_bytes
from vitscope.store.manifest import LayerRecord, Manifest, Pooling
from vitscope.store.neighbours import Neighbours, load
from vitscope.store.published import PublishedFiles
from vitscope.store.rows import RowTable
from vitscope.store.sealed import SealedArray
from vitscope.store.seals import Checksums, Seal
from vitscope.store.statistics import ScoreStatistics, read_statistics
from vitscope.store.vectors import ImageVectors, PatchVectors

_NAME = re.compile(r"\d{6}-[0-9a-f]{16}", re.ASCII)
POINTER = re.compile(rb"(\d{6}-[0-9a-f]{16})\n")
"""All that `CURRENT` holds: the name of a generation and a line feed."""
_MEND = "restore it from a copy"
HUB_RANKS = 10
"""Ranks of a channel that count where an image is among the best of many."""


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
    name = current_name(index)
    try:
        return Generation(index / layout.GENERATIONS / name)
    except DamagedIndexError:
        # Another was published in the meantime, and this one pruned.
        if current_name(index) == name:
            raise
        return open_generation(index)


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
        if generation_names(index / layout.GENERATIONS):
            raise DamagedIndexError(f"{layout.CURRENT} of the index {index} is missing; {_MEND}.")
        raise NotAnIndexError(f"{index} is not an index; `vitscope index` makes one.")
    found = POINTER.fullmatch(pointer.read_bytes()[:64])
    if not found:
        raise DamagedIndexError(f"{layout.CURRENT} of the index {index} is damaged; {_MEND}.")
    name = found[1].decode()
    if not (index / layout.GENERATIONS / name).is_dir():
        raise DamagedIndexError(
            f"{layout.CURRENT} of the index {index} names {name}, which is not there; {_MEND}."
        )
    return name


class Generation:
    """One published version of an index; safe to read from several threads.

    As long as it lives it holds a shared `flock` on the manifest's file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        """The generation's folder."""
        self.name = path.name
        """Its name, which every answer carries."""
        file = _open_manifest(path)
        # Not at the end of the process, which would wait for who still reads it.
        weakref.finalize(self, file.close).atexit = False
        self.manifest = parse_manifest(file.read(), path.name)
        # A lost array must not read as a picture without boxes or view: the manifest knows.
        has_boxes = layout.BOX_EDGES in self.manifest.files
        has_views = layout.VIEWS in self.manifest.files
        self._files = PublishedFiles(path, self.manifest.files)
        self.rows = RowTable(
            layout.rows_path(path), self._files.open, has_boxes=has_boxes, has_views=has_views
        )
        self._layers = {layer.name: layer for layer in self.manifest.layers}
        self._arrays: dict[tuple[str, str], SealedArray] = {}
        self._statistics: dict[tuple[str, Pooling], ScoreStatistics] = {}
        self._hubs: dict[tuple[str, Pooling], npt.NDArray[np.int64]] = {}
        self._neighbours: dict[str, Neighbours] = {}
        self._neighbours_lock = Lock()

    def layer(self, name: str) -> LayerRecord:
        """The layer called `name`; raises `NotKeptError` where there is none."""
        if name not in self._layers:
            close = difflib.get_close_matches(name, self._layers, n=1)
            known = f"did you mean {close[0]}?" if close else f"it has {self._span}."
            raise NotKeptError(f"The index has no layer {name[:80]!r}; {known}")
        return self._layers[name]

    def seals(self, names: Iterable[str]) -> dict[str, Seal]:
        """What some shards were when they were written, by path below the generation's folder."""
        tables: dict[str, dict[str, Checksums]] = {}
        found = {}
        for name in names:
            array, _, shard = name.partition("/c/")
            if array not in tables:
                rows = self._files.seals(layout.group_of(name))[array.rpartition("/")[2]]
                tables[array] = dict(zip(self._files.grid(array).names(), rows, strict=True))
            record = self.manifest.files[name]
            found[name] = Seal.of(record.bytes, record.blake3, tables[array][f"c/{shard}"])
        return found

    def read(self, layer: str, array: str, *index: Index) -> npt.NDArray[Any]:
        """Part of an array of a layer, called as in FORMAT.md."""
        return self._array(layer, array).read(*index)

    def scores(self, layer: str, pooling: Pooling, channel: int) -> npt.NDArray[np.float16]:
        """Scores of one channel on every image: (N,); NaN on invalid rows."""
        return self.read(layer, layout.scores_name(pooling), channel)

    def image_scores(self, layer: str, pooling: Pooling, row: int) -> npt.NDArray[np.float16]:
        """Scores of all channels on one image: (C,); NaN on an invalid row."""
        return self._array(layer, layout.row_scores_name(pooling)).read(row)

    def statistics(self, layer: str, pooling: Pooling) -> ScoreStatistics:
        """Moments and quantiles of every channel's scores over the valid images; held."""
        if (layer, pooling) not in self._statistics:
            group = layout.layer_path(self.path, layer)
            self._statistics[layer, pooling] = read_statistics(group, pooling, self._files.open)
        return self._statistics[layer, pooling]

    def hubs(self, layer: str, pooling: Pooling) -> npt.NDArray[np.int64]:
        """How many channels of a layer have each image among their best ten: (N,); held."""
        if (layer, pooling) not in self._hubs:
            rows = self.read(layer, layout.top_rows_name(pooling), slice(None), slice(0, HUB_RANKS))
            counts = np.bincount(rows[rows >= 0], minlength=self.manifest.rows)
            self._hubs[layer, pooling] = counts
        return self._hubs[layer, pooling]

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

    def prefix_activations(self, layer: str, row: int) -> npt.NDArray[np.float16]:
        """Activations (P, C) of an image's prefix tokens, where the layer keeps them.

        NaN on an invalid row. Raises `NotKeptError` where the layer does not.
        """
        record = self.layer(layer)
        if record.dense:
            return self.read(layer, layout.ACTIVATIONS, row)[:, : len(record.tokens.prefix)].T
        if not record.dense_prefix:
            raise NotKeptError(f"The index does not keep the prefix activations of {layer}.")
        return self.read(layer, layout.PREFIX, row)

    def top(
        self, layer: str, pooling: Pooling, channel: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]:
        """Rows and scores of a channel's kept top images, best first: (≤ K,) each."""
        rows = self._array(layer, layout.top_rows_name(pooling)).read(channel)
        scores = self._array(layer, layout.top_scores_name(pooling)).read(channel)
        kept = int(np.count_nonzero(rows >= 0))
        return rows[:kept], scores[:kept]

    def top_scores(self, layer: str, pooling: Pooling) -> npt.NDArray[np.float16]:
        """Kept top scores of all channels of a layer, best first: (C, K); NaN behind the last."""
        return self.read(layer, layout.top_scores_name(pooling))

    def top_maps(
        self, layer: str, pooling: Pooling, channel: int, ranks: npt.NDArray[np.int64] | slice
    ) -> npt.NDArray[np.float16]:
        """Patch maps (M, H, W) of a channel's kept top images at `ranks` (M,)."""
        return self._array(layer, layout.top_maps_name(pooling)).read(channel, ranks)

    def check_files(self) -> None:
        """Raise `DamagedIndexError` for a file that is missing or of another length, and for arrays
        that are not of the shapes that the manifest's numbers make.

        What they hold is checked when it is read, and by `vitscope verify`.
        """
        self._files.check_sizes()
        rows = self.manifest.rows
        for layer in self.manifest.layers:
            group = layout.layer_path(self.path, layer.name)
            for name, shape in layout.layer_shapes(layer, rows).items():
                if self._files.open(group / name).shape != shape:
                    raise DamagedIndexError(
                        f"Array {name} of layer {layer.name} is not of the shape that the manifest "
                        f"says; {_MEND}."
                    )
        if len(self.rows) != rows or len(self.valid_rows) != self.manifest.valid_rows:
            raise DamagedIndexError(
                f"The manifest has another number of rows than the row table; {_MEND}."
            )

    def warm(self, like: Generation) -> None:
        """Read beforehand what questions to the generation before made that one hold.

        Raises `DamagedIndexError` for what is not as it was published.
        """
        names = set(self.manifest.files)
        for name in list(like._neighbours):
            if name in names:
                self._faiss(name)
        for layer, pooling in list(like._statistics):
            if self._has(layer, pooling):
                self.statistics(layer, pooling)
        for layer, pooling in list(like._hubs):
            if self._has(layer, pooling):
                self.hubs(layer, pooling)

    def _has(self, layer: str, pooling: Pooling) -> bool:
        return layer in self._layers and pooling in self._layers[layer].poolings

    def thumbnail(self, row: int) -> bytes:
        """The picture of an image as the model saw it, as a JPEG; empty where none is kept."""
        return self.rows.thumbnail(row) if self.manifest.thumbnail_size else b""

    def neighbours(self, layer: str) -> Neighbours:
        """The layer's FAISS index of images, loaded once after its digest was checked."""
        return self._faiss(layout.faiss_file(layer))

    def patch_neighbours(self, layer: str) -> Neighbours | None:
        """That of its patches, loaded likewise; None where there is none."""
        if not self.layer(layer).patch_search:
            return None
        return self._faiss(layout.patches_faiss_file(layer))

    def image_vectors(self, layer: str, rows: npt.NDArray[np.int64] | None = None) -> ImageVectors:
        """The mean-pooled activations of all valid images, or of some `rows` (M,), ascending."""
        scores = self._array(layer, layout.row_scores_name("mean"))
        return ImageVectors(scores, self.valid_rows if rows is None else rows)

    def patch_vectors(self, layer: str) -> PatchVectors:
        """The activations of all patches of valid images, where the layer keeps them.

        Raises `NotKeptError` where it does not.
        """
        record = self.layer(layer)
        if not record.dense:
            raise NotKeptError(f"The index does not keep all activations of {layer}.")
        return PatchVectors(self._array(layer, layout.ACTIVATIONS), record.tokens, self.valid_rows)

    @cached_property
    def valid_rows(self) -> npt.NDArray[np.int64]:
        """Rows (V,) of the images that could be read, ascending."""
        return np.flatnonzero(self.rows.valid)

    def _faiss(self, name: str) -> Neighbours:
        # Large, so that threads that ask at once wait for one to load it.
        with self._neighbours_lock:
            if name not in self._neighbours:
                self._neighbours[name] = load(self._files.read(name))
            return self._neighbours[name]

    @cached_property
    def _span(self) -> str:
        names = [layer.name for layer in self.manifest.layers]
        return names[0] if len(names) == 1 else f"{len(names)}, {names[0]} to {names[-1]}"

    def _array(self, layer: str, array: str) -> SealedArray:
        if (layer, array) not in self._arrays:
            path = layout.layer_path(self.path, layer) / array
            self._arrays[layer, array] = self._files.open(path)
        return self._arrays[layer, array]


def _open_manifest(path: Path) -> BinaryIO:
    """The manifest's file, with a shared lock that tells whoever removes generations of a reader.

    The lock goes with the file; a file system without locks does without.
    """
    try:
        file = (path / layout.MANIFEST).open("rb")
    except OSError as error:
        lost = isinstance(error, FileNotFoundError)
        how = "is missing" if lost else f"cannot be read ({error.strerror})"
        raise DamagedIndexError(
            f"{layout.MANIFEST} of generation {path.name} {how}; {_MEND}."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DamagedIndexError(f"Generation {path.name} is being removed; try again.") from None
    except OSError:
        pass
    return file


def parse_manifest(data: bytes, generation: str) -> Manifest:
    """The manifest of the generation called so; raises `DamagedIndexError` for another's."""
    if generation_name(int(generation[:6]), data) != generation:
        raise DamagedIndexError(
            f"{layout.MANIFEST} of generation {generation} is not what was published; {_MEND}."
        )
    return Manifest.from_json(data)
