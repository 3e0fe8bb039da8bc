"""Indexing one unit of rows: decode, forward, reduce, write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from vitscope.indexer.capture import CapturedLayer, capture
from vitscope.indexer.decode import Decoder, Picture
from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.model import LoadedModel
from vitscope.indexer.plan import Unit
from vitscope.indexer.progress import Progress
from vitscope.indexer.reduce import LayerReduction
from vitscope.indexer.sources import Source
from vitscope.indexer.work import Work
from vitscope.store import layout
from vitscope.store.arrays import create_array
from vitscope.store.rows import RowRecord

_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Worker:
    """Runs units one after the other; its running top-K carries over from unit to unit."""

    source: Source
    decoder: Decoder
    model: LoadedModel
    layers: Sequence[CapturedLayer]
    reductions: Sequence[LayerReduction]
    dense: Mapping[int, DenseWriter]
    """By number of the layer, where all its activations are kept."""
    work: Work
    device: str
    progress: Progress
    pool: ThreadPoolExecutor

    def restore(self, unit: Unit) -> None:
        """Take over the thresholds of a unit that was finished before this run."""
        for reduction in self.reductions:
            for pooling in reduction.layer.poolings:
                keys = self.work.candidate_keys(unit, reduction.layer, pooling)
                reduction.restore(pooling, keys)

    def run(self, unit: Unit) -> None:
        """Index the images of `unit` and leave its receipt."""
        for reduction in self.reductions:
            reduction.start_unit(unit.stop - unit.start)
        for writer in self.dense.values():
            writer.start_unit(unit.start)
        pictures: list[Picture] = []
        for start, batch in self._batches(unit):
            self._forward(batch, start, start - unit.start)
            # Pixels are not needed again, and a unit of them would fill the memory.
            pictures += [replace(picture, pixels=None) for picture in batch]
            self.progress.advance(len(batch))
        self._write(unit, pictures)

    def _batches(self, unit: Unit) -> Iterator[tuple[int, list[Picture]]]:
        """Decoded batches, a bounded number of them ahead of the forward."""
        size = self.work.plan.batch_size
        rows = iter(range(unit.start, unit.stop))
        ahead = [self.pool.submit(self._decode, row) for row in islice(rows, _BATCHES_AHEAD * size)]
        for start in range(unit.start, unit.stop, size):
            mine, ahead = ahead[:size], ahead[size:]
            batch = [future.result() for future in mine]
            ahead += [self.pool.submit(self._decode, row) for row in islice(rows, size)]
            yield start, batch

    def _decode(self, row: int) -> Picture:
        try:
            data = self.source.read(row)
        except OSError as error:
            return Picture(None, b"", "", f"the file cannot be read ({error.strerror})")
        return self.decoder(data)

    def _forward(self, batch: Sequence[Picture], row: int, offset: int) -> None:
        # An invalid image leaves a blank in its place: the others keep their place in the batch,
        # and so their bits.
        blank = torch.zeros(3, *self.model.input_size)
        pixels = torch.stack([blank if p.pixels is None else p.pixels for p in batch])
        valid = torch.tensor([p.pixels is not None for p in batch], device=self.device)
        rows = torch.arange(row, row + len(batch), device=self.device)

        def sink(number: int, activation: torch.Tensor) -> None:
            self.reductions[number].update(activation, rows, valid, offset)
            if number in self.dense:
                self.dense[number].add(activation, valid)

        with torch.inference_mode(), capture(self.model.module, self.layers, sink):
            self.model.module(pixels.to(self.device, self.model.dtype))

    def _write(self, unit: Unit, pictures: Sequence[Picture]) -> None:
        plan = self.work.plan
        for writer in self.dense.values():
            writer.flush()
        for reduction in self.reductions:
            layer = reduction.layer
            group = layout.layer_path(self.work.staged, layer.name)
            for pooling in layer.poolings:
                scores = reduction.scores(pooling)
                mine = slice(unit.start, unit.stop)
                spec = layout.scores_spec(layer, plan.rows, plan.unit_rows)
                by_channel = create_array(group / layout.scores_name(pooling), spec)
                by_channel.write(scores, slice(None), mine)
                spec = layout.row_scores_spec(layer, plan.rows, plan.unit_rows)
                by_row = create_array(group / layout.row_scores_name(pooling), spec)
                by_row.write(np.ascontiguousarray(scores.T), mine)
                found = reduction.candidates(pooling, unit.start, unit.stop)
                self.work.write_candidates(unit, layer, pooling, found)
        records = [
            _record(self.source, unit.start + place, picture)
            for place, picture in enumerate(pictures)
        ]
        saturated = int(np.sum([reduction.saturated for reduction in self.reductions]))
        self.work.finish_unit(unit, records, [p.thumbnail for p in pictures], saturated)


def _record(source: Source, row: int, picture: Picture) -> RowRecord:
    listed = source.rows[row]
    boxes = listed.boxes
    return RowRecord(
        row=row,
        key=listed.key,
        label=listed.label,
        valid=not picture.reason,
        reason=picture.reason,
        bytes=listed.bytes,
        sha256=picture.sha256,
        boxes=boxes.boxes if picture.reason else boxes.in_pixels(*picture.size),
    )
