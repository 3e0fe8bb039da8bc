"""The compiled reduction against the same reduction by PyTorch, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscope.indexer import reduce
from vitscope.indexer.reduce import LayerReduction, Room
from vitscope.indexer.topk import Candidates
from vitscope.store.manifest import LayerRecord, TokenLayout

ODD = (0.0, 1e-8, -3e-8, 6.1e-5, 65504.0, 65519.9, 65520.0, 7e4, 3e38, np.inf)
"""Values about the edges of float16: its least, its subnormals, its largest; of either sign, so
that large ones cancel."""


@dataclass(frozen=True)
class Case:
    layer: LayerRecord
    units: list[list[tuple[torch.Tensor, torch.Tensor]]]
    """Batches of activations (B, T, C) and which of the images (B,) are valid."""
    row: int
    """Of the first image."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    prefix = draw(st.sampled_from([(), ("cls",), ("cls", "dist"), ("reg", "cls"), ("reg", "reg")]))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    tokens = TokenLayout.even(prefix, height, width, (8 * height, 8 * width))
    # NumPy adds a single channel in another order.
    channels = draw(st.sampled_from([2, 3, 16, 130, 300]))
    kept = draw(st.integers(1, 9))
    layer = LayerRecord("mlp", 0, channels, tokens, tokens.poolings, kept, False, False)
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    odd = draw(st.sampled_from([0.0, 0.05, 0.9]))
    levels = draw(st.sampled_from([0, 3]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        shape = draw(st.integers(1, 6)), tokens.tokens, channels
        some = chance.normal(0, 10.0 ** chance.integers(-6, 4), shape).astype(np.float32)
        if levels:
            # Few distinct values: ties everywhere.
            some = chance.integers(-levels, levels, shape).astype(np.float32)
        places = chance.random(shape) < odd
        values = np.array([*ODD, *(-value for value in ODD), np.nan], np.float32)
        some[places] = chance.choice(values, int(places.sum()))
        return torch.from_numpy(some).to(dtype), torch.from_numpy(chance.random(shape[0]) < 0.8)

    units = [
        [batch() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 3)))
    ]
    return Case(layer, units, draw(st.sampled_from([0, 7, 2**31 - 3, 2**39])))


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered")
@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 5), st.booleans())
def test_compiled_code_gives_the_bits_of_pytorch(case: Case, threads: int, again: bool) -> None:
    """Also where every unit is done by a new process that takes over what the others found."""
    layer, row = case.layer, case.row
    found: list[list[Candidates]] = []
    with ThreadPoolExecutor(4) as helpers:

        def both() -> list[LayerReduction]:
            made = [
                LayerReduction(layer, "cpu", helpers=helpers, threads=threads, room=Room()),
                LayerReduction(layer, "cpu", compiled=False),
            ]
            for reduction, earlier in zip(made, zip(*found, strict=True), strict=False):
                for number, keys in enumerate(earlier):
                    reduction.restore(layer.poolings[number % len(layer.poolings)], keys.keys)
            return made

        reductions = both()
        for unit in case.units:
            rows = sum(len(values) for values, _ in unit)
            if again:
                reductions = both()
            for reduction in reductions:
                reduction.start_unit(rows + 2)
                offset = 1
                for values, valid in unit:
                    reduction.update(values, row + offset, valid, offset)
                    offset += len(values)
            mine, theirs = reductions
            assert mine.saturated == theirs.saturated
            taken = [each.take(range(row, row + rows + 2)) for each in reductions]
            assert same(taken[0].scores, taken[1].scores)
            for one, other in zip(*(each.candidates for each in taken), strict=True):
                assert np.array_equal(one.keys, other.keys)
                assert same(one.maps, other.maps)
                found.append([one, other])
            taken[0].release()
            row += rows + 2


def same(mine: npt.NDArray[np.float16], theirs: npt.NDArray[np.float16]) -> bool:
    """Whether the bits are the same, every NaN being as any other."""
    return np.array_equal(bits(mine), bits(theirs))


def bits(values: npt.NDArray[np.float16]) -> npt.NDArray[np.int16]:
    """Every NaN as the same one."""
    return np.where(np.isnan(values), np.float16(np.nan), values).view(np.int16)


def test_activations_with_gaps_are_reduced_as_they_are() -> None:
    tokens = TokenLayout.even((), 4, 3, (32, 24))
    layer = LayerRecord("mlp", 0, 70, tokens, tokens.poolings, 2, False, False)
    values = 1e5 * torch.randn(3, 70, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    reductions = [LayerReduction(layer, "cpu", compiled=each) for each in (True, False)]
    for reduction in reductions:
        reduction.start_unit(3)
        reduction.update(values.transpose(1, 2), 0, torch.ones(3, dtype=torch.bool), 0)
    mine, theirs = (each.take(range(3)) for each in reductions)
    assert same(mine.scores, theirs.scores)
    for found, expected in zip(mine.candidates, theirs.candidates, strict=True):
        assert np.array_equal(found.keys, expected.keys)
        assert same(found.maps, expected.maps)
        assert np.abs(found.maps.astype(np.float64)).max() == 65504


@pytest.mark.parametrize(
    ("place", "compiled"),
    [("to_half", True), ("to_half", False), ("saturated", False), ("round_to_half", False)],
)
def test_where_memory_ends_a_batch_is_taken_in_anew_in_halves(
    monkeypatch: pytest.MonkeyPatch, place: str, compiled: bool
) -> None:
    """As if it never had ended: no image stands twice in a ranking, nothing is counted twice."""
    tokens = TokenLayout.even(("cls", "reg"), 4, 3, (32, 24))
    layer = LayerRecord("mlp", 0, 70, tokens, tokens.poolings, 5, False, True)
    chance = torch.Generator().manual_seed(0)
    first, second = 5e4 * torch.randn(2, 8, 14, 70, generator=chance)
    valid = torch.ones(8, dtype=torch.bool)
    mine, theirs = (LayerReduction(layer, "cpu", compiled=compiled) for _ in range(2))
    for each in (mine, theirs):
        each.start_unit(16)
        each.update(first, 0, valid, 0)

    def ended(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(reduce, place, ended)
        with pytest.raises(torch.OutOfMemoryError):
            mine.update(second, 8, valid, 8)
    for part in (slice(0, 4), slice(4, 8)):
        mine.update(second[part], 8 + part.start, valid[part], 8 + part.start)
    theirs.update(second, 8, valid, 8)
    assert mine.saturated == theirs.saturated
    taken = [each.take(range(16)) for each in (mine, theirs)]
    assert same(taken[0].scores, taken[1].scores)
    assert same(taken[0].prefix, taken[1].prefix)
    for found, expected in zip(*(each.candidates for each in taken), strict=True):
        assert np.array_equal(found.keys, expected.keys)
        assert same(found.maps, expected.maps)


def test_a_full_disk_for_compiled_code_does_not_end_a_run(tmp_path: Path) -> None:
    """Where compiled code cannot be kept, it is compiled anew."""
    cache = tmp_path / "cache"
    cache.mkdir()
    script = (
        "import resource, signal, sys\n"
        "from vitscope.indexer import host\n"
        "import numpy as np\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "sixteen = [np.zeros((1, 4, 9), np.int16), np.full((1, 4, 1, 2), 0, np.int16)]\n"
        "keys, bars = np.full((1, 4, 1), -1), np.full((1, 4), -1)\n"
        "values = np.ones((1, 2, 4), np.float32)\n"
        "args = [values, 0, np.array([-1]), 0, 4, 0, np.ones(1, bool), sixteen[0], 3]\n"
        "host.reduce_channels(*args, keys, bars, sixteen[1])\n"
        "assert (sixteen[0].view(np.float16)[0, :, 3] == 1).all()\n"
        "assert host._plain.signatures, 'the first compilation was kept after all'\n"
        "sys.stdout.write('done')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "done", run.stderr
    assert not [path for path in cache.rglob("*.nbc") if path.stat().st_size > 100]
