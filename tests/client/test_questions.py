"""The same question by client, command and bare stub gives the same answer.

What the stub answers is held against brute force in tests/server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from client.truth import PLAIN, SHAPES, WIDE, bad_rows, best, good_rows
from started import ServerProcess
from synthetic import Synthetic, build

from vitscope.client import Client, ImageFilter, ScoredImage
from vitscope.client.cli import main
from vitscope.client.commands import _sheets
from vitscope.store.boxes import Box
from vitscope.store.rows import RowRecord
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

pytestmark = pytest.mark.usefixtures("ask_synthetic")

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def stub(synthetic_server: str) -> Iterator[ActivationServiceStub]:
    with grpc.insecure_channel(synthetic_server) as channel:
        yield ActivationServiceStub(channel)


def printed(line: str, capsys: Captured) -> str:
    assert main(line.split()) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def lines_of(line: str, capsys: Captured) -> list[Any]:
    return [json.loads(each) for each in printed(f"{line} --json", capsys).splitlines()]


def images_of(reply: pb.TopImagesResponse) -> list[dict[str, Any]]:
    """As the command prints them."""
    found = []
    for image in reply.images:
        label = image.label if image.HasField("label") else None
        one = {"row": image.row, "key": image.key, "label": label, "score": image.score}
        if image.HasField("distinctness"):
            given = image.distinctness
            one["distinctness"] = {"score": given.score, "hubs": given.hubs}
        found.append(one)
    return found


def as_printed(images: tuple[ScoredImage, ...]) -> list[dict[str, Any]]:
    found = []
    for image in images:
        one: dict[str, Any] = {"row": image.row, "key": image.key}
        one |= {"label": image.label, "score": image.score}
        if image.distinctness:
            given = image.distinctness
            one["distinctness"] = {"score": given.score, "hubs": given.hubs}
        found.append(one)
    return found


RANKED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("", {}, {}),
    ("--bottom -k 5", {"order": "bottom", "k": 5}, {"order": pb.ORDER_BOTTOM, "k": 5}),
    ("--distinct", {"distinct": True}, {"distinct": True}),
    (
        "--band 0.25:0.5 --pooling max",
        {"band": (0.25, 0.5), "pooling": "max"},
        {"band": pb.QuantileBand(low=0.25, high=0.5), "pooling": index_pb2.POOLING_MAX},
    ),
    (
        "--label fox --label café",
        {"where": ImageFilter(labels=["fox", "café"])},
        {"filter": pb.ImageFilter(labels=["fox", "café"])},
    ),
    (
        "--rows 3,20-40 --no-with-box",
        {"where": ImageFilter(rows=[3, *range(20, 41)], has_box=False)},
        {"filter": pb.ImageFilter(rows=[3, *range(20, 41)], has_box=False)},
    ),
    ("--with-box", {"where": ImageFilter(has_box=True)}, {"filter": pb.ImageFilter(has_box=True)}),
]


@pytest.mark.parametrize(("options", "arguments", "fields"), RANKED)
def test_top_images(
    client: Client,
    stub: ActivationServiceStub,
    options: str,
    arguments: dict[str, Any],
    fields: dict[str, Any],
    capsys: Captured,
) -> None:
    for channel in (2, 4):
        reply = stub.TopImages(pb.TopImagesRequest(layer=WIDE, channel=channel, **fields))
        top = client.top_images(WIDE, channel, **arguments)
        assert as_printed(top.images) == images_of(reply)
        assert top.candidates == reply.candidates
        [answer] = lines_of(f"top-images --layer {WIDE} --channel {channel} {options}", capsys)
        assert answer["images"] == images_of(reply)


@pytest.mark.parametrize(("options", "arguments", "fields"), RANKED)
def test_several_channels(
    client: Client,
    stub: ActivationServiceStub,
    options: str,
    arguments: dict[str, Any],
    fields: dict[str, Any],
    capsys: Captured,
) -> None:
    for channels, text in (([4, 2, 4], "4,2,4"), (None, "all"), ([3, 4, 5], "3-5")):
        request = pb.TopImagesOfChannelsRequest(layer=WIDE, channels=channels or (), **fields)
        replies = list(stub.TopImagesOfChannels(request))
        wanted = list(range(SHAPES[WIDE].channels)) if channels is None else channels
        assert [reply.channel for reply in replies] == wanted
        tops = list(client.top_images_of_channels(WIDE, channels, **arguments))
        assert [(top.channel, as_printed(top.images)) for top in tops] == [
            (reply.channel, images_of(reply)) for reply in replies
        ]
        answers = lines_of(f"top-images --layer {WIDE} --channel {text} {options}", capsys)
        assert [(answer["channel"], answer["images"]) for answer in answers] == [
            (reply.channel, images_of(reply)) for reply in replies
        ]


def test_several_channels_with_maps(client: Client, synthetic: Synthetic) -> None:
    for top in client.top_images_of_channels(PLAIN, pooling="max", k=9, maps=True):
        assert top.maps is not None
        expected = best(synthetic, PLAIN, top.channel, "max")[:9]
        assert [(image.row, image.score) for image in top.images] == expected
        assert top.maps.rows.tolist() == [row for row, _ in expected]


def test_a_sweep_can_be_left_early(client: Client) -> None:
    sweep = client.top_images_of_channels(PLAIN)
    assert next(sweep).channel == 0
    sweep.close()  # type: ignore[attr-defined]
    assert client.indexes()


def test_a_sheet_says_how_its_images_were_chosen(
    empty_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(
        _sheets, "save", lambda _, sections: titles.extend(each.title for each in sections)
    )
    line = f"top-images --layer {WIDE} --channel 4 -k 3 --png a.png"
    for options in ("", "--bottom", "--distinct", "--band 0.25:0.5", "--label fox --bottom"):
        assert main(f"{line} {options}".split()) == 0
    start = f"{WIDE} · channel 4 ·"
    assert titles == [
        f"{start} top 3 by mean",
        f"{start} lowest 3 by mean",
        f"{start} most distinct 3 by mean",
        f"{start} of the band 0.25 to 0.5, top 3 by mean",
        f"{start} of some images, lowest 3 by mean",
    ]


def test_a_sheet_of_very_many_images_is_refused(
    empty_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sheets, "MOST_DRAWN", 30)
    for line in (
        f"top-images --layer {WIDE} --channel all -k 20",
        f"gallery --show {WIDE}:4 --show {PLAIN}:1 -k 20",
        f"similar-images --layer {WIDE} --row 8 -k 30",
        f"top-patches --layer {PLAIN} --channel 4 -k 31",
    ):
        # Of the patches of nine images.
        lines = f"{line} --png a.png".replace("-k 31", "-k 9").split()
        if "top-patches" in lines:
            monkeypatch.setattr(_sheets, "MOST_DRAWN", 8)
        assert main(lines) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert f"--png draws at most {_sheets.MOST_DRAWN} images" in captured.err
    assert not list(empty_folder.iterdir())


def test_the_table_of_several_channels(capsys: Captured) -> None:
    out = printed(f"top-images --layer {WIDE} --channel 4,2 -k 2 --distinct", capsys)
    first, second = out.split("\n\n")
    for text, channel in ((first, 4), (second, 2)):
        title, head, *rows = text.splitlines()
        assert title == f"channel {channel}"
        assert head.split() == ["rank", "score", "distinct", "hubs", "row", "label", "key"]
        assert len(rows) == 2


def test_channel_statistics(client: Client, stub: ActivationServiceStub, capsys: Captured) -> None:
    request = pb.GetChannelStatisticsRequest(
        layer=PLAIN, channels=[5, 1], pooling=index_pb2.POOLING_MAX
    )
    reply = stub.GetChannelStatistics(request)
    found = client.channel_statistics(PLAIN, [5, 1], pooling="max")
    assert (found.generation, found.layer, found.pooling) == (reply.generation, PLAIN, "max")
    assert found.channels.tolist() == list(reply.channels) == [5, 1]
    for name in ("mean", "variance", "active", "quantile_levels"):
        assert getattr(found, name).tolist() == list(getattr(reply, name))
    assert found.quantiles.ravel().tolist() == list(reply.quantiles)
    [answer] = lines_of(f"channels --layer {PLAIN} --channel 5,1 --pooling max", capsys)
    assert [each["channel"] for each in answer["channels"]] == [5, 1]
    assert [each["mean"] for each in answer["channels"]] == list(reply.mean)
    assert answer["channels"][1]["quantiles"] == found.quantiles[1].tolist()
    head, *rows = printed(f"channels --layer {PLAIN}", capsys).splitlines()
    assert head.split()[:4] == ["channel", "mean", "deviation", "active"]
    assert len(rows) == SHAPES[PLAIN].channels


def test_top_patches(client: Client, stub: ActivationServiceStub, capsys: Captured) -> None:
    reply = stub.TopPatches(pb.TopPatchesRequest(layer=PLAIN, channel=4, k=7))
    top = client.top_patches(PLAIN, 4, k=7)
    assert (top.generation, top.layer, top.channel) == (reply.generation, PLAIN, 4)
    expected: list[dict[str, Any]] = [
        {
            "row": patch.row,
            "key": patch.key,
            "label": patch.label if patch.HasField("label") else None,
            "y": patch.y,
            "x": patch.x,
            "score": patch.score,
            "source": [patch.source.x0, patch.source.y0, patch.source.x1, patch.source.y1],
        }
        for patch in reply.patches
    ]
    names = expected[0].keys()
    assert [{name: getattr(patch, name) for name in names} for patch in top.patches] == [
        patch | {"source": tuple(patch["source"])} for patch in expected
    ]
    assert (top.grid.cell_height, top.grid.left) == (12, 8)
    line = f"top-patches --layer {PLAIN} --channel 4 -k 7"
    assert lines_of(line, capsys)[0]["patches"] == expected
    head, *rows = printed(line, capsys).splitlines()
    assert head.split() == ["rank", "score", "row", "y", "x", "pixels", "label", "key"]
    assert len(rows) == 7
    foxes = ImageFilter(labels=["fox"])
    with pytest.raises(Exception, match="keep all of the layer"):
        client.top_patches(PLAIN, 4, k=30, where=foxes)


PARTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("", {}, {}),
    ("--pooling max -k 3", {"pooling": "max", "k": 3}, {"pooling": index_pb2.POOLING_MAX, "k": 3}),
    ("--percentiles", {"percentiles": True}, {"measure": pb.MEASURE_PERCENTILE}),
    (f"--layers {PLAIN},{WIDE}", {"layers": [PLAIN, WIDE]}, {"layers": [PLAIN, WIDE]}),
]


@pytest.mark.parametrize(("options", "arguments", "fields"), PARTS)
def test_top_channels(
    client: Client,
    stub: ActivationServiceStub,
    options: str,
    arguments: dict[str, Any],
    fields: dict[str, Any],
    capsys: Captured,
) -> None:
    reply = stub.TopChannels(pb.TopChannelsRequest(row=8, **fields))
    top = client.top_channels(8, **arguments)
    expected = [
        (c.layer, c.channel, c.score, c.percentile if c.HasField("percentile") else None)
        for c in reply.channels
    ]
    got = [(c.layer, c.channel, c.score, c.percentile) for c in top.channels]
    assert (top.generation, top.row, got) == (reply.generation, 8, expected)
    line = f"top-channels --row 8 {options}"
    [answer] = lines_of(line, capsys)
    names = ("layer", "channel", "score", "percentile")
    assert [tuple(c.get(name) for name in names) for c in answer["channels"]] == expected
    assert len(printed(line, capsys).splitlines()) == 1 + len(expected)


@pytest.mark.parametrize(
    ("options", "arguments", "word"),
    [
        ("--patch 1 1", {"patch": (1, 1)}, "pooled scores"),
        ("--rectangle 1 1 3 3", {"rectangle": (1.0, 1.0, 3.0, 3.0)}, "pooled scores"),
        ("--box 0", {"box": 0}, "no labelled box"),
    ],
)
def test_parts_of_an_image_reach_the_server(
    client: Client, options: str, arguments: dict[str, Any], word: str, capsys: Captured
) -> None:
    """This index keeps no activations: those that it does keep are asked for elsewhere."""
    with pytest.raises(Exception, match=word):
        client.top_channels(8, **arguments)
    assert main(f"top-channels --row 8 {options}".split()) == 2
    assert word in capsys.readouterr().err


def test_similar_channels(client: Client, stub: ActivationServiceStub, capsys: Captured) -> None:
    for layers in ((), (WIDE, PLAIN)):
        request = pb.SimilarChannelsRequest(layer=WIDE, channel=4, layers=layers, k=6)
        reply = stub.SimilarChannels(request)
        near = client.similar_channels(WIDE, 4, layers=layers, k=6)
        expected = [(c.layer, c.channel, c.score) for c in reply.channels]
        assert [(c.layer, c.channel, c.score) for c in near.channels] == expected
        assert (near.generation, near.layer, near.channel) == (reply.generation, WIDE, 4)
        line = f"similar-channels --layer {WIDE} --channel 4 -k 6"
        line += f" --layers {','.join(layers)}" if layers else ""
        [answer] = lines_of(line, capsys)
        got = [(c["layer"], c["channel"], c["score"]) for c in answer["channels"]]
        assert got == expected


def test_filters_take_numpy_numbers(client: Client, synthetic: Synthetic) -> None:
    rows = np.array(good_rows(synthetic)[:9])
    top = client.top_images(WIDE, 4, where=ImageFilter(rows=rows))
    assert sorted(image.row for image in top.images) == rows.tolist()
    assert top.candidates == 9


def test_bad_rows_do_not_rank_from_the_bottom_either(client: Client, synthetic: Synthetic) -> None:
    top = client.top_images(WIDE, 4, order="bottom", k=65)
    assert {image.row for image in top.images} == set(good_rows(synthetic))
    assert not {image.row for image in top.images} & set(bad_rows(synthetic))


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., ServerProcess]) -> str:
    """Address of a server over an index with boxes and a layer of which all is kept."""
    index = build(tmp_path_factory.mktemp("boxed") / "zoo", complete=True, boxes=whole_picture)
    return serve(index.path).address


def whole_picture(generator: np.random.Generator, record: RowRecord) -> tuple[Box, ...]:
    """One box over the left half of every other picture."""
    return (Box("tail", 0.0, 0.0, 5.0, 16.0),) if record.row % 2 else ()


def test_box_scores(boxed: str, capsys: Captured) -> None:
    with grpc.insecure_channel(boxed) as channel, Client(boxed) as client:
        stub = ActivationServiceStub(channel)
        reply = stub.GetBoxScores(pb.GetBoxScoresRequest(layer=WIDE, box_labels=["tail"]))
        found = client.box_scores(WIDE, box_labels=["tail"])
        by_box = stub.TopImagesByBox(
            pb.TopImagesByBoxRequest(layer=WIDE, channel=4, order=pb.ORDER_BOTTOM, k=5)
        )
        top = client.top_images_by_box(WIDE, 4, order="bottom", k=5)
    assert found.channels.tolist() == list(reply.channels) == list(range(5))
    assert found.images.tolist() == list(reply.images)
    assert min(reply.images) > 20
    for name in ("inside", "area", "auc", "contrast"):
        values = [getattr(scores, name) for scores in reply.scores]
        np.testing.assert_array_equal(getattr(found, name), values)
    server = f"--server {boxed} --layer {WIDE}"
    [answer] = lines_of(f"box-scores {server} --of tail --by auc -k 3", capsys)
    assert len(answer["channels"]) == 3
    expected = sorted(found.auc.tolist(), reverse=True)[:3]
    assert [each["auc"] for each in answer["channels"]] == expected
    assert len(printed(f"box-scores {server}", capsys).splitlines()) == 6
    assert top.candidates == by_box.candidates
    assert [(image.row, image.scores.contrast) for image in top.images] == [
        (image.row, image.scores.contrast) for image in by_box.images
    ]
    line = f"box-scores {server} --channel 4 --images --bottom -k 5"
    [images] = lines_of(line, capsys)
    assert [image["row"] for image in images["images"]] == [image.row for image in top.images]
    assert len(printed(line, capsys).splitlines()) == 6


def test_parts_of_an_image_that_is_kept(boxed: str, capsys: Captured) -> None:
    with Client(boxed) as client:
        for options, arguments in (
            ("--patch 1 0", {"patch": (1, 0)}),
            ("--rectangle 0 0 5 16", {"rectangle": (0.0, 0.0, 5.0, 16.0)}),
            ("--box 0", {"box": 0}),
        ):
            given: dict[str, Any] = arguments
            top = client.top_channels(5, layers=[WIDE], **given)
            line = f"top-channels --server {boxed} --row 5 --layers {WIDE} {options}"
            [answer] = lines_of(line, capsys)
            got = [(each["channel"], each["score"]) for each in answer["channels"]]
            assert got == [(each.channel, each.score) for each in top.channels]
            assert len(got) == 5
        inside = client.top_channels(5, layers=[WIDE], box=0)
        same = client.top_channels(5, layers=[WIDE], rectangle=(0.0, 0.0, 5.0, 16.0))
        assert inside == same
