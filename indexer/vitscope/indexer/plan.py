"""The plan of a run: everything that decides what is published, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from vitscope.store.manifest import LayerRecord, ModelRecord


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


@dataclass(frozen=True, slots=True)
class Plan:
    """Fixed before the first forward; a run only goes on with work of an equal plan."""

    model: ModelRecord
    layers: tuple[LayerRecord, ...]
    rows: int
    rows_sha256: str
    """Digest of the frozen row list."""
    batch_size: int
    unit_rows: int
    thumbnail_size: int

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units, in the order of their rows."""
        starts = range(0, self.rows, self.unit_rows)
        return tuple(
            Unit(number, start, min(start + self.unit_rows, self.rows))
            for number, start in enumerate(starts)
        )

    def to_json(self) -> bytes:
        """Serialise; equal plans give equal bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode() + b"\n"


def differences(mine: bytes, other: bytes) -> list[str]:
    """Names of the fields in which two serialised plans differ, such as `model.dtype`."""
    left, right = _flat(json.loads(mine)), _flat(json.loads(other))
    return sorted(key for key in left | right if left.get(key) != right.get(key))


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        # Layers: by field, so that a difference names the field.
        value = {key: [item.get(key) for item in value] for key in value[0]}
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{path}.{key}" if path else key)
    return flat
