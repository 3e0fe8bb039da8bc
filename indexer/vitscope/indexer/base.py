"""The published generation that pictures are added to (`--append`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.indexer.differences import differences
from vitscope.indexer.errors import NothingNewError, OutputError
from vitscope.indexer.plan import Plan
from vitscope.indexer.sources import RowList, Source
from vitscope.indexer.sources.rows import RowListBuilder
from vitscope.indexer.topk import KEY
from vitscope.store import layout
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.rows import RowRecord
from vitscope.store.text import counted


@dataclass(frozen=True, slots=True, eq=False)
class Added(Source):
    """The pictures of a source that are new to an index."""

    source: Source
    chosen: npt.NDArray[np.int64]
    """Their rows in the source."""

    def read(self, row: int) -> bytes:
        """The encoded image of a row; raises OSError where it cannot be read."""
        return self.source.read(int(self.chosen[row]))


@dataclass(frozen=True, slots=True)
class Base:
    """An index as far as it goes before this run."""

    generation: Generation

    @property
    def name(self) -> str:
        """Name of the generation."""
        return self.generation.name

    @property
    def rows(self) -> int:
        """Images in it; the first new one gets this number."""
        return self.generation.manifest.rows

    def new_pictures(self, source: Source) -> Source:
        """What of `source` is not in the index yet.

        A picture is known where an image of the same key has the same bytes; one whose key is
        taken by another picture gets a number behind it. Raises `NothingNewError`.
        """
        known = {self.generation.rows.key(row): row for row in range(self.rows)}
        builder = RowListBuilder()
        chosen = []
        renamed = 0
        for number, listed in enumerate(source.rows):
            key = self._free_key(known, source, number)
            if key is None:
                continue
            renamed += key != listed.key
            builder.add(key, listed.label, listed.bytes, listed.boxes)
            chosen.append(number)
        if not chosen:
            raise NothingNewError("All of these pictures are in the index already.")
        return Added(
            builder.freeze(),
            (*source.notices, *_notices(len(source.rows) - len(chosen), renamed)),
            source,
            np.array(chosen, np.int64),
        )

    def _free_key(self, known: Mapping[str, int], source: Source, number: int) -> str | None:
        """The key of a picture: its own, or `a.jpg#2` and so on; None where the index has it."""
        own = key = source.rows[number].key
        count = 1
        while key in known:
            if self._holds(known[key], source, number):
                return None
            count += 1
            key = f"{own}#{count}"
        return key

    def _holds(self, row: int, source: Source, number: int) -> bool:
        record = self.generation.rows.record(row)
        if record.bytes != source.rows[number].bytes:
            return False
        try:
            return record.sha256 == hashlib.sha256(source.read(number)).hexdigest()
        except OSError:
            # As unreadable as it was.
            return not record.sha256

    def digest(self, added: RowList) -> str:
        """Digest of the row list of the base and then `added`."""
        lines = f"{self.generation.manifest.rows_sha256}\n{added.digest()}\n"
        return hashlib.sha256(lines.encode()).hexdigest()

    def check_model(self, name: str) -> None:
        """Raise `OutputError` where the base is of another model than `name`."""
        made_with = self.generation.manifest.model.name
        if name != made_with:
            raise OutputError(
                f"The index was made with --model {made_with} (not {name}); make another index "
                "with --out."
            )

    def check(self, plan: Plan) -> None:
        """Raise `OutputError` where `plan` would not give scores like those of the base.

        Which pictures it adds does not matter.
        """
        manifest = self.generation.manifest
        # Few pictures have fewer best ones: more may be kept as soon as there are more.
        layers = tuple(replace(layer, top_k=min(layer.top_k, self.rows)) for layer in plan.layers)
        mine = replace(plan, layers=layers)
        theirs = replace(
            plan,
            model=manifest.model,
            layers=manifest.layers,
            batch_size=manifest.batch_size,
            thumbnail_size=manifest.thumbnail_size,
            threads=manifest.threads,
            unit_rows=plan.unit_rows if self.single_unit else manifest.unit_rows,
        )
        if others := differences(mine.to_json(), theirs.to_json()):
            raise OutputError(
                f"The index was made with {', '.join(others)}; give --append the options it was "
                "made with (`vitscope info` shows them)."
            )

    @property
    def single_unit(self) -> bool:
        """Whether the base is one unit, whose size is then no rule for larger ones."""
        return self.rows <= self.generation.manifest.unit_rows

    def array(self, layer: LayerRecord, name: str, *index: slice) -> npt.NDArray[Any]:
        """Part of one of a layer's arrays."""
        return self.generation.read(layer.name, name, *index)

    def records(self, rows: range) -> list[RowRecord]:
        """Row records of images of the base."""
        return [self.generation.rows.record(row) for row in rows]

    def thumbnails(self, rows: range) -> list[bytes]:
        """Pictures of images of the base."""
        return [self.generation.thumbnail(row) for row in rows]

    def candidate_keys(self, layer: LayerRecord, pooling: Pooling) -> npt.NDArray[np.void]:
        """The base's best images of every channel: (M,) of dtype `KEY`, by channel and rank."""
        rows = self.array(layer, layout.top_rows_name(pooling))
        scores = self.array(layer, layout.top_scores_name(pooling))
        channel, rank = np.nonzero(rows >= 0)
        keys = np.empty(len(channel), KEY)
        keys["channel"] = channel
        keys["row"] = rows[channel, rank]
        keys["score"] = scores[channel, rank]
        return keys

    def candidate_maps(self, layer: LayerRecord, pooling: Pooling) -> npt.NDArray[np.float16]:
        """Patch maps (M, H * W) of those images."""
        rows = self.array(layer, layout.top_rows_name(pooling))
        maps = self.array(layer, layout.top_maps_name(pooling))
        return maps[rows >= 0].reshape(int((rows >= 0).sum()), -1)


def _notices(passed_over: int, renamed: int) -> Iterator[str]:
    if passed_over:
        yield f"Passed over: {counted(passed_over, 'picture')} that the index has already."
    if renamed:
        yield (
            f"Renamed: {counted(renamed, 'new picture')} with the name of another in the index, "
            "by a number behind it, as in a.jpg#2."
        )
