"""Pictures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from vitscope.bench.figures import Figure
from vitscope.bench.growth import COSTS

_LINE = 0.26
"""Inches for each line of a plot."""
_OURS, _OTHERS = "#1b6ca8", "#b8b8b8"


def ratios(figures: Sequence[Figure]) -> Picture:
    """Ratios to the floor, with their quartiles, one line each."""
    shown = [figure for figure in figures if not figure.is_floor][::-1]
    picture = Picture(figsize=(10, 1.2 + _LINE * len(shown)), layout="constrained")
    axes = picture.subplots()
    places = np.arange(len(shown))
    middle = np.array([figure.ratio for figure in shown])
    sides = np.array([figure.ratio_quartiles for figure in shown]).T
    spread = np.abs(sides - middle)
    axes.errorbar(middle, places, xerr=spread, fmt="o", color=_OURS, ecolor=_OTHERS, capsize=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(places, [f"{figure.what}: {figure.side}" for figure in shown], fontsize=7)
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_xlabel("time ÷ time of the floor (1), quartiles of rounds")
    axes.grid(axis="x", which="both", linewidth=0.3)
    return picture


def growth(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """A line for each cost and each way to grow, both axes logarithmic."""
    picture = Picture(figsize=(11, 3.4 * len(rows)), layout="constrained")
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
            axes.loglog(sizes, values, "o-", color=_OURS)
            # What would grow as the number does.
            axes.loglog(sizes, values[0] * sizes / sizes[0], "--", color=_OTHERS, linewidth=1)
            axes.set_title(f"{cost}, {COSTS[cost]}: n^{row['exponents'][cost]:.2f}", fontsize=9)
            axes.tick_params(labelsize=7)
            axes.grid(which="major", linewidth=0.3)
        place[0].set_ylabel(row["what"], fontsize=8)
    picture.supxlabel("n; dashed: as n grows", fontsize=8)
    return picture


def peers(body: Mapping[str, Any]) -> Picture:
    """How many times better than every other tool, one panel a row."""
    rows = body["rows"]
    names = [name for name in body["tools"] if name != "vitscope"]
    picture = Picture(figsize=(10, 1 + 0.24 * len(rows) * (len(names) + 1)), layout="constrained")
    axes = picture.subplots()
    colours = _shades(len(names))
    step = len(names) + 1
    for number, row in enumerate(rows):
        for place, name in enumerate(names):
            value, ours = row["values"].get(name), row["values"].get("vitscope")
            at = -number * step - place
            if not value or not ours:
                axes.text(1, at, " –", fontsize=6, va="center", color="#888888")
                continue
            factor = ours / value if row["better"] == "more" else value / ours
            axes.barh(at, factor - 1, left=1, color=colours[place], height=0.8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    middle = [-number * step - (len(names) - 1) / 2 for number in range(len(rows))]
    axes.set_yticks(middle, [row["what"] for row in rows], fontsize=8)
    axes.set_xlabel("times better than the tool; left of 1, the tool is better")
    handles = [axes.barh(0, 0, color=colour) for colour in colours]
    axes.legend(handles, names, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture


def _shades(count: int) -> list[tuple[float, float, float]]:
    return [
        (0.10 + 0.75 * part, 0.42 + 0.30 * part, 0.66 + 0.10 * part)
        for part in np.linspace(0, 1, max(count, 1))
    ]
