"""Pictures of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogLocator, NullFormatter

from vitscope.bench.figures import Figure, told
from vitscope.bench.growth import COSTS

_LINE = 0.26
"""Inches for each line of a plot."""
_PAGE = 45
"""Lines that can still be read at a time."""
_OURS, _OTHERS = "#1b6ca8", "#b8b8b8"


def pages(figures: Sequence[Figure]) -> Iterator[Sequence[Figure]]:
    """All but floors, as many together as a picture holds."""
    shown = [figure for figure in figures if not figure.is_floor]
    count = -(-len(shown) // _PAGE)
    for number in range(count):
        yield shown[len(shown) * number // count : len(shown) * (number + 1) // count]


def ratios(figures: Sequence[Figure]) -> Picture:
    """Ratios to the floor, with their quartiles, one line each."""
    shown = figures[::-1]
    picture = Picture(figsize=(10, 1.2 + _LINE * len(shown)), layout="constrained")
    axes = picture.subplots()
    places = np.arange(len(shown))
    middle = np.array([figure.ratio for figure in shown])
    sides = np.array([figure.ratio_quartiles for figure in shown]).T
    spread = np.abs(sides - middle)
    axes.errorbar(middle, places, xerr=spread, fmt="o", color=_OURS, ecolor=_OTHERS, capsize=2)
    axes.axvline(1, color="black", linewidth=0.8)
    _logarithmic(axes, "x", [*sides.ravel(), 1.0])
    axes.set_yticks(places, [f"{figure.what}: {figure.side}" for figure in shown], fontsize=7)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("time ÷ time of the floor (1), quartiles of rounds")
    axes.grid(axis="x", which="both", linewidth=0.3)
    return picture


def growth(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """A line for each cost and each way to grow, both axes logarithmic."""
    picture = Picture(figsize=(13, 3.2 * len(rows)), layout="constrained")
    for place, row in zip(
        picture.subplots(len(rows), len(COSTS), squeeze=False), rows, strict=True
    ):
        for axes, cost in zip(place, COSTS, strict=True):
            points = row["points"]
            if cost not in points[0]:
                axes.set_axis_off()
                continue
            sizes = np.array([point["n"] for point in points], float)
            values = np.array([point[cost] for point in points], float)
            axes.plot(sizes, values, "o-", color=_OURS)
            # What would grow as the number does.
            as_number = values[0] * sizes / sizes[0]
            axes.plot(sizes, as_number, "--", color=_OTHERS, linewidth=1)
            _logarithmic(axes, "x", [*sizes])
            _logarithmic(axes, "y", [*values, *as_number])
            axes.set_title(f"{cost}, {COSTS[cost]}: n^{row['exponents'][cost]:.2f}", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(which="major", linewidth=0.3)
        shown = next(axes for axes, cost in zip(place, COSTS, strict=True) if cost in points[0])
        shown.set_ylabel(row["what"], fontsize=8)
    picture.supxlabel("n; dashed: as n grows", fontsize=8)
    return picture


def peers(body: Mapping[str, Any]) -> Picture:
    """How many times better than every other tool, a line for each row and a colour for each."""
    names = [name for name in body["tools"] if name != "vitscope"]
    rows = [row for row in body["rows"] if len(_factors(row)) > 0]
    picture = Picture(figsize=(10, 1.5 + 0.5 * len(rows)), layout="constrained")
    axes = picture.subplots()
    palette = colormaps["tab10"]
    found = [1.0]
    for place, name in enumerate(names):
        points = [(_factors(row).get(name), -number) for number, row in enumerate(rows)]
        shown = [(factor, at) for factor, at in points if factor]
        found += [factor for factor, _ in shown]
        # Side by side, so that none hides another.
        shift = 0.5 * (place / max(1, len(names) - 1) - 0.5)
        axes.scatter(
            [factor for factor, _ in shown],
            [at - shift for _, at in shown],
            color=palette(place % 10),
            label=name,
            s=30,
        )
    _logarithmic(axes, "x", found)
    axes.axvline(1, color="black", linewidth=0.8)
    for number in range(len(rows) + 1):
        axes.axhline(0.5 - number, color=_OTHERS, linewidth=0.4)
    axes.set_yticks([-number for number in range(len(rows))], [row["what"] for row in rows])
    axes.set_ylim(0.5 - len(rows), 0.5)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_xlabel("times better than the tool; left of 1, the tool is better")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture


def _factors(row: Mapping[str, Any]) -> dict[str, float]:
    """By tool, how many times better vitscope is, where both have a value."""
    values, ours = row["values"], row["values"].get("vitscope")
    return {
        name: ours / value if row["better"] == "more" else value / ours
        for name, value in values.items()
        if name != "vitscope" and ours and value
    }


def _logarithmic(axes: Any, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, as many as there is room for."""
    decades = np.log10(max(values) / min(values))
    steps = (1.0,) if decades > 1.5 else (1.0, 3.0) if decades > 1 else (1.0, 1.5, 2.0, 3.0, 5.0)
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_major_formatter(lambda value, _: told(value))
    axis.set_minor_formatter(NullFormatter())
