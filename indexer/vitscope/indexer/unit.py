"""Indexing one unit of rows: decode, forward, reduce, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from vitscope.indexer.base import Base
from vitscope.indexer.capture import capture
from vitscope.indexer.decode import Decoder, Picture
from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.job import Job
from vitscope.indexer.plan import Unit
from vitscope.indexer.reduce import LayerReduction
from vitscope.indexer.stage import region, shards, unit_arrays
from vitscope.indexer.work import Work
from vitscope.store import layout
from vitscope.store.arrays import create_array
from vitscope.store.rows import RowRecord

_BATCHES_AHEAD = 2


class Worker:
    """Runs units one after the other; its running top-K carries over from unit to unit."""

    def __init__(self, job: Job, work: Work, advance: Callable[[int], None]) -> None:
        """`advance` is told how many images were done."""
        plan = job.plan
        self._job = job
        self._work = work
        self._advance = advance
        self._decoder = Decoder(job.model.steps, plan.thumbnail_size)
        self._helpers = ThreadPoolExecutor(max(1, plan.threads - 1))
        self._reductions = [
            LayerReduction(layer, job.device, helpers=self._helpers, threads=plan.threads)
            for layer in plan.layers
        ]
        self._dense = {
            number: _dense_writer(work, number)
            for number, layer in enumerate(plan.layers)
            if layer.dense
        }
        self._pool = ThreadPoolExecutor(max_workers=plan.threads or os.cpu_count())

    def close(self) -> None:
        """Stop its threads."""
        self._pool.shutdown(cancel_futures=True)
        self._helpers.shutdown()

    def restore(self, finished: Sequence[Unit]) -> None:
        """Take over the thresholds of the base and of units that were finished before."""
        for reduction in self._reductions:
            layer = reduction.layer
            for pooling in layer.poolings:
                if self._job.base:
                    reduction.restore(pooling, self._job.base.candidate_keys(layer, pooling))
                for unit in finished:
                    reduction.restore(pooling, self._work.candidate_keys(unit, layer, pooling))

    def run(self, unit: Unit) -> None:
        """Index the images of `unit` and leave its receipt."""
        self._work.start_unit(unit)
        for reduction in self._reductions:
            reduction.start_unit(unit.stop - unit.start)
        for writer in self._dense.values():
            writer.start_unit(unit.start)
        records: list[RowRecord] = []
        thumbnails: list[bytes] = []
        fresh = max(unit.start, self._job.plan.base_rows)
        if self._job.base and fresh > unit.start:
            carried = range(unit.start, fresh)
            self._carry(self._job.base, carried)
            records += self._job.base.records(carried)
            thumbnails += self._job.base.thumbnails(carried)
        for start, batch in self._batches(range(fresh, unit.stop)):
            self._forward(batch, start, start - unit.start)
            records += [self._record(start + i, picture) for i, picture in enumerate(batch)]
            thumbnails += [picture.thumbnail for picture in batch]
            self._advance(len(batch))
        self._write(unit, records, thumbnails)

    def rehearse(self, rows: range) -> int:
        """Decode, run and reduce images of `rows` and write nothing; gives bytes of pictures."""
        for reduction in self._reductions:
            reduction.start_unit(len(rows))
        pictures = 0
        for start, batch in self._batches(rows):
            self._forward(batch, start, start - rows.start)
            pictures += sum(len(picture.thumbnail) for picture in batch)
        return pictures

    def _carry(self, base: Base, rows: range) -> None:
        """Take over what the base's last unit has of rows that share a shard with new ones."""
        mine = slice(rows.start, rows.stop)
        for number, reduction in enumerate(self._reductions):
            layer = reduction.layer
            scores = {
                pooling: base.array(layer, layout.scores_name(pooling), slice(None), mine)
                for pooling in layer.poolings
            }
            prefix = base.array(layer, layout.PREFIX, mine) if layer.dense_prefix else None
            reduction.carry(scores, prefix)
            if number in self._dense:
                for row in rows:
                    one = slice(row, row + 1)
                    self._dense[number].add_stored(base.array(layer, layout.ACTIVATIONS, one))

    def _batches(self, rows: range) -> Iterator[tuple[int, list[Picture]]]:
        """Decoded batches, a bounded number of them ahead of the forward."""
        size = self._job.plan.batch_size
        left = iter(rows)

        def submit(count: int) -> list[Future[Picture]]:
            return [self._pool.submit(self._decode, row) for row in islice(left, count)]

        ahead = submit(_BATCHES_AHEAD * size)
        for start in rows[::size]:
            mine, ahead = ahead[:size], ahead[size:]
            batch = [future.result() for future in mine]
            ahead += submit(size)
            yield start, batch

    def _decode(self, row: int) -> Picture:
        try:
            data = self._job.source.read(row - self._job.plan.base_rows)
        except OSError as error:
            return Picture(None, b"", "", f"the file cannot be read ({error.strerror})")
        return self._decoder(data)

    def _forward(self, batch: Sequence[Picture], row: int, offset: int) -> None:
        model, device = self._job.model, self._job.device
        # An invalid image leaves a blank in its place: the others keep their place in the batch,
        # and so their bits.
        blank = torch.zeros(3, *model.input_size)
        pixels = torch.stack([blank if p.pixels is None else p.pixels for p in batch])
        valid = torch.tensor([p.pixels is not None for p in batch], device=device)

        def sink(number: int, activation: torch.Tensor) -> None:
            self._reductions[number].update(activation, row, valid, offset)
            if number in self._dense:
                self._dense[number].add(activation, valid)

        with torch.inference_mode(), capture(model.module, self._job.layers, sink):
            model.module(pixels.to(device, model.dtype))

    def _record(self, row: int, picture: Picture) -> RowRecord:
        listed = self._job.source.rows[row - self._job.plan.base_rows]
        boxes = listed.boxes
        width, height = picture.size
        return RowRecord(
            row=row,
            key=listed.key,
            label=listed.label,
            valid=not picture.reason,
            reason=picture.reason,
            bytes=listed.bytes,
            sha256=picture.sha256,
            width=width,
            height=height,
            boxes=boxes.boxes if picture.reason else boxes.in_pixels(width, height),
            view=picture.view,
        )

    def _write(self, unit: Unit, records: list[RowRecord], thumbnails: list[bytes]) -> None:
        for writer in self._dense.values():
            writer.flush()
        for reduction in self._reductions:
            self._write_layer(unit, reduction)
        self._work.finish_unit(
            unit,
            records,
            thumbnails,
            saturated=sum(reduction.saturated for reduction in self._reductions),
            shards=shards(self._job.plan, unit.rows),
        )

    def _write_layer(self, unit: Unit, reduction: LayerReduction) -> None:
        layer = reduction.layer
        group = layout.layer_path(self._work.staged, layer.name)
        values = {}
        for pooling in layer.poolings:
            scores = reduction.scores(pooling)
            values[layout.scores_name(pooling)] = scores
            values[layout.row_scores_name(pooling)] = np.ascontiguousarray(scores.T)
            # The base's own images are candidates already.
            fresh = max(unit.start, self._job.plan.base_rows)
            found = reduction.candidates(pooling, fresh, unit.stop)
            self._work.write_candidates(unit, layer, pooling, found)
        if layer.dense_prefix:
            values[layout.PREFIX] = reduction.prefix()
        for name, spec in unit_arrays(self._job.plan, layer).items():
            if name in values:
                create_array(group / name, spec).write(values[name], *region(spec, unit.rows))


def _dense_writer(work: Work, number: int) -> DenseWriter:
    layer = work.plan.layers[number]
    spec = layout.activations_spec(layer, work.plan.rows, work.plan.unit_rows)
    path = layout.layer_path(work.staged, layer.name) / layout.ACTIVATIONS
    return DenseWriter(layer, create_array(path, spec), spec.shard[0])
