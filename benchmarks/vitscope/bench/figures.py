"""What benchmarks found, in one form: a value, its spread, its ratio to a floor, and a bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]
Limits = Mapping[str, float]
"""By the names that `limits` gives, in its units."""
Work = Mapping[str, float]
"""How much there is to do of each kind: operations by dtype, bytes, and trips of a message."""

_KINDS = {
    "float32": ("matrix_float32", 1e-6, "operations of the forward as matrix products in float32"),
    "bfloat16": (
        "matrix_bfloat16",
        1e-6,
        "operations of the forward as matrix products in bfloat16",
    ),
    "written": ("disk_write", 1e-3, "bytes that the disk takes and has for good"),
    "read": ("disk_read", 1e-3, "bytes that the disk gives"),
    "moved": ("memory", 1e-6, "bytes that are read from memory"),
    "trips": ("loopback", 1.0, "a byte there and back over loopback"),
}
"""Of each kind of work, the limit's name, from amount / limit to milliseconds, and in words."""


@dataclass(frozen=True)
class Bound:
    """What the machine would take at least."""

    ms: float
    why: str


@dataclass(frozen=True)
class Figure:
    """One side of one row."""

    part: str
    """The benchmark."""
    what: str
    side: str
    ms: float
    quartiles: tuple[float, float]
    floor: str
    """The side that ratios are to."""
    ratio: float
    ratio_quartiles: tuple[float, float]
    rounds: int
    bound: Bound | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What it has in common with the same figure of another run."""
        return self.part, self.what, self.side

    @property
    def is_floor(self) -> bool:
        """Whether it is what others are measured by."""
        return self.side == self.floor


def limits_of(body: Body) -> Limits:
    """The machine's bounds that a run measured; none where it measured none."""
    rows = body["parts"].get("limits", {}).get("rows", ())
    return {row["name"]: row["value"] for row in rows}


def figures_of(body: Body) -> list[Figure]:
    """All figures of a run that have ratios."""
    limits = limits_of(body)
    return [
        figure
        for part, found in body["parts"].items()
        for row in found["rows"]
        if "sides" in row
        for figure in _of_row(part, row, limits)
    ]


def _of_row(part: str, row: Mapping[str, Any], limits: Limits) -> Iterator[Figure]:
    for name, side in row["sides"].items():
        work = row.get("work_of", {}).get(name, row.get("work", {}))
        yield Figure(
            part=part,
            what=row["what"],
            side=name,
            ms=side["ms"],
            quartiles=tuple(side["ms_quartiles"]),
            floor=row["floor"],
            ratio=side["ratio"],
            ratio_quartiles=tuple(side["ratio_quartiles"]),
            rounds=row["rounds"],
            bound=bound_of(work, limits),
        )


def bound_of(work: Work, limits: Limits) -> Bound | None:
    """The longest that any part of some work takes at the machine's limit for it."""
    found = []
    for kind, amount in work.items():
        name, factor, why = _KINDS[kind]
        if (limit := limits.get(name)) and amount:
            # The one limit that is a time; others are rates.
            taken = amount * limit if kind == "trips" else amount / limit * factor
            found.append(Bound(taken, why))
    return max(found, key=lambda bound: bound.ms, default=None)


def told(value: float) -> str:
    """A number for people: three digits, or all that are before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
