"""Indexing units of rows: decode, forward, reduce, hand over what is to be written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from vitscope.indexer.base import Base
from vitscope.indexer.batches import Batch, Batches
from vitscope.indexer.decode import Picture
from vitscope.indexer.decoders import make_decoder
from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.forward import Forward
from vitscope.indexer.job import Job
from vitscope.indexer.plan import Unit
from vitscope.indexer.reduce import LayerReduction, Room
from vitscope.indexer.stages import Stages
from vitscope.indexer.unitfiles import UnitFiles
from vitscope.indexer.work import Work
from vitscope.indexer.writing import Writing
from vitscope.store import layout
from vitscope.store.arrays import create_array
from vitscope.store.rows import RowRecord


class Worker:
    """Runs units one after the other; its running top-K carries over from unit to unit.

    What a unit leaves is written while the next one is run.
    """

    def __init__(self, job: Job, work: Work, advance: Callable[[int], None]) -> None:
        """`advance` is told how many images were done."""
        plan, model = job.plan, job.model
        self.stages = Stages()
        self._job = job
        self._work = work
        self._advance = advance
        self._decoder = make_decoder(
            plan.model.decoder, model.steps, plan.thumbnail_size, job.device
        )
        self._helpers = ThreadPoolExecutor(max(1, plan.threads - 1))
        room = Room()
        self._reductions = [
            LayerReduction(
                layer, job.device, helpers=self._helpers, threads=plan.threads, room=room
            )
            for layer in plan.layers
        ]
        self._dense = {
            number: _dense_writer(work, number)
            for number, layer in enumerate(plan.layers)
            if layer.dense
        }
        self._forward = Forward(job, self._reductions, self._dense, self.stages)
        self._batches = Batches(
            self._decode,
            plan.batch_size,
            model.input_size,
            threads=plan.threads or os.cpu_count() or 1,
            pinned=job.device.startswith("cuda"),
            stages=self.stages,
        )
        self._writing = Writing(self.stages)

    def close(self) -> None:
        """Stop its threads."""
        self._batches.close()
        self._writing.close()
        for writer in self._dense.values():
            writer.close()
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

    def run_all(self, units: Iterable[Unit]) -> None:
        """Run units to the last receipt; the pictures of one are decoded while another ends."""
        start = time.perf_counter()
        ahead = iter(units)
        unit = next(ahead, None)
        if unit:
            self._batches.announce(self._fresh(unit))
        while unit:
            following = next(ahead, None)
            if following:
                self._batches.announce(self._fresh(following))
            self._run(unit)
            unit = following
        self._writing.finish()
        self.stages.add({"total": time.perf_counter() - start})

    def rehearse(self, rows: range) -> int:
        """Decode, run and reduce images of `rows` and write nothing; gives bytes of pictures."""
        for reduction in self._reductions:
            reduction.start_unit(len(rows))
        self._batches.announce(rows)
        pictures = 0
        for batch in self._taken(rows):
            self._forward.run(batch, batch.row - rows.start)
            pictures += sum(len(picture.thumbnail) for picture in batch.pictures)
        return pictures

    def _run(self, unit: Unit) -> None:
        """Index the images of a unit whose rows were announced, and hand over what to write."""
        self._work.start_unit(unit)
        for reduction in self._reductions:
            reduction.start_unit(unit.stop - unit.start)
        for writer in self._dense.values():
            writer.start_unit(unit.start)
        records: list[RowRecord] = []
        thumbnails: list[bytes] = []
        fresh = self._fresh(unit)
        if self._job.base and fresh.start > unit.start:
            carried = range(unit.start, fresh.start)
            self._carry(self._job.base, carried)
            records += self._job.base.records(carried)
            thumbnails += self._job.base.thumbnails(carried)
        for batch in self._taken(fresh):
            self._writing.check()
            self._forward.run(batch, batch.row - unit.start)
            records += [
                self._record(row, each) for row, each in enumerate(batch.pictures, batch.row)
            ]
            thumbnails += [picture.thumbnail for picture in batch.pictures]
            self._advance(len(batch.pictures))
        self._hand_over(unit, records, thumbnails)

    def _fresh(self, unit: Unit) -> range:
        """Rows of a unit that are not the base's."""
        return range(max(unit.start, self._job.plan.base_rows), unit.stop)

    def _taken(self, rows: range) -> Iterator[Batch]:
        """The batches of `rows`, which are those announced next."""
        for _ in range(0, len(rows), self._job.plan.batch_size):
            yield self._batches.take()

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

    def _decode(self, row: int) -> Picture:
        try:
            data = self._job.source.read(row - self._job.plan.base_rows)
        except OSError as error:
            return Picture(None, b"", "", f"the file cannot be read ({error.strerror})")
        return self._decoder(data)

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

    def _hand_over(self, unit: Unit, records: list[RowRecord], thumbnails: list[bytes]) -> None:
        """Have all that is left of a unit written, its receipt at last."""
        files = UnitFiles(self._work, unit)
        dense = [done for writer in self._dense.values() if (done := writer.hand_over())]
        saturated = sum(reduction.saturated for reduction in self._reductions)
        with self.stages.at("held"):
            before = []
            for reduction in self._reductions:
                # The base's own images are candidates already.
                reduced = reduction.take(self._fresh(unit))
                work = partial(files.write_layer, reduced)
                before.append(self._writing.hand_over(work, reduced.nbytes))
            finish = partial(files.finish, records, thumbnails, saturated, [*before, *dense])
            self._writing.hand_over(finish, sum(map(len, thumbnails)))


def _dense_writer(work: Work, number: int) -> DenseWriter:
    layer = work.plan.layers[number]
    spec = layout.activations_spec(layer, work.plan.rows, work.plan.unit_rows)
    path = layout.layer_path(work.staged, layer.name) / layout.ACTIVATIONS
    return DenseWriter(layer, create_array(path, spec), spec.shard[0])
