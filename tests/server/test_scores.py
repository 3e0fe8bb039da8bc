"""Scores of whole layers over the wire, against brute force over the dense activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import Synthetic

from vitscope.server.queries import scores as engine
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import Pooling
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

LAYERS = {"blocks.0.mlp": 11, "stages.1.blocks.0.mlp": 24, "blocks.1.mlp": 3}
NUMBERS: dict[Pooling, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
Halves = npt.NDArray[np.float16]


@pytest.mark.parametrize("channels", [None, [4], [2, 0, 2, 2], [10, 9, 8, 0]])
@pytest.mark.parametrize(
    ("layer", "pooling"),
    [
        (layer, pooling)
        for layer in LAYERS
        for pooling in NUMBERS
        # That layer has no class token.
        if (layer, pooling) != ("stages.1.blocks.0.mlp", "cls")
    ],
)
def test_scores_to_the_bit(
    synthetic: Synthetic,
    stub: ActivationServiceStub,
    layer: str,
    pooling: Pooling,
    channels: list[int] | None,
) -> None:
    count = LAYERS[layer]
    chosen = None if channels is None else [channel % count for channel in channels][:count]
    request = pb.GetScoresRequest(layer=layer, pooling=NUMBERS[pooling], channels=chosen or ())
    [reply] = stub.GetScores(request, timeout=60)
    wanted = list(range(count)) if chosen is None else chosen
    assert (reply.generation, reply.pooling) == (synthetic.generation, NUMBERS[pooling])
    assert list(reply.channels) == wanted
    assert (reply.first_row, reply.rows) == (0, 70)
    assert reply.scores == truth_of(synthetic, layer, pooling)[wanted].tobytes()


def truth_of(synthetic: Synthetic, layer: str, pooling: Pooling) -> Halves:
    """(C, N)"""
    return np.ascontiguousarray(synthetic.scores(layer, pooling).T)


@pytest.fixture(scope="module")
def generation(synthetic: Synthetic) -> Generation:
    return open_generation(Path(synthetic.path))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layer=st.sampled_from(list(LAYERS)),
    channels=st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3),
    message=st.integers(2, 1_000),
    held=st.integers(2, 20_000),
)
def test_blocks_of_any_size_are_the_same_scores(
    synthetic: Synthetic,
    generation: Generation,
    monkeypatch: pytest.MonkeyPatch,
    layer: str,
    channels: list[int] | None,
    message: int,
    held: int,
) -> None:
    """The limits are too large for a small index to reach, so they are made small here."""
    monkeypatch.setattr(engine, "_MESSAGE_BYTES", message)
    monkeypatch.setattr(engine, "_HELD_BYTES", held)
    read: list[int] = []
    reads = generation.read

    def noting(*asked: Any) -> Halves:
        values: Halves = reads(*asked)
        read.append(values.nbytes)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(generation, "read", noting)
        blocks = list(engine.scores(generation, layer, "mean", channels or ()))
    wanted = list(range(LAYERS[layer])) if channels is None else channels
    # A channel is whole before the next begins.
    got: list[tuple[int, list[Halves]]] = []
    for block in blocks:
        assert len(block.channels) == len(block.values)
        if block.first_row == 0:
            got += [(channel, []) for channel in block.channels]
        assert [channel for channel, _ in got[-len(block.channels) :]] == list(block.channels)
        for values, (_, parts) in zip(block.values, got[-len(block.channels) :], strict=True):
            assert sum(map(len, parts)) == block.first_row
            parts.append(values)
    assert [channel for channel, _ in got] == wanted
    found = np.stack([np.concatenate(parts) for _, parts in got])
    assert found.tobytes() == truth_of(synthetic, layer, "mean")[wanted].tobytes()
    assert max(block.values.nbytes for block in blocks) <= max(2, message)
    # A unit of rows is the least that is read.
    assert max(read) <= max(held, 2 * 32)


def test_scores_are_read_as_they_are_sent(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_HELD_BYTES", 8 * 2 * 70)
    read: list[object] = []
    reads = generation.read

    def noting(*asked: Any) -> Halves:
        read.append(asked)
        values: Halves = reads(*asked)
        return values

    monkeypatch.setattr(generation, "read", noting)
    blocks = engine.scores(generation, "stages.1.blocks.0.mlp", "max", ())
    assert not read
    assert list(next(blocks).channels) == list(range(8))
    assert len(read) == 1
