"""The plan of a run: everything that decides what is published, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitscope.store.manifest import LayerRecord, Manifest, ModelRecord
from vitscope.store.records import record_from


@dataclass(frozen=True, slots=True)
class Unit:
    """A fixed range of rows; its scores are whole shards, so it has one writer."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of its folder and receipt."""
        return f"{self.number:06d}"

    @property
    def rows(self) -> slice:
        """Its rows of the index."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of the units one run of several does: every `count`-th, from `number` on."""

    number: int
    count: int

    def __str__(self) -> str:
        """As --shard takes it."""
        return f"{self.number}/{self.count}"

    def of(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Its units."""
        return units[self.number :: self.count]


WHOLE = Shard(0, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """Fixed before the first forward; a run only goes on with work of an equal plan."""

    model: ModelRecord
    layers: tuple[LayerRecord, ...]
    base: str
    """The generation that pictures are added to; empty for a new index."""
    base_rows: int
    """Rows of `base`; those of this run's pictures follow."""
    rows: int
    rows_sha256: str
    """Digest of the frozen row list."""
    batch_size: int
    unit_rows: int
    threads: int
    """Of a forward on the CPU: matrix products may round differently with another number; 0 for
    other devices."""
    thumbnail_size: int

    def made(self, manifest: Manifest) -> bool:
        """Whether a generation with this manifest is what the plan makes."""
        return all(
            getattr(self, name) == getattr(manifest, name)
            for name in (
                *("model", "layers", "rows", "rows_sha256", "batch_size", "unit_rows", "threads"),
                "thumbnail_size",
            )
        )

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units with new rows, in the order of their rows.

        The first one also holds the rows of the base's last unit where that is not full.
        """
        first = self.base_rows // self.unit_rows
        return tuple(
            Unit(number, number * self.unit_rows, min((number + 1) * self.unit_rows, self.rows))
            for number in range(first, -(-self.rows // self.unit_rows))
        )

    def new_rows(self, unit: Unit) -> int:
        """How many rows of a unit are not the base's."""
        return unit.stop - max(unit.start, self.base_rows)

    def to_json(self) -> bytes:
        """Serialise; equal plans give equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"

    @staticmethod
    def from_json(plan: dict[str, Any]) -> Plan:
        """The plan of a parsed `to_json`; raises whatever comes of a body that is none."""
        return record_from(Plan, plan)
