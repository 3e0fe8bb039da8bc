"""Two runs side by side: which ratios changed by more than they spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vitscope.bench.figures import Body, Figure, figures_of

LEAST = 0.05
"""Changes below are none, however small the spread."""
FEW = 5
"""Rounds below tell no spread, so that nothing is judged by them."""


@dataclass(frozen=True)
class Change:
    """A figure before and after."""

    before: Figure
    after: Figure

    @property
    def factor(self) -> float:
        """Of the ratios; more than 1 is slower."""
        return self.after.ratio / self.before.ratio

    @property
    def judged(self) -> bool:
        """Whether both have rounds enough to tell how far ratios spread."""
        return min(self.before.rounds, self.after.rounds) >= FEW

    @property
    def beyond_spread(self) -> bool:
        """Whether the quartiles of both ratios lie apart, and the change is no trifle."""
        (low, high), (other_low, other_high) = (
            self.before.ratio_quartiles,
            self.after.ratio_quartiles,
        )
        apart = other_low > high or other_high < low
        return self.judged and apart and not 1 / (1 + LEAST) <= self.factor <= 1 + LEAST

    def beyond(self, margin: float) -> bool:
        """Whether even the lower quartile is slower than before by more than a margin."""
        worst = self.before.ratio_quartiles[1] * (1 + margin)
        return self.judged and self.after.ratio_quartiles[0] > worst


def changes(before: Body, after: Body) -> list[Change]:
    """Of all figures that both runs have and that are no floor, the greatest first."""
    old = {figure.key: figure for figure in figures_of(before)}
    found = [
        Change(old[figure.key], figure)
        for figure in figures_of(after)
        if figure.key in old and not figure.is_floor
    ]
    return sorted(found, key=lambda change: -abs(change.factor - 1))


def missing(before: Body, after: Body) -> list[Figure]:
    """Figures that the second run lacks of the parts that it has."""
    new = {figure.key for figure in figures_of(after)}
    parts = after["parts"].keys()
    return [each for each in figures_of(before) if each.part in parts and each.key not in new]


def targets_missed(body: Body) -> list[str]:
    """What a run says of itself that it did not hold."""
    return [
        f"{part}: {row['targets'][what]}"
        for part, found in body["parts"].items()
        for row in found["rows"]
        for what, held in row.get("held", {}).items()
        if not held
    ]


def table(found: Iterable[Change]) -> Iterator[str]:
    """Lines for people."""
    yield "A factor above 1 is slower; ! beyond what both spread, ? too few rounds to tell."
    yield f"  {'factor':>6}  {'before':<24}  {'after':<24}"
    for change in found:
        before, after = change.before, change.after
        mark = "!" if change.beyond_spread else " " if change.judged else "?"
        yield (
            f"{mark} {change.factor:>6.2f}  {_ratio(before):<24}  {_ratio(after):<24}  "
            f"{after.part}, {after.what}: {after.side}"
        )


def _ratio(figure: Figure) -> str:
    low, high = figure.ratio_quartiles
    return f"x {figure.ratio:.3g} ({low:.3g}–{high:.3g})"
