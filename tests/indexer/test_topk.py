"""The running top-K against sorting everything, with many ties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.indexer.topk import KEY, Candidates, RunningTop

CELLS = 6


@dataclass(frozen=True)
class Case:
    scores: npt.NDArray[np.float16]  # [N, C], NaN where the image is invalid
    maps: npt.NDArray[np.float16]  # [N, CELLS, C]
    k: int
    batches: list[int]
    """Row where each batch starts, and the end."""
    units: list[int]
    """Batch boundaries that end a unit."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, channels = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    # Few distinct values: ties everywhere.
    levels = draw(st.integers(1, 6))
    scores = generator.integers(-levels, levels, (rows, channels)).astype(np.float16)
    scores[generator.random(rows) < draw(st.sampled_from([0, 0.3, 1]))] = np.nan
    maps = generator.normal(size=(rows, CELLS, channels)).astype(np.float16)
    cuts = draw(st.lists(st.integers(1, max(rows - 1, 1)), unique=True))
    batches = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    inner = batches[1:-1]
    units = sorted(draw(st.lists(st.sampled_from(inner), unique=True))) if inner else []
    return Case(scores, maps, draw(st.integers(1, 12)), batches, [*units, rows])


def running(case: Case, channels: int) -> RunningTop:
    return RunningTop(1, channels, case.k, CELLS, "cpu")


def feed(top: RunningTop, case: Case, start: int, stop: int) -> None:
    top.update(
        torch.from_numpy(case.scores[None, start:stop]),
        torch.arange(start, stop),
        torch.from_numpy(case.maps[start:stop].astype(np.float32)),
    )


def merged(case: Case, parts: list[Candidates]) -> dict[int, list[tuple[int, float, list[float]]]]:
    """Row, score and map of the k best of each channel over all candidates, by sorting."""
    found: dict[int, list[tuple[int, float, list[float]]]] = {}
    for part in parts:
        for (channel, row, score), patch_map in zip(part.keys.tolist(), part.maps, strict=True):
            found.setdefault(channel, []).append((row, score, patch_map.tolist()))
        joined = np.concatenate([*(block.copy() for block in part.blocks()), part.maps[:0]])
        assert np.array_equal(joined, part.maps)
    return {c: sorted(each, key=lambda e: (-e[1], e[0]))[: case.k] for c, each in found.items()}


def expected(case: Case) -> dict[int, list[tuple[int, float, list[float]]]]:
    best: dict[int, list[tuple[int, float, list[float]]]] = {}
    for channel in range(case.scores.shape[1]):
        column = case.scores[:, channel]
        rows = [row for row in range(len(column)) if not np.isnan(column[row])]
        rows.sort(key=lambda row: (-float(column[row]), row))
        if rows:
            best[channel] = [
                (row, float(column[row]), case.maps[row, :, channel].tolist())
                for row in rows[: case.k]
            ]
    return best


@settings(max_examples=300, deadline=None)
@given(cases(), st.booleans())
def test_units_of_one_worker_hold_the_top_of_all(case: Case, copied: bool) -> None:
    top = running(case, case.scores.shape[1])
    parts, unit_start = [], 0
    for start, stop in zip(case.batches, case.batches[1:], strict=False):
        feed(top, case, start, stop)
        if stop in case.units:
            # Maps of earlier units are not to be looked at again.
            others = None if copied else torch.full_like(top.maps, torch.nan)
            parts.append(top.take(range(unit_start, stop), others).candidates(0))
            unit_start = stop
    assert merged(case, parts) == expected(case)


@settings(max_examples=200, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_a_worker_that_takes_over_in_any_order_keeps_the_top(case: Case, random: object) -> None:
    starts = [0, *case.units[:-1]]
    units = list(zip(starts, case.units, strict=True))
    random.shuffle(units)  # type: ignore[attr-defined]
    parts: list[Candidates] = []
    for start, stop in units:
        # Every unit is done by a new process that only knows the finished ones.
        top = running(case, case.scores.shape[1])
        for part in parts:
            top.restore(0, part.keys)
        feed(top, case, start, stop)
        parts.append(top.take(range(start, stop)).candidates(0))
    assert merged(case, parts) == expected(case)


def test_a_second_unit_keeps_only_what_can_still_win() -> None:
    scores = np.zeros((20, 1), np.float16)
    scores[:10] = 1
    top = RunningTop(1, 1, 4, CELLS, "cpu")
    case = Case(scores, np.zeros((20, CELLS, 1), np.float16), 4, [], [])
    feed(top, case, 0, 10)
    assert len(top.take(range(0, 10)).candidates(0).keys) == 4
    feed(top, case, 10, 20)
    assert len(top.take(range(10, 20)).candidates(0).keys) == 0


def test_keys_have_the_documented_dtype() -> None:
    top = RunningTop(1, 2, 3, CELLS, "cpu")
    found = top.take(range(0, 5)).candidates(0)
    assert found.keys.dtype == KEY
    assert found.maps.shape == (0, CELLS)
