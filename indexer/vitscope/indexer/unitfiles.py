"""Writing what a unit leaves: scores in both directions, candidates, row records, the receipt."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from vitscope.indexer.plan import Unit
from vitscope.indexer.reduce import Reduced
from vitscope.indexer.stage import region, shards, unit_arrays
from vitscope.indexer.work import Work
from vitscope.store import layout
from vitscope.store.arrays import create_array
from vitscope.store.rows import RowRecord
from vitscope.store.seals import Seal


class UnitFiles:
    """The files of one unit, layer by layer."""

    def __init__(self, work: Work, unit: Unit) -> None:
        self._work = work
        self._unit = unit
        self._sealed: dict[str, Seal] = {}

    def write_layer(self, reduced: Reduced) -> None:
        """Write what is kept of a layer."""
        layer = reduced.layer
        group = layout.layer_path(self._work.staged, layer.name)
        values = {}
        for pooling, scores, found in zip(
            layer.poolings, reduced.scores, reduced.candidates, strict=True
        ):
            values[layout.scores_name(pooling)] = scores
            values[layout.row_scores_name(pooling)] = np.ascontiguousarray(scores.T)
            self._sealed |= self._work.write_candidates(self._unit, layer, pooling, found)
        reduced.release()
        if layer.dense_prefix:
            values[layout.PREFIX] = reduced.prefix
        for name, spec in unit_arrays(self._work.plan, layer).items():
            if name in values:
                array = create_array(group / name, spec)
                array.write(values[name], *region(spec, self._unit.rows))

    def finish(
        self,
        records: Sequence[RowRecord],
        thumbnails: Sequence[bytes],
        saturated: int,
        before: Sequence[Future[None]],
    ) -> None:
        """Write the rest, once what other threads write `before` is on the disk, and the receipt.

        Raises what they could not write.
        """
        for written in before:
            written.result()
        self._work.finish_unit(
            self._unit,
            records,
            thumbnails,
            saturated=saturated,
            shards=shards(self._work.plan, self._unit.rows),
            sealed=self._sealed,
        )
