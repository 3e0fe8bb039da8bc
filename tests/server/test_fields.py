"""A refusal names the field as the request has it, and not its neighbour."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import synthetic as synthetic_index
from grpc import StatusCode
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.store.boxes import Box
from vitscope.store.manifest import LayerRecord
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

LAYER = "blocks.0.mlp"
BOXED = (Box("tail", 0.0, 0.0, 3.0, 3.0), Box("ear", 90.0, 90.0, 99.0, 99.0))


def asked(name: str, **fields: Any) -> Any:
    if name not in ("GetImages", "GetPatchMaps", "TopChannels"):
        fields = {"layer": LAYER} | fields
    return getattr(pb, f"{name}Request")(**fields)


def selector(**fields: Any) -> list[pb.PatchMapSelector]:
    right: dict[str, Any] = {"layer": LAYER, "channel": 1, "row": 1}
    return [pb.PatchMapSelector(**right | fields)]


def grid(**fields: Any) -> list[pb.PatchMapGrid]:
    right: dict[str, Any] = {"layer": LAYER, "channels": [1], "rows": [1]}
    return [pb.PatchMapGrid(**right | fields)]


FOX = pb.ImageFilter(labels=["foxx"])
TIP = pb.ImageFilter(box_labels=["tip"])
BOTH = pb.ImageFilter(box_labels=["tail"], has_box=False)
FAR = pb.Rectangle(x0=900, y0=900, x1=910, y1=910)

REFUSED: dict[str, tuple[Any, str]] = {
    "channels of a sweep": (asked("TopImagesOfChannels", channels=[1, 9]), "channels: "),
    "channels of statistics": (asked("GetChannelStatistics", channels=[-1]), "channels: "),
    "channels of box scores": (asked("GetBoxScores", channels=[9]), "channels: "),
    "channels of scores": (asked("GetScores", channels=[9]), "channels: "),
    "channel": (asked("TopImages", channel=9), "channel: "),
    "layers of channels": (asked("TopChannels", row=1, layers=[LAYER, "x"]), "layers: "),
    "an empty one": (asked("TopChannels", row=1, layers=[""]), "layers has an empty name"),
    "layers of like channels": (asked("SimilarChannels", layers=["x"]), "layers: "),
    "layer": (asked("SimilarChannels", layer="x"), "layer: "),
    "labels of a filter": (asked("TopImages", filter=FOX), "filter.labels: "),
    "box labels of a filter": (asked("TopImages", filter=TIP), "filter.box_labels: "),
    "labels without boxes": (asked("TopImages", filter=BOTH), "filter.has_box asks"),
    "labels of boxes": (asked("GetBoxScores", box_labels=["tip"]), "box_labels: no box"),
    "labels of boxes, images": (asked("TopImagesByBox", box_labels=["tip"]), "box_labels: no box"),
    "rows of images": (asked("GetImages", rows=[1, 70]), "rows: "),
    "layer of a map": (asked("GetPatchMaps", maps=selector(layer="x")), "maps.layer: "),
    "no layer of a map": (asked("GetPatchMaps", maps=selector(layer="")), "maps.layer is empty"),
    "channel of a map": (asked("GetPatchMaps", maps=selector(channel=9)), "maps.channel: "),
    "row of a map": (asked("GetPatchMaps", maps=selector(row=70)), "maps.row: "),
    "bad row of a map": (asked("GetPatchMaps", maps=selector(row=0)), "maps.row: "),
    "layer of a grid": (asked("GetPatchMaps", grids=grid(layer="x")), "grids.layer: "),
    "channels of a grid": (asked("GetPatchMaps", grids=grid(channels=[9])), "grids.channels: "),
    "rows of a grid": (asked("GetPatchMaps", grids=grid(rows=[70])), "grids.rows: "),
    "bad rows of a grid": (asked("GetPatchMaps", grids=grid(rows=[0])), "grids.rows: "),
    "box": (asked("TopChannels", row=1, layers=[LAYER], box=1), "box: no patch"),
    "no such box": (asked("TopChannels", row=1, layers=[LAYER], box=2), "box: row 1"),
    "rectangle": (asked("TopChannels", row=1, layers=[LAYER], rectangle=FAR), "rectangle: no"),
}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """An index whose images all have two boxes, and where three maps are not finite."""
    folder = tmp_path_factory.mktemp("fields") / "zoo"
    make = synthetic_index._activations

    def activations(generator: np.random.Generator, layer: LayerRecord, rows: int) -> Any:
        values = make(generator, layer, rows)
        values[5, -1, 4], values[8, -2, 3], values[10, -1, 4] = np.inf, -np.inf, np.nan
        return values

    with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
        patch.setattr(synthetic_index, "_activations", activations)
        return build(folder, complete=True, boxes=lambda generator, record: BOXED)


@pytest.fixture(scope="module")
def ask(truth: Synthetic, serve: Callable[..., ServerProcess]) -> Callable[[Any], list[Any]]:
    stub = ActivationServiceStub(grpc.insecure_channel(serve(truth.path).address))

    def call(request: Any) -> list[Any]:
        name = type(request).__name__.removesuffix("Request")
        answer = getattr(stub, name)(request, timeout=60)
        return list(answer) if hasattr(answer, "__iter__") else [answer]

    return call


def refusal(ask: Callable[[Any], list[Any]], request: Any) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask(request)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field(ask: Callable[[Any], list[Any]], name: str) -> None:
    request, start = REFUSED[name]
    _, details = refusal(ask, request)
    assert details.startswith(start)


@pytest.mark.parametrize(("row", "channel"), [(5, 4), (8, 3), (10, 4)])
def test_no_byte_stands_for_what_is_not_finite(
    truth: Synthetic, ask: Callable[[Any], list[Any]], row: int, channel: int
) -> None:
    grids = grid(rows=[3, row, 2], channels=[channel])
    for maps in (
        {"grids": grids},
        {"maps": [*selector(), *selector(row=row, channel=channel)]},
    ):
        code, details = refusal(ask, asked("GetPatchMaps", encoding=pb.MAP_ENCODING_UINT8, **maps))
        assert code == StatusCode.FAILED_PRECONDITION
        assert details.startswith(f"encoding: the map of row {row} on channel {channel} of {LAYER}")
        assert "MAP_ENCODING_FLOAT16" in details
    [reply] = ask(asked("GetPatchMaps", grids=grids))
    expected = truth.maps(LAYER)[[3, row, 2], channel]
    assert reply.maps.values == expected.tobytes()
    # Its neighbours take part.
    finite = grid(rows=[3, 2], channels=[channel])
    assert ask(asked("GetPatchMaps", encoding=pb.MAP_ENCODING_UINT8, grids=finite))
