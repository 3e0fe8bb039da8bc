"""What an indexing run will take: bytes, memory and time, from a short probe of it."""

from __future__ import annotations

import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vitscope.indexer.cost import layer_cost
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.options import Options
from vitscope.indexer.reduce import SPARE_BYTES
from vitscope.indexer.refusals import telling
from vitscope.indexer.unit import Worker
from vitscope.indexer.work import Work
from vitscope.indexer.writing import BYTES_WAITING
from vitscope.store.approximate import vector_bytes
from vitscope.store.manifest import LayerRecord
from vitscope.store.progress import Progress

_SECONDS = 10.0
"""How long the probe goes on taking batches."""
_BATCHES = 8
"""At most."""
_DISK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A run before it is begun."""

    job: Job
    images: int
    units: int
    probed: int
    """Images that the probe took."""
    bytes_image: int
    """On the disk: scores, neighbours, retained activations and the picture of an image."""
    bytes_once: int
    """Top images with their maps and correlations, whatever the number of images."""
    memory: int
    """Peak of a process in bytes."""
    device_memory: int
    """Peak on the accelerator in bytes; 0 without one."""
    seconds: float
    """Of decoding, forward and reduction of all images by all workers, without the merge."""
    images_per_second: float
    """Mean of the whole run, of all workers."""
    disk_bytes_per_second: float
    """Of one fsynced file in the output's folder."""

    @property
    def bytes(self) -> int:
        """The whole index."""
        return self.images * self.bytes_image + self.bytes_once


def estimate(options: Options) -> Estimate:
    """Probe a run of `options` for some seconds; writes nothing but a test file that goes again.

    Raises `IndexingError` for options, pictures and models that the run would refuse; what `out`
    holds does not matter.
    """
    options.check()
    with telling(options.out):
        disk = _disk_rate(options.out)
    job = prepare(options)
    rows = job.plan.rows
    probed, first, again, pictures = _probe(job)
    kept = job.plan.layers
    seconds = _whole(rows, probed, first, again, min(options.top_k, rows)) / options.processes
    unit = min(job.plan.unit_rows, rows)
    return Estimate(
        job=job,
        images=rows,
        units=len(job.plan.units),
        probed=probed,
        bytes_image=sum(_cost(layer, rows)[0] for layer in kept) + pictures // probed,
        bytes_once=sum(_cost(layer, rows)[1] for layer in kept),
        memory=_peak_memory() + _held_bytes(kept, unit, on_cpu=job.device == "cpu"),
        device_memory=_device_memory(job.device),
        seconds=seconds,
        images_per_second=rows / seconds,
        disk_bytes_per_second=disk,
    )


def _probe(job: Job) -> tuple[int, float, float, int]:
    """Images taken, seconds of the first time and of a second, bytes of their pictures.

    The first time every image is among the best so far; the second time none is.
    """
    size = job.plan.batch_size
    layers = tuple(replace(layer, dense=False) for layer in job.plan.layers)
    job = replace(job, plan=replace(job.plan, layers=layers))
    # What is done once in a process is not to be counted.
    with _probing(job) as worker:
        worker.rehearse(range(min(size, job.plan.rows)))
    progress = Progress("probed images", min(job.plan.rows, _BATCHES * size))
    taken = pictures = 0
    first = again = 0.0
    with _probing(job) as worker:
        while taken < job.plan.rows and taken < _BATCHES * size and first + again < _SECONDS:
            rows = range(taken, min(taken + size, job.plan.rows))
            start = time.monotonic()
            pictures += worker.rehearse(rows)
            _wait(job.device)
            middle = time.monotonic()
            worker.rehearse(rows)
            _wait(job.device)
            first += middle - start
            again += time.monotonic() - middle
            taken = rows.stop
            progress.advance(len(rows))
    return taken, first, again, pictures


@contextmanager
def _probing(job: Job) -> Iterator[Worker]:
    worker = Worker(job, Work(Path(), job.plan), lambda done: None)
    try:
        yield worker
    finally:
        worker.close()


def _whole(rows: int, probed: int, first: float, again: float, top_k: int) -> float:
    """Seconds of all `rows`: each costs what it did the second time, entrants more.

    In random order K (1 + ln(N / K)) of N images enter a channel's best K.
    """

    def entrants(count: int) -> float:
        return count if count <= top_k else top_k * (1 + math.log(count / top_k))

    entering = max(0.0, first - again) / entrants(probed)
    return rows * min(first, again) / probed + entering * entrants(rows)


def _cost(layer: LayerRecord, rows: int) -> tuple[int, int]:
    """Bytes of a layer for one of so many images, and whatever their number."""
    tokens = layer.tokens
    cost = layer_cost(layer.channels, tokens, len(layer.poolings), layer.top_k)
    prefix = layer.channels * len(tokens.prefix) * 2 * layer.dense_prefix
    patches = tokens.height * tokens.width
    search = patches * vector_bytes(rows * patches, layer.channels) * layer.patch_search
    # What is counted for an image is a vector of a flat index.
    search += vector_bytes(rows, layer.channels) - vector_bytes(1, layer.channels)
    return cost.image + search + (cost.image_all if layer.dense else prefix), cost.once


def _held_bytes(layers: Sequence[LayerRecord], rows: int, *, on_cpu: bool) -> int:
    """Memory of units beside that of a probe: scores, what waits to be written, spare maps."""
    scores = sum(2 * layer.channels * rows * len(layer.poolings) for layer in layers)
    shard = min(rows, 64)
    dense = sum(4 * shard * each.channels * each.tokens.tokens for each in layers if each.dense)
    maps = sum(
        2 * len(each.poolings) * each.channels * each.top_k * each.tokens.height * each.tokens.width
        for each in layers
    )
    return scores + min(scores, BYTES_WAITING) + dense + min(maps, SPARE_BYTES) * on_cpu


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_memory(device: str) -> int:
    return int(torch.cuda.max_memory_allocated(device)) if device.startswith("cuda") else 0


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _disk_rate(out: Path) -> float:
    folder = out if out.is_dir() else out.absolute().parent
    data = np.random.default_rng(0).bytes(_DISK_BYTES)
    start = time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _DISK_BYTES / (time.monotonic() - start)
