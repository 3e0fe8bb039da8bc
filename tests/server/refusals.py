"""Requests that are wrong in one field, and how to ask for their refusal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from started import run_vitscope

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

STREAMS = ("GetPatchMaps", "GetImages", "TopImagesOfChannels", "GetScores")
LAYER = "blocks.0.mlp"
WITHOUT_CLS = "stages.1.blocks.0.mlp"
LAST = 2**31 - 1
FAR = 2**63 - 1

INVALID = StatusCode.INVALID_ARGUMENT
MISSING = StatusCode.NOT_FOUND
NOT_KEPT = StatusCode.FAILED_PRECONDITION


def ask(stub: ActivationServiceStub, request: Any) -> list[Any]:
    """The reply to a request, or all replies of its stream."""
    name = type(request).__name__.removesuffix("Request")
    answer = getattr(stub, name)(request, timeout=60)
    return list(answer) if name in STREAMS else [answer]


def refusal(stub: ActivationServiceStub, request: Any) -> tuple[StatusCode, str]:
    return refused(lambda: ask(stub, request))


def refused(call: Callable[[], object]) -> tuple[StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def check_start_error(arguments: Sequence[str | Path], code: int) -> str:
    """The one sentence with which `serve` refuses to start."""
    done = run_vitscope("serve", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("vitscope: ")
    assert done.stderr.endswith((".\n", "?\n"))
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def check_sentence(details: str) -> None:
    """One sentence with a mend, that tells nothing of the server's files or code."""
    # A hint may be a question.
    assert details.endswith((".", "?"))
    assert "\n" not in details
    assert "Traceback" not in details
    assert "/" not in details
    assert len(details) < 400


def fields_of(**fields: Any) -> dict[str, Any]:
    return fields


def top(**fields: Any) -> pb.TopImagesRequest:
    return pb.TopImagesRequest(**fields_of(layer=LAYER, channel=4, k=3) | fields)


def similar(**fields: Any) -> pb.SimilarImagesRequest:
    return pb.SimilarImagesRequest(**fields_of(layer=LAYER, row=1, k=3) | fields)


def several(*channels: int, **fields: Any) -> pb.TopImagesOfChannelsRequest:
    return pb.TopImagesOfChannelsRequest(**fields_of(layer=LAYER, channels=channels, k=3) | fields)


def statistics(*channels: int, **fields: Any) -> pb.GetChannelStatisticsRequest:
    return pb.GetChannelStatisticsRequest(**fields_of(layer=LAYER, channels=channels) | fields)


def patches(**fields: Any) -> pb.TopPatchesRequest:
    return pb.TopPatchesRequest(**fields_of(layer=LAYER, channel=4, k=3) | fields)


def channels(**fields: Any) -> pb.TopChannelsRequest:
    return pb.TopChannelsRequest(**fields_of(row=1, layers=[LAYER], k=3) | fields)


def by_box(**fields: Any) -> pb.TopImagesByBoxRequest:
    return pb.TopImagesByBoxRequest(**fields_of(layer=LAYER, channel=4) | fields)


def like(**fields: Any) -> pb.SimilarChannelsRequest:
    return pb.SimilarChannelsRequest(**fields_of(layer=LAYER, channel=4, k=3) | fields)


def only(**fields: Any) -> pb.ImageFilter:
    return pb.ImageFilter(**fields)


def band(low: float, high: float) -> pb.QuantileBand:
    return pb.QuantileBand(low=low, high=high)


def rectangle(*corners: float) -> pb.Rectangle:
    return pb.Rectangle(x0=corners[0], y0=corners[1], x1=corners[2], y1=corners[3])


def maps(count: int = 1, **fields: Any) -> pb.GetPatchMapsRequest:
    selector = pb.PatchMapSelector(**fields_of(layer="blocks.1.mlp", channel=1, row=1) | fields)
    return pb.GetPatchMapsRequest(maps=[selector] * count)


def images(*rows: int, index: str = "", names: bool = False) -> pb.GetImagesRequest:
    return pb.GetImagesRequest(index=index, rows=rows, without_pictures=names)


def scores(*channels: int, **fields: Any) -> pb.GetScoresRequest:
    return pb.GetScoresRequest(**fields_of(layer=LAYER, channels=channels) | fields)
