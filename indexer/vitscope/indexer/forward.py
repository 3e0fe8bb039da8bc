"""Batches through the model; what each layer holds is reduced as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import torch

from vitscope.indexer.batches import Batch
from vitscope.indexer.capture import capture
from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.errors import ModelError
from vitscope.indexer.job import Job
from vitscope.indexer.memory import ended_for_want_of_memory
from vitscope.indexer.reduce import LayerReduction
from vitscope.indexer.stages import Stages
from vitscope.store.text import counted


class Forward:
    """Runs batches; one that does not fit in memory is run in halves, like all after it."""

    def __init__(
        self,
        job: Job,
        reductions: Sequence[LayerReduction],
        dense: Mapping[int, DenseWriter],
        stages: Stages,
    ) -> None:
        """`dense` is by the number of the layer."""
        self._job = job
        self._reductions = reductions
        self._dense = dense
        self._stages = stages
        self._most = job.plan.batch_size
        self._reduced = [0] * len(reductions)
        self._stored = [0] * len(reductions)
        """Images of the batch that a layer has taken in: not to be taken in again in halves."""

    def run(self, batch: Batch, offset: int) -> None:
        """Take in a batch whose first image is `offset` into its unit.

        Raises `ModelError` where there is no memory for one image.
        """
        valid = torch.tensor(
            [not picture.reason for picture in batch.pictures], device=self._job.device
        )
        self._reduced = [0] * len(self._reductions)
        self._stored = [0] * len(self._reductions)
        start = 0
        while start < len(valid):
            part = slice(start, min(start + self._most, len(valid)))
            if self._fits(batch, valid, part, offset):
                start = part.stop
            else:
                self._halve(part.stop - part.start, batch.row + part.start)

    def _fits(self, batch: Batch, valid: torch.Tensor, part: slice, offset: int) -> bool:
        """Run a part of a batch; gives whether there was memory for it."""
        try:
            self._run(batch, valid, part, offset)
        except (MemoryError, RuntimeError) as error:
            if not ended_for_want_of_memory(error):
                raise
            return False
        return True

    def _run(self, batch: Batch, valid: torch.Tensor, part: slice, offset: int) -> None:
        model, device = self._job.model, self._job.device
        spent = 0.0

        def sink(number: int, activation: torch.Tensor) -> None:
            nonlocal spent
            start = time.perf_counter()
            if self._reduced[number] < part.stop:
                row, place = batch.row + part.start, offset + part.start
                self._reductions[number].update(activation, row, valid[part], place)
                self._reduced[number] = part.stop
            if number in self._dense and self._stored[number] < part.stop:
                self._dense[number].add(activation, valid[part])
                self._stored[number] = part.stop
            spent += time.perf_counter() - start

        start = time.perf_counter()
        with torch.inference_mode(), capture(model.module, self._job.layers, sink):
            model.module(batch.pixels[part].to(device, model.dtype, non_blocking=True))
        whole = time.perf_counter() - start
        self._stages.add({"forward": whole - spent, "reduce": spent})

    def _halve(self, images: int, row: int) -> None:
        if images == 1:
            raise ModelError(
                f"{self._job.model.name} does not fit in the memory of {self._job.device} with one "
                "image; give a smaller --img-size or another --device."
            )
        if self._job.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self._most = images // 2
        print(
            f"No memory for {counted(images, 'image')} at once: {self._most} from row {row} on.",
            file=sys.stderr,
        )
