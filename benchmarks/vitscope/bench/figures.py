"""What benchmarks found, in one form: a value, its spread, its ratio to a floor, and a bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]
Limits = Mapping[str, float]
"""By the names that `limits` gives, in its units."""


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
    bound = bound_of(part, row, limits)
    for name, side in row["sides"].items():
        yield Figure(
            part=part,
            what=row["what"],
            side=name,
            ms=side["ms"],
            quartiles=tuple(side["ms_quartiles"]),
            floor=row["floor"],
            ratio=side["ratio"],
            ratio_quartiles=tuple(side["ratio_quartiles"]),
            bound=bound,
        )


def bound_of(part: str, row: Mapping[str, Any], limits: Limits) -> Bound | None:
    """The least that a row could take on this machine, as far as it is known what it does."""
    if not limits:
        return None
    dtype = row.get("dtype", "float32")
    if "operations" in row and (rate := limits.get(f"matrix_{dtype}")):
        return Bound(
            row["operations"] / rate / 1e6,
            f"{row['operations'] / row['images'] / 1e9:.2f} GFLOP an image at the rate of matrix "
            f"products ({rate:,.0f} GFLOP/s, {dtype})",
        )
    if part in ("answers", "questions", "throughput") and "over" not in row:
        moved = row.get("bytes", 0) / limits["memory"] / 1e6
        return Bound(limits["loopback"] + moved, "a byte there and back over loopback, and a copy")
    if part == "store" and "bytes" in row:
        name = "disk_write" if row["what"].startswith("write") else "memory"
        rate = limits[name] * (1e6 if name == "disk_write" else 1e9)
        return Bound(row["bytes"] / rate * 1e3, f"{row['bytes']:,} bytes at the rate of {name}")
    return None
