"""Which indexes are compared, and that blocks of scores join to the moments of all of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from server.refusals import NOT_KEPT, refusal
from started import ServerProcess
from synthetic import ROWS, Synthetic, build

from vitscope.server.queries import compare
from vitscope.server.queries.filters import ALL, ImageFilter
from vitscope.store.generation import open_generation
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

LAYER = "stages.1.blocks.0.mlp"
Folders = dict[str, Synthetic]


def as_webp(key: str) -> str:
    return f"{key.rpartition('.')[0]}.webp"


def without_dots(key: str) -> str:
    return key.replace(".", "/")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("pairing")
    renames: dict[str, Callable[[str], str]] = {
        "clean": str,
        "webp": as_webp,
        "moved": lambda key: f"elsewhere/{key}",
        "dots": without_dots,
    }
    return {
        name: build(folder / name, seed=seed, rename=rename)
        for seed, (name, rename) in enumerate(renames.items())
    }


@pytest.fixture(scope="module")
def stub(indexes: Folders, serve: Callable[..., ServerProcess]) -> ActivationServiceStub:
    served = serve(*(index.path for index in indexes.values()))
    return ActivationServiceStub(grpc.insecure_channel(served.address))


def test_what_follows_the_last_dot_of_a_key_may_differ(
    indexes: Folders, stub: ActivationServiceStub
) -> None:
    assert indexes["clean"].records[0].key != indexes["webp"].records[0].key
    for _ in range(2):
        reply = stub.CompareChannels(
            pb.CompareChannelsRequest(index="clean", other="webp", layer=LAYER)
        )
        assert reply.images == indexes["clean"].valid.sum()


@pytest.mark.parametrize("other", ["moved", "dots"])
@pytest.mark.parametrize("kind", [pb.CompareChannelsRequest, pb.CompareImagesRequest])
def test_other_keys_are_refused(
    indexes: Folders, stub: ActivationServiceStub, other: str, kind: Callable[..., Any]
) -> None:
    for _ in range(2):
        code, details = refusal(stub, kind(index="clean", other=other, layer=LAYER))
        assert code is NOT_KEPT
        key = indexes[other].records[0].key
        assert details == (
            f"other: row 0 is {key!r} there and 'plain/0.png' in the index; compare indexes of "
            "the same pictures, in the same order."
        )


@pytest.mark.parametrize("rows", [1, 7, 16, 69, ROWS])
@pytest.mark.parametrize("channels", [1, 5, 24])
@pytest.mark.parametrize("where", [ALL, ImageFilter(rows=tuple(range(3, 61, 2)))])
def test_blocks_join(
    indexes: Folders,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    channels: int,
    where: ImageFilter,
) -> None:
    monkeypatch.setattr(compare, "_ROWS", rows)
    monkeypatch.setattr(compare, "_CHANNELS", channels)
    pair = indexes["clean"], indexes["webp"]
    held, other = (open_generation(index.path) for index in pair)
    found = compare.changed_channels(
        held, other, LAYER, "mean", where, "difference", 24, lowest=False
    )
    among = [
        row
        for row in range(ROWS)
        if pair[0].valid[row] and (where is ALL or row in (where.rows or ()))
    ]
    assert found.images == len(among)
    assert sorted(found.channels) == list(range(24))
    a, b = (index.scores(LAYER, "mean")[among].astype(np.float64) for index in pair)
    for place, channel in enumerate(found.channels):
        mine, theirs = a[:, channel], b[:, channel]
        # A channel that never changes has neither deviation nor correlation.
        still = mine.max() == mine.min() or theirs.max() == theirs.min()
        told = (found.mean, found.other_mean, found.effect, found.correlation)
        assert [each[place] for each in told] == pytest.approx(
            [
                mine.mean(),
                theirs.mean(),
                np.nan if still else (theirs.mean() - mine.mean()) / mine.std(),
                np.nan if still else np.corrcoef(mine, theirs)[0, 1],
            ],
            rel=1e-9,
            abs=1e-9,
            nan_ok=True,
        )


def moments_of(*scores: npt.NDArray[np.float16]) -> compare.ChangedChannels:
    """Changes of all channels from scores (C, N) of two indexes."""

    def holding(values: npt.NDArray[np.float16]) -> Any:
        return SimpleNamespace(
            manifest=SimpleNamespace(rows=values.shape[1]),
            read=lambda layer, array, channels, rows: values[channels, rows],
        )

    layer: Any = SimpleNamespace(name=LAYER, channels=len(scores[0]))
    moments = compare._Moments(holding(scores[0]), holding(scores[1]), layer, "mean")
    moments.add(np.arange(scores[0].shape[1]))
    return moments.changes()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("rows", [2, 3, 100])
def test_infinite_scores_leave_the_means(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(compare, "_ROWS", rows)
    a = np.random.default_rng(0).normal(size=(4, 11)).astype(np.float16)
    b = a + np.float16(1)
    a[0, 1], b[1, 5], b[2, 0], b[2, 10] = np.inf, np.inf, np.inf, -np.inf
    found = moments_of(a, b)
    assert np.array_equal(found.mean[:2], [np.inf, a[1].astype(np.float64).mean()])
    assert found.other_mean[1] == found.difference[1] == np.inf
    assert found.difference[0] == -np.inf
    assert np.isnan(found.other_mean[2])
    assert np.isnan(found.effect[[0, 2]]).all()
    assert np.isnan(found.correlation[:3]).all()
    assert found.effect[3] > 0
    assert found.correlation[3] > 0.99
