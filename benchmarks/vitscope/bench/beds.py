"""Arrays on disk to measure on: random values, written as the indexer writes them, published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr

from vitscope.indexer.dense import DenseWriter
from vitscope.store import layout
from vitscope.store.arrays import Array, ArraySpec, Index, create_array, open_array, write_group
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord, Manifest, ModelRecord, TokenLayout
from vitscope.store.publish import publish
from vitscope.store.sealed import ChunkCache, SealedArray
from vitscope.store.seals import pack_seals, seal_files, unpack_seals
from vitscope.store.shards import ShardGrid

Half = npt.NDArray[np.float16]
Write = Callable[[Array], None]

GRID = TokenLayout.even(("cls",), 14, 14, (224, 224))
OURS, GUARDED, ZARR, FLOOR = "open_array", "Generation", "zarr-python", "memory-mapped .npy"
_MODEL = ModelRecord("none", "random", "0" * 64, (224, 224), "float32", (), "pillow", "ignored")


def layer(channels: int, number: int = 0, top_k: int = 32) -> LayerRecord:
    """A layer of a ViT with 16-pixel patches at 224 pixels."""
    name = f"blocks.{number}.mlp"
    return LayerRecord(
        name, number, channels, GRID, GRID.poolings, top_k, dense=True, dense_prefix=False
    )


def halves(*shape: int, seed: int = 0) -> Half:
    """Normal float16 values, a block repeated: as hard to compress, and quick to make."""
    generator = np.random.default_rng(seed)
    block = generator.standard_normal(1 << 22, np.float32).astype(np.float16)
    return np.resize(block, shape)


@dataclass(frozen=True)
class Bed:
    """A published index of single arrays."""

    path: Path
    """The generation's folder."""

    def fresh(self, array: str, number: int = 0) -> tuple[Array, Callable[..., Any], Any]:
        """An array through `open_array`, a published generation and zarr-python.

        Nothing of it is in the process's caches but the metadata and the seals.
        """
        name = f"blocks.{number}.mlp"
        folder = layout.layer_path(self.path, name) / array
        plain = open_array(folder)
        generation = Generation(self.path)
        for read in (plain.read, lambda *index: generation.read(name, array, *index)):
            read(*[0] * len(plain.shape))

        def guarded(*index: Index) -> Any:
            return generation.read(name, array, *index)

        return plain, guarded, zarr.open(str(folder), mode="r")

    def forget(self) -> None:
        """Ask the kernel to drop the pages of all files."""
        for file in self.path.rglob("*"):
            if file.is_file():
                forget(file)


def forget(file: Path) -> None:
    """Ask the kernel to drop the pages of a file that is on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def published(
    index: Path, layers: Mapping[LayerRecord, Mapping[str, tuple[ArraySpec, Write]]]
) -> Bed:
    """Write the arrays of layers and publish them."""
    staged = index / layout.WORK / "staged"
    for group in ("", "layers"):
        write_group(staged / layout.ARRAYS / group)
    for record, specs in layers.items():
        folder = layout.layer_path(staged, record.name)
        write_group(folder)
        for name, (spec, write) in specs.items():
            write(create_array(folder / name, spec))
    manifest = Manifest(
        model=_MODEL,
        layers=tuple(layers),
        rows=1,
        valid_rows=1,
        rows_sha256="0" * 64,
        batch_size=1,
        unit_rows=1,
        threads=0,
        saturated=0,
        thumbnail_size=0,
        recall_at_10={record.name: 1.0 for record in layers},
        written_by="benchmarks",
    )
    return Bed(index / layout.GENERATIONS / publish(index, staged, manifest))


def sealed(path: Path) -> Callable[[], SealedArray]:
    """What opens an array as a generation does, with nothing of it in memory but the seals."""
    names = [file.relative_to(path.parent).as_posix() for file in path.rglob("*") if file.is_file()]
    table = unpack_seals(pack_seals(path.parent, seal_files(path.parent, names)))[path.name]
    grid = ShardGrid.from_metadata((path / "zarr.json").read_bytes())
    return lambda: SealedArray(path, grid, lambda: table, ChunkCache(256 << 20))


def raw(path: Path, values: Half) -> None:
    """One file of `values`, on the disk."""
    with path.open("wb") as file:
        values.tofile(file)
        os.fsync(file.fileno())


def dense_writing(
    record: LayerRecord, array: Array, shard_rows: int, batches: Sequence[torch.Tensor]
) -> Callable[[], None]:
    """What writes batches (B, T, C) as retention `all` does; its memory has been used before."""
    writer = DenseWriter(record, array, shard_rows)

    def write(batches: Sequence[torch.Tensor]) -> None:
        writer.start_unit(0)
        for batch in batches:
            writer.add(batch, torch.ones(len(batch), dtype=torch.bool))
        if written := writer.hand_over():
            written.result()

    write(batches[: 2 * shard_rows // len(batches[0])])
    return lambda: write(batches)


def write_parts(array: Array, values: Half, parts: Sequence[tuple[slice, ...]]) -> None:
    """Write values to an array, part by part."""
    for part in parts:
        array.write(values[part], *part)


def mapped(path: Path, shape: tuple[int, ...]) -> Any:
    """A new memory-mapped .npy file of float16."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A folder that is empty at first and goes at the end."""
    path = folder / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)
