"""Replies that a right server cannot give; all else is tested against the real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from vitscope.client import Client, ServerError, UnsupportedError
from vitscope.client.cli import main
from vitscope.client.errors import EXCEPTIONS
from vitscope.v1 import query_pb2, service_pb2_grpc

Captured = pytest.CaptureFixture[str]
LAYER = "blocks.1.mlp"


class WrongService(service_pb2_grpc.ActivationServiceServicer):
    """Gives the replies it was made with, whatever is asked, then the status.

    Only for what vitscope's server never sends: short streams, maps of the wrong length, images
    not asked for, values of a later protocol, no index, and statuses that it does not use.
    """

    def __init__(self, replies: tuple[Any, ...], status: grpc.StatusCode, details: str) -> None:
        self._replies, self._status, self._details = replies, status, details

    def _stream(self, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from self._replies
        if self._status is not grpc.StatusCode.OK:
            context.abort(self._status, self._details)

    def _single(self, request: Any, context: grpc.ServicerContext) -> Any:
        return next(self._stream(request, context))

    ListIndexes = GetIndex = TopImages = SimilarImages = GetChannelStatistics = _single
    GetBoxScores = TopImagesByBox = TopPatches = TopChannels = SimilarChannels = _single
    SimilarPatches = TopImagesAlongDirection = ListDirections = _single
    AnalyzeImage = CompareChannels = CompareImages = _single
    # mypy takes a stream's type for asyncio's too.
    GetPatchMaps = GetImages = TopImagesOfChannels = GetScores = _stream  # type: ignore[assignment]


Wrong = Callable[..., str]


@pytest.fixture
def wrong() -> Iterator[Wrong]:
    """Starts a server with wrong replies and gives its address."""
    servers = []

    def start(
        *replies: Any, status: grpc.StatusCode = grpc.StatusCode.OK, details: str = ""
    ) -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        service = WrongService(replies, status, details)
        service_pb2_grpc.add_ActivationServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None).wait()


def some_maps(count: int, **fields: Any) -> query_pb2.PatchMaps:
    """Maps of 2 x 3 patches, all zeros, unless `fields` say otherwise."""
    right: dict[str, Any] = {
        "layer": LAYER,
        "rows": range(count),
        "channels": [7] * count,
        "height": 2,
        "width": 3,
        "values": bytes(count * 12),
    }
    return query_pb2.PatchMaps(**right | fields)


def streamed(maps: query_pb2.PatchMaps) -> query_pb2.GetPatchMapsResponse:
    return query_pb2.GetPatchMapsResponse(generation="g1", maps=maps)


@pytest.mark.parametrize("counts", [[], [1], [2, 0], [2, 2]])
def test_a_stream_of_another_number_of_maps(wrong: Wrong, counts: list[int]) -> None:
    address = wrong(*(streamed(some_maps(count)) for count in counts))
    sentence = f"The server sent {sum(counts)} maps where 3 were asked for."
    with Client(address) as client, pytest.raises(ServerError, match=sentence):
        client.patch_maps([(LAYER, 7, row) for row in range(3)])


@pytest.mark.parametrize(
    "fields",
    [
        {"values": bytes(11)},
        {"values": bytes(24)},
        {"values": b""},
        {"channels": []},
        {"height": 0},
        {"width": -3, "height": -2},
        {"height": 3},
        {"height": 0, "values": b""},
    ],
)
def test_maps_of_another_length(wrong: Wrong, fields: dict[str, Any]) -> None:
    maps = some_maps(1, **fields)
    with Client(wrong(streamed(maps))) as client, pytest.raises(ServerError, match="inconsistent"):
        client.patch_map(LAYER, 7, 0)
    top = query_pb2.TopImagesResponse(generation="g1", maps=maps)
    with Client(wrong(top)) as client, pytest.raises(ServerError, match="inconsistent"):
        client.top_images(LAYER, 7, maps=True)


def test_too_few_images(wrong: Wrong) -> None:
    address = wrong(query_pb2.GetImagesResponse(images=[query_pb2.Image(row=1)]))
    with Client(address) as client:
        with pytest.raises(ServerError, match="1 images where 2"):
            client.images([1, 2])
        with pytest.raises(ServerError, match="other images"):
            client.images([2])


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        ([], "0 channels where 2"),
        ([4], "1 channels where 2"),
        ([2, 4], "other"),
        ([4, 2, 2], "other"),
    ],
)
def test_a_stream_of_other_channels(wrong: Wrong, sent: list[int], word: str) -> None:
    address = wrong(*(query_pb2.TopImagesResponse(channel=channel) for channel in sent))
    with Client(address) as client, pytest.raises(ServerError, match=word):
        list(client.top_images_of_channels(LAYER, [4, 2]))


@pytest.mark.parametrize("fields", [{"mean": [1]}, {"quantiles": [1, 2, 3]}, {"active": []}])
def test_statistics_of_another_length(wrong: Wrong, fields: dict[str, Any]) -> None:
    right: dict[str, Any] = {name: [1, 2] for name in ("channels", "mean", "variance", "active")}
    right |= {"quantile_levels": [0, 1], "quantiles": [1, 2, 3, 4]}
    reply = query_pb2.GetChannelStatisticsResponse(**right | fields)
    with Client(wrong(reply)) as client, pytest.raises(ServerError, match="inconsistent"):
        client.channel_statistics(LAYER)


def some_scores(
    channels: list[int], rows: int = 3, first_row: int = 0, **fields: Any
) -> query_pb2.GetScoresResponse:
    """Zeros of channels on rows that follow each other."""
    right = {"channels": channels, "rows": rows, "first_row": first_row}
    right |= {"generation": "g1", "scores": bytes(2 * len(channels) * rows)}
    return query_pb2.GetScoresResponse(**{**right, **fields})


RIGHT_SCORES = {
    "whole": [some_scores([4, 2, 4])],
    "several": [some_scores([4, 2]), some_scores([4])],
    "one by one": [some_scores([4]), some_scores([2]), some_scores([4])],
    "in parts": [some_scores([each], 2, first) for each in (4, 2, 4) for first in (0, 2)],
}
WRONG_SCORES: dict[str, list[query_pb2.GetScoresResponse]] = {
    "none": [],
    "too few channels": [some_scores([4, 2])],
    "too many channels": [some_scores([4, 2, 4, 4])],
    "another channel": [some_scores([4, 3, 4])],
    "another order": [some_scores([2, 4, 4])],
    "a channel too short": [some_scores([4, 2]), some_scores([4], 2)],
    "a channel too long": [some_scores([4, 2]), some_scores([4], 4)],
    "a part too few": [some_scores([4]), some_scores([2], 2), some_scores([4])],
    "the last part too few": [some_scores([4]), some_scores([2]), some_scores([4], 2)],
    "a part too many": [some_scores([4]), some_scores([2]), some_scores([2], 1, 3)],
    "a part of another channel": [some_scores([4], 2), some_scores([2], 2, 2)],
    "a part of nothing": [some_scores([4], 2, 1)],
    "parts with a gap": [some_scores([4], 2), some_scores([4], 2, 3)],
    "parts that overlap": [some_scores([4], 2), some_scores([4], 2, 1)],
    "parts of several": [some_scores([4, 2]), some_scores([4, 2], 3, 3)],
    "a part after several": [some_scores([4, 2]), some_scores([2], 3, 3)],
    "no rows": [some_scores([4, 2, 4], 0)],
    "no channels": [some_scores([])],
    "rows before the first": [some_scores([4, 2, 4], 3, -3)],
    "too few bytes": [some_scores([4, 2, 4], scores=bytes(17))],
    "too many bytes": [some_scores([4, 2, 4], scores=bytes(20))],
    "fewer rows than said": [some_scores([4, 2, 4], scores=bytes(6))],
    "another generation": [some_scores([4, 2]), some_scores([4], generation="g2")],
    "another pooling": [some_scores([4, 2]), some_scores([4], pooling=2)],
}


@pytest.mark.parametrize("name", RIGHT_SCORES)
def test_scores_in_other_parts_are_the_same(wrong: Wrong, name: str) -> None:
    rows = 4 if name == "in parts" else 3
    with Client(wrong(*RIGHT_SCORES[name])) as client:
        scores = client.scores(LAYER, [4, 2, 4])
    assert scores.channels.tolist() == [4, 2, 4]
    assert scores.values.tolist() == [[0.0] * rows] * 3


@pytest.mark.parametrize("name", WRONG_SCORES)
def test_other_scores_than_those_asked_for(wrong: Wrong, name: str) -> None:
    with Client(wrong(*WRONG_SCORES[name])) as client, pytest.raises(ServerError):
        client.scores(LAYER, [4, 2, 4])


@pytest.mark.parametrize(
    "sent",
    [[], [some_scores([1, 2])], [some_scores([0, 1]), some_scores([3])], [some_scores([0], 3, 3)]],
)
def test_other_scores_than_those_of_a_layer(
    wrong: Wrong, sent: list[query_pb2.GetScoresResponse]
) -> None:
    with Client(wrong(*sent)) as client, pytest.raises(ServerError):
        client.scores(LAYER)


@pytest.mark.parametrize("counts", [[1], [1, 2, 3]])
def test_box_scores_of_another_length(wrong: Wrong, counts: list[int]) -> None:
    right: dict[str, Any] = {"channels": [1, 2], "images": [3, 4]}
    scores = [query_pb2.BoxScores()] * 2
    reply = query_pb2.GetBoxScoresResponse(**right, scores=scores, inside_images=counts)
    with Client(wrong(reply)) as client, pytest.raises(ServerError, match="inconsistent"):
        client.box_scores(LAYER)


def test_an_older_server_does_not_tell_over_how_many_images(wrong: Wrong) -> None:
    scores = [query_pb2.BoxScores()] * 2
    reply = query_pb2.GetBoxScoresResponse(channels=[1, 2], images=[3, 4], scores=scores)
    with Client(wrong(reply)) as client:
        assert client.box_scores(LAYER).inside_images is None


def test_a_stream_that_breaks_off_gives_nothing(wrong: Wrong) -> None:
    address = wrong(streamed(some_maps(1)), status=grpc.StatusCode.INTERNAL, details="oh no")
    with Client(address) as client, pytest.raises(ServerError, match="oh no"):
        client.patch_maps([(LAYER, 7, 0), (LAYER, 7, 1)])


@pytest.mark.parametrize("code", list(EXCEPTIONS), ids=lambda code: str(code.name))
@pytest.mark.parametrize("details", ["", "Something is amiss", "Two\nlines."])
def test_every_status_is_one_sentence(
    wrong: Wrong, code: grpc.StatusCode, details: str, capsys: Captured
) -> None:
    address = wrong(status=code, details=details)
    with Client(address) as client, pytest.raises(EXCEPTIONS[code]) as caught:
        client.images([1])
    assert main(["images", "--row", "1", "--server", address]) == caught.value.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"vitscope: {caught.value}\n"
    assert captured.err.endswith(".\n")
    assert captured.err.count("\n") == 1


def test_a_grpc_server_that_is_not_vitscope() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with Client(address) as client, pytest.raises(UnsupportedError, match="no vitscope server"):
        client.indexes()
    server.stop(None).wait()


def test_a_pooling_of_a_later_protocol_is_readable(wrong: Wrong) -> None:
    pooling: Any = 9
    with Client(wrong(query_pb2.TopImagesResponse(pooling=pooling))) as client:
        assert client.top_images(LAYER, 7).pooling == "unknown(9)"


def test_a_server_without_an_index(wrong: Wrong, capsys: Captured) -> None:
    address = wrong(query_pb2.ListIndexesResponse())
    assert main(["layers", "--server", address]) == 0
    assert capsys.readouterr().out == "The server holds no index.\n"


def test_an_approximate_search_is_said_to_be_one(wrong: Wrong, capsys: Captured) -> None:
    near = query_pb2.SimilarImagesResponse(
        generation="g1",
        images=[query_pb2.ScoredImage(row=5, key="a.jpg", score=0.5)],
        exact=False,
        recall_at_10=0.5,
    )
    line = ["similar-images", "--layer", LAYER, "--row", "2", "--server", wrong(near)]
    assert main(line) == 0
    captured = capsys.readouterr()
    assert captured.err == "The search is approximate: it finds 50.0% of the true ten nearest.\n"
    assert main([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["exact"], answer["recall_at_10"]) == (False, 0.5)


def test_similar_patches_without_a_place(wrong: Wrong) -> None:
    near = query_pb2.SimilarPatchesResponse(
        generation="g1", patches=[query_pb2.ScoredPatch(row=5, key="a.jpg", y=1, x=2, score=0.5)]
    )
    with Client(wrong(near)) as client, pytest.raises(ServerError, match="inconsistent"):
        client.similar_patches(LAYER, 2, (0, 0))


@pytest.mark.parametrize("numbers", [[3, 3], [4, 2, 4], [-1]])
def test_changes_of_one_thing_twice_or_of_none(wrong: Wrong, numbers: list[int]) -> None:
    channels = [query_pb2.ChannelChange(channel=number) for number in numbers]
    address = wrong(query_pb2.CompareChannelsResponse(channels=channels))
    with Client(address) as client, pytest.raises(ServerError, match="inconsistent"):
        client.compare_channels("a", "b", LAYER)
    images = [query_pb2.ChangedImage(row=number) for number in numbers]
    address = wrong(query_pb2.CompareImagesResponse(images=images))
    with Client(address) as client, pytest.raises(ServerError, match="inconsistent"):
        client.compare_images("a", "b", LAYER, 1)
