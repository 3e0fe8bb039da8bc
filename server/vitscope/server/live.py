"""The live model: that of an index, run again for what the index did not keep.

The only module of the server that knows the indexer; it is loaded for `serve --live` alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer.allocation import keep_freed_memory
from vitscope.indexer.capture import capture
from vitscope.indexer.decode import Picture
from vitscope.indexer.decoders import make_decoder
from vitscope.indexer.errors import IndexingError
from vitscope.indexer.job import recorded_model, usable_device
from vitscope.indexer.layers import CapturedLayer, find_layers
from vitscope.indexer.model import LoadedModel, Weights, load_model
from vitscope.indexer.pooling import pool, round_to_half, to_half
from vitscope.indexer.sources import Source, open_source
from vitscope.indexer.view import check_steps
from vitscope.server.errors import StartError
from vitscope.server.liveoptions import LiveOptions, by_index
from vitscope.server.queries.model import Halves, Numbers, Take
from vitscope.store.generation import Generation
from vitscope.store.manifest import Manifest, ModelRecord, Pooling, TokenLayout

_MOST_PICTURES = {"cpu": 8, "cuda": 32}
"""Of one forward, for which others wait; on a processor more take as long for each."""
_THUMBNAIL_SIZE = 256
"""Longer side in pixels of a picture that is brought along, where the index keeps none."""


_RUNNER = ThreadPoolExecutor(1, "vitscope-live")
"""Of all models, those of a generation and of the next one too: one forward at a time."""


@dataclass(frozen=True, slots=True)
class _Activation:
    """What one layer holds on the pictures of a forward; as in `queries.model`."""

    values: torch.Tensor
    """(B, T, C), the model's own."""
    tokens: TokenLayout

    def scores(self, pooling: Pooling) -> Halves:
        """Scores (B, C)."""
        halves: Halves = round_to_half(pool(self.values, self.tokens, pooling)).cpu().numpy()
        return halves

    def pairs(self, pictures: Numbers, channels: Numbers) -> Halves:
        """Activations (M, T)."""
        places = (torch.from_numpy(each).to(self.values.device) for each in (pictures, channels))
        first, last = places
        halves: Halves = to_half(self.values[first, :, last]).cpu().numpy()
        return halves

    def whole(self, picture: int) -> Halves:
        """Activations (C, T)."""
        halves: Halves = to_half(self.values[picture]).cpu().numpy().T
        return halves


class Live:
    """The model of one index; forwards of all indexes are run by one thread, one after the other.

    A thread of its own, since each thread that calls torch has helpers of its own, and those that
    answer other questions have FAISS keep to one.
    """

    def __init__(
        self,
        generation: Generation,
        model: LoadedModel,
        layers: Sequence[CapturedLayer],
        source: _Pictures | None,
        device: str,
        threads: int,
        runner: ThreadPoolExecutor,
    ) -> None:
        """`threads` are those of a forward on the processor, 0 elsewhere."""
        manifest = generation.manifest
        self._model = model
        self._layers = layers
        self._source = source
        self._device = device
        self._threads = threads
        self._runner = runner
        size = manifest.thumbnail_size or _THUMBNAIL_SIZE
        self._decoder = make_decoder(manifest.model.decoder, model.steps, size, device)
        # No larger than when the index was made, so that one made picture by picture is met to the
        # last bit.
        most = _MOST_PICTURES.get(device.partition(":")[0], 1)
        self.batch_size = min(manifest.batch_size, most)

    @property
    def has_pictures(self) -> bool:
        """Whether the pictures of the index can be read."""
        return self._source is not None

    def read(self, row: int) -> bytes:
        """The encoded picture of a row; raises OSError where it cannot be read."""
        if self._source is None:
            raise FileNotFoundError("no pictures are at hand")
        return self._source.read(row)

    def decode(self, data: bytes) -> Picture:
        """Bytes of a picture file as the index's decoder reads them."""
        return self._decoder(data)

    def run(self, pictures: Sequence[Picture], take: Take) -> None:
        """One forward of pictures that were decoded, valid ones."""
        pixels = torch.stack([each.pixels for each in pictures if each.pixels is not None])
        self._runner.submit(self._forward, pixels, take).result()

    def _forward(self, pixels: torch.Tensor, take: Take) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        wanted = [layer for layer in self._layers if layer.name in take]

        def sink(number: int, activation: torch.Tensor) -> None:
            layer = wanted[number]
            take[layer.name](_Activation(activation, layer.tokens))

        with torch.inference_mode(), capture(self._model.module, wanted, sink):
            self._model.module(pixels.to(self._device, self._model.dtype))


@dataclass(frozen=True, slots=True)
class _Pictures:
    """The pictures of an index where they are now."""

    source: Source
    places: npt.NDArray[np.int64]
    """Of each row of the index, its row in the source: (N,)."""

    def read(self, row: int) -> bytes:
        """The encoded picture of a row; raises OSError where it cannot be read."""
        return self.source.read(int(self.places[row]))


def load(
    generations: Mapping[str, Generation], options: LiveOptions, names: Collection[str]
) -> dict[str, Live]:
    """The live models of some of the indexes called `names`.

    Raises `StartError` where one is not what made its index.
    """
    given = [
        by_index(flag, texts, names)
        for flag, texts in (
            ("--checkpoint", options.checkpoints),
            ("--data", options.data),
            ("--split", options.splits),
        )
    ]
    found = {}
    # In a thread that ends, and its helpers of torch with it: forwards of what is served go on.
    with ThreadPoolExecutor(1, "vitscope-load") as loader:
        for name, generation in generations.items():
            checkpoint, data, split = (each.get(name) for each in given)
            try:
                making = loader.submit(
                    _load, name, generation, checkpoint, data, split, options, _RUNNER
                )
                found[name] = making.result()
            except IndexingError as error:
                raise StartError(
                    f"There is no live model of the index {name!r}: {error}"
                ) from error
    return found


def _load(
    name: str,
    generation: Generation,
    checkpoint: str | None,
    data: str | None,
    split: str | None,
    options: LiveOptions,
    runner: ThreadPoolExecutor,
) -> Live:
    manifest = generation.manifest
    record = manifest.model
    if split and not data:
        raise StartError(f"--split says which part of --data; give that too for {name!r}.")
    # What takes no time first.
    source = _pictures(name, generation, Path(data), split) if data else None
    if record.weights_source == "checkpoint" and not checkpoint:
        raise StartError(
            f"The index {name!r} was made with weights from a file; give it with --checkpoint FILE."
        )
    device = usable_device(options.device)
    threads = _threads(manifest, options) if device == "cpu" else 0
    if threads:
        torch.set_num_threads(threads)
        # The C library takes more from the system for threads than for a program's first one.
        keep_freed_memory()
    weights = Weights(
        Path(checkpoint) if checkpoint else None,
        random=record.weights_source == "random" and not checkpoint,
    )
    model = load_model(
        record.name, weights, img_size=record.input_size, device=device, dtype=record.dtype
    )
    _check_model(name, recorded_model(model, record.dtype, record.decoder), record)
    check_steps(model.steps)
    layers, _ = find_layers(model.module, model.name, model.input_size)
    _check_layers(name, layers, manifest)
    model.module.to(model.dtype)
    return Live(generation, model, layers, source, device, threads, runner)


def _threads(manifest: Manifest, options: LiveOptions) -> int:
    if options.threads is not None and options.threads < 1:
        raise StartError("--threads must be at least 1.")
    cores = os.cpu_count() or 1
    return options.threads or min(manifest.threads or cores, cores)


def _check_model(name: str, mine: ModelRecord, theirs: ModelRecord) -> None:
    """Raise unless the loaded model is the recorded one."""
    if mine.weights_sha256 != theirs.weights_sha256:
        raise StartError(
            f"The weights at hand are not those that the index {name!r} was made with (SHA-256 "
            f"{mine.weights_sha256[:12]}… instead of {theirs.weights_sha256[:12]}…); give the file "
            "of those with --checkpoint FILE."
        )
    for field in ("input_size", "transform", "exif"):
        here, there = getattr(mine, field), getattr(theirs, field)
        if here != there:
            raise StartError(
                f"The live model of the index {name!r} has another {field} than was recorded "
                f"({_first_difference(here, there)}); install the versions of timm and torchvision "
                "that it was indexed with, or index anew."
            )


def _first_difference(here: Any, there: Any) -> str:
    if isinstance(here, str) or len(here) != len(there):
        return f"{here} instead of {there}"
    one, other = next(pair for pair in zip(here, there, strict=True) if pair[0] != pair[1])
    return f"{one} instead of {other}"


def _check_layers(name: str, layers: Sequence[CapturedLayer], manifest: Manifest) -> None:
    """Raise unless the model has the recorded layers, with their tokens where they were."""
    mine = [(layer.name, layer.channels, layer.tokens) for layer in layers]
    theirs = [(layer.name, layer.channels, layer.tokens) for layer in manifest.layers]
    if mine != theirs:
        differing = [there for here, there in zip(mine, theirs, strict=False) if here != there]
        where = f"in {differing[0][0]}" if differing else f"{len(mine)} instead of {len(theirs)}"
        raise StartError(
            f"The live model of the index {name!r} has other layers or token layouts than were "
            f"recorded ({where}); install the version of timm that it was indexed with, or index "
            "anew."
        )


def _pictures(name: str, generation: Generation, path: Path, split: str | None) -> _Pictures:
    """What is at `path`, if it has every row of the index under its key, of as many bytes."""
    source = open_source(path, split=split)
    table, rows = generation.rows, source.rows
    count = generation.manifest.rows
    places = np.arange(count)
    keys = map(table.key, range(count))
    if len(rows) < count or any(key != mine for key, mine in zip(keys, rows.keys, strict=False)):
        # Another order, or more pictures than were indexed.
        known = {key: number for number, key in enumerate(rows.keys)}
        places = np.array([known.get(table.key(row), -1) for row in range(count)])
    lengths = np.where(places < 0, -1, rows.sizes[places])
    wrong = np.flatnonzero(lengths != table.lengths)
    if len(wrong):
        row = int(wrong[0])
        why = "is not there" if places[row] < 0 else f"has {lengths[row]} bytes"
        raise StartError(
            f"--data {path} does not hold the pictures that the index {name!r} was made of: row "
            f"{row} ({table.key(row)!r}, {table.lengths[row]} bytes) {why}; give the same pictures."
        )
    return _Pictures(source, places)
