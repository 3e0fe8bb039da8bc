"""Two indexes of the same pictures: changes of channels and of images, against plain NumPy.

`VITSCOPE_REQUESTS` says how many questions of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server.questions import NUMBERS, Filter, each
from server.refusals import INVALID, MISSING, NOT_KEPT, check_sentence, refusal
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.store.manifest import Pooling
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

LAYERS = {"blocks.0.mlp": 11, "stages.1.blocks.0.mlp": 24, "blocks.1.mlp": 3}
LABELS = ("fox", "café", "белка")
ROWS = 70
TOLERANCE = 1e-9

Pair = tuple[Synthetic, Synthetic]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("compare")
    return build(folder / "clean"), build(folder / "changed", seed=5)


@pytest.fixture(scope="module")
def stub(
    pair: Pair,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Callable[..., ServerProcess],
) -> ActivationServiceStub:
    folder = tmp_path_factory.mktemp("others")
    shorter = build(folder / "shorter", rows=40)
    renamed = build(folder / "renamed", complete=True)
    served = serve(*(index.path for index in (*pair, shorter, renamed)))
    return ActivationServiceStub(grpc.insecure_channel(served.address))


FILTERS = st.just(Filter()) | st.builds(
    Filter,
    labels=st.lists(st.sampled_from(LABELS), max_size=2).map(tuple),
    rows=st.lists(st.integers(0, ROWS - 1), max_size=30).map(tuple),
)
MEASURES = ("effect", "difference", "correlation")
KS = st.none() | st.integers(1, 3)
ORDERS = st.sampled_from(["top", "bottom"])


def paired(
    pair: Pair, layer: str, pooling: Pooling, where: Filter
) -> tuple[list[int], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Rows that take part, and their scores (M, C) in both."""
    rows = where.rows_of(pair[0])
    a, b = (index.scores(layer, pooling)[rows].astype(np.float64) for index in pair)
    return rows, a, b


@each
@given(
    layer=st.sampled_from(sorted(LAYERS)),
    pooling=st.sampled_from(sorted(NUMBERS)),
    where=FILTERS,
    measure=st.sampled_from(MEASURES),
    order=ORDERS,
    k=KS,
)
def test_channels_come_by_their_change(
    pair: Pair,
    stub: ActivationServiceStub,
    layer: str,
    pooling: Pooling,
    where: Filter,
    measure: str,
    order: str,
    k: int | None,
) -> None:
    request = pb.CompareChannelsRequest(
        index="clean",
        other="changed",
        layer=layer,
        pooling=NUMBERS[pooling],
        filter=where.message(),
        measure=getattr(pb, f"CHANGE_MEASURE_{measure.upper()}"),
        order=getattr(pb, f"ORDER_{order.upper()}"),
        k=k,
    )
    if pooling not in pair[0].layers[layer].poolings:
        code, details = refusal(stub, request)
        assert code is NOT_KEPT
        assert details.startswith("pooling:")
        return
    rows, a, b = paired(pair, layer, pooling, where)
    truth = changes(a, b)
    reply = stub.CompareChannels(request)
    assert reply.images == len(rows)
    assert (reply.generation, reply.other_generation) == tuple(i.generation for i in pair)
    for found in reply.channels:
        for name, values in truth.items():
            assert getattr(found, name) == pytest.approx(
                values[found.channel], abs=TOLERANCE, rel=TOLERANCE, nan_ok=True
            )
    check_order(
        [(found.channel, getattr(found, measure)) for found in reply.channels],
        {channel: truth[measure][channel] for channel in range(LAYERS[layer])},
        min(20, LAYERS[layer]) if k is None else k,
        lowest=order == "bottom",
    )


def changes(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    """What becomes of each channel, one by one, from scores (M, C) in both indexes."""
    found: dict[str, list[float]] = {name: [] for name in (*MEASURES, "mean", "other_mean")}
    for mine, theirs in zip(a.T, b.T, strict=True):
        none = not len(mine)
        mean, other = (np.nan if none else float(x.mean()) for x in (mine, theirs))
        same, other_same = (none or x.max() == x.min() for x in (mine, theirs))
        deviation = np.nan if same else float(mine.std())
        found["mean"].append(mean)
        found["other_mean"].append(other)
        found["difference"].append(other - mean)
        found["effect"].append((other - mean) / deviation)
        found["correlation"].append(
            np.nan if same or other_same else float(np.corrcoef(mine, theirs)[0, 1])
        )
    return {name: np.array(values) for name, values in found.items()}


def check_order(
    found: Sequence[tuple[int, float]], truth: dict[int, float], k: int, *, lowest: bool
) -> None:
    """In order, ties by number, NaN left out, and nobody left out who belongs in."""
    sign = 1 if lowest else -1
    assert found == sorted(found, key=lambda pair: (sign * pair[1], pair[0]))
    known = {number: value for number, value in truth.items() if not np.isnan(value)}
    assert len(found) == min(k, len(known))
    assert {number for number, _ in found} <= set(known)
    left = [sign * value for number, value in known.items() if number not in dict(found)]
    if found and left:
        slack = TOLERANCE * (1 + abs(found[-1][1]))
        assert min(left) >= sign * found[-1][1] - slack


@each
@given(
    layer=st.sampled_from(sorted(LAYERS)),
    channel=st.integers(0, 23),
    pooling=st.sampled_from(["mean", "max"]),
    where=FILTERS,
    order=ORDERS,
    k=st.none() | st.integers(1, 65),
)
def test_images_come_by_the_change_of_a_channel(
    pair: Pair,
    stub: ActivationServiceStub,
    layer: str,
    channel: int,
    pooling: Pooling,
    where: Filter,
    order: str,
    k: int | None,
) -> None:
    channel %= LAYERS[layer]
    reply = stub.CompareImages(
        pb.CompareImagesRequest(
            index="clean",
            other="changed",
            layer=layer,
            channel=channel,
            pooling=NUMBERS[pooling],
            filter=where.message(),
            order=getattr(pb, f"ORDER_{order.upper()}"),
            k=k,
        )
    )
    rows, a, b = paired(pair, layer, pooling, where)
    differences = (b[:, channel] - a[:, channel]).astype(np.float32).tolist()
    sign = 1 if order == "bottom" else -1
    truth = sorted(zip(rows, differences, strict=True), key=lambda e: (sign * e[1], e[0]))
    truth = truth[: 20 if k is None else k]
    assert [(image.row, image.difference) for image in reply.images] == truth
    assert reply.candidates == len(rows)
    for image in reply.images:
        place = rows.index(image.row)
        assert (image.score, image.other_score) == (a[place, channel], b[place, channel])
        record = pair[0].records[image.row]
        assert (image.key, image.label or None) == (record.key, record.label)


def test_an_index_beside_itself_does_not_change(stub: ActivationServiceStub) -> None:
    reply = stub.CompareChannels(
        pb.CompareChannelsRequest(index="clean", other="clean", layer="blocks.0.mlp", k=11)
    )
    assert [c.channel for c in reply.channels] == sorted(c.channel for c in reply.channels)
    assert all(c.effect == c.difference == 0 for c in reply.channels)
    assert all(np.isnan(c.correlation) or c.correlation > 1 - 1e-9 for c in reply.channels)


@pytest.mark.parametrize(
    ("fields", "code", "start"),
    [
        ({"other": ""}, INVALID, "other is not given"),
        ({"other": "nobody"}, MISSING, "other: there is no index"),
        ({"index": ""}, INVALID, "index is not given"),
        ({"other": "shorter"}, NOT_KEPT, "other: it has 40 rows and the index 70"),
        ({"other": "renamed"}, NOT_KEPT, "other: blocks.0.mlp of that index has 5 channels"),
        (
            {"other": "renamed", "layer": "stages.1.blocks.0.mlp"},
            NOT_KEPT,
            "other: stages.1.blocks.0.mlp of that index is not there",
        ),
        ({"layer": "blocks.9.mlp"}, MISSING, "layer:"),
        ({"layer": ""}, INVALID, "layer is empty"),
        ({"k": 0}, INVALID, "k is 0"),
        ({"order": 9}, INVALID, "order is 9"),
        ({"pooling": 9}, INVALID, "pooling is 9"),
        ({"filter": pb.ImageFilter(labels=["hen"])}, MISSING, "filter.labels"),
    ],
)
@pytest.mark.parametrize("kind", [pb.CompareChannelsRequest, pb.CompareImagesRequest])
def test_what_cannot_be_compared_is_refused(
    stub: ActivationServiceStub,
    kind: Callable[..., Any],
    fields: dict[str, Any],
    code: grpc.StatusCode,
    start: str,
) -> None:
    given = {"index": "clean", "other": "changed", "layer": "blocks.0.mlp", **fields}
    found, details = refusal(stub, kind(**given))
    assert found is code
    assert details.startswith(start)
    check_sentence(details)


def test_the_rest_that_each_alone_refuses(stub: ActivationServiceStub) -> None:
    both: dict[str, Any] = {"index": "clean", "other": "changed", "layer": "blocks.0.mlp"}
    code, details = refusal(stub, pb.CompareChannelsRequest(**both, measure=9))  # type: ignore[arg-type]
    assert (code, details.split(";")[0][:12]) == (INVALID, "measure is 9")
    code, details = refusal(stub, pb.CompareChannelsRequest(**both, k=12))
    assert (code, details[:7]) == (INVALID, "k is 12")
    code, details = refusal(stub, pb.CompareImagesRequest(**both, channel=11))
    assert (code, details[:8]) == (MISSING, "channel:")


NAMES = st.sampled_from(["", "clean", "changed", "shorter", "renamed", "x" * 300, "../.."])
NUMBERS_32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 30)


@each
@given(
    data=st.fixed_dictionaries(
        {
            "index": NAMES,
            "other": NAMES,
            "layer": st.sampled_from(["", "blocks.0.mlp", "blocks.1.mlp", "nothing", "/etc"]),
        },
        optional={
            "k": NUMBERS_32,
            "order": st.integers(-2, 5),
            "pooling": st.integers(-2, 5),
            "filter": st.builds(
                pb.ImageFilter,
                labels=st.lists(st.text(max_size=4), max_size=2),
                rows=st.lists(st.integers(-5, 80), max_size=3),
            ),
        },
    ),
    images=st.booleans(),
    own=NUMBERS_32,
)
def test_any_request_is_answered_or_refused_in_a_sentence(
    stub: ActivationServiceStub, data: dict[str, Any], images: bool, own: int
) -> None:
    code, details = answer(stub, data, own, images=images)
    assert code in (None, INVALID, MISSING, NOT_KEPT)
    if code:
        assert details.endswith((".", "?"))
        assert details.split(" ")[0].strip(":,").split(".")[0] in FIELDS


FIELDS = {"index", "other", "layer", "channel", "k", "order", "pooling", "measure", "filter"}


def answer(
    stub: ActivationServiceStub, data: dict[str, Any], own: int, *, images: bool
) -> tuple[grpc.StatusCode | None, str]:
    """The status that a question was refused with, if any, and what was said."""
    try:
        if images:
            stub.CompareImages(pb.CompareImagesRequest(**data, channel=own))
        else:
            stub.CompareChannels(pb.CompareChannelsRequest(**data, measure=own))  # type: ignore[arg-type]
    except grpc.RpcError as error:
        call: Any = error
        return call.code(), call.details() or ""
    return None, ""
