"""Arguments that cannot be meant: one sentence, before any server is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from client.truth import WIDE

from vitscope.client import Client, ImageFilter, UsageError, open_local
from vitscope.client.cli import main

pytestmark = pytest.mark.usefixtures("ask_synthetic")
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"labels": "fox"}, "labels of a filter is a list"),
        ({"box_labels": "fox"}, "box_labels of a filter is a list"),
        ({"rows": []}, "rows of a filter is empty"),
        ({"rows": 3}, "rows of a filter is a list"),
    ],
)
def test_filters_that_cannot_be_meant(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ImageFilter(**fields)


def test_arguments_that_cannot_be_meant(client: Client) -> None:
    with pytest.raises(UsageError, match="channels is empty"):
        client.top_images_of_channels(WIDE, [])
    with pytest.raises(UsageError, match="Order 'middle' is not known"):
        client.top_images(WIDE, 1, order="middle")
    with pytest.raises(UsageError, match="Only one of patch and box"):
        client.top_channels(8, patch=(0, 0), box=1)
    with pytest.raises(UsageError, match="box_labels is a list of labels"):
        client.box_scores(WIDE, box_labels="fox")
    with pytest.raises(UsageError, match="layers is a list of names"):
        client.top_channels(8, layers=WIDE)
    with pytest.raises(UsageError, match="Pooling '' is not known"):
        client.top_channels(8, pooling="")
    with pytest.raises(UsageError, match="does not fit in 32 bits"):
        client.channel_statistics(WIDE, [2**40])
    row: Any
    channels: Any
    for row in ("8", 8.0, None):
        with pytest.raises(UsageError, match=rf"^row {row!r} is no whole number\.$"):
            client.top_channels(row)
    for channels in ("12", 12):
        with pytest.raises(
            UsageError, match=rf"^channels {channels!r} is no list of whole numbers"
        ):
            client.channel_statistics(WIDE, channels)
    with pytest.raises(UsageError, match=r"^channel '1' is no whole number\.$"):
        client.channel_statistics(WIDE, ["1"])  # type: ignore[list-item]
    each: Any
    for each in ((WIDE,), WIDE, (WIDE, 1, 2)):
        with pytest.raises(UsageError, match=r"cannot be; write it as \(layer, channel\)\.$"):
            client.analyze_image(b"picture", maps=[each])


@pytest.mark.parametrize(
    ("ask", "word"),
    [
        (lambda client: client.top_images(None, 7), "^layer None is no text"),
        (lambda client: client.top_images(WIDE, 7, index=5), "^index 5 is no text"),
        (lambda client: client.index(None), "^index None is no text"),
        (lambda client: client.images(3), "^rows 3 is no list"),
        (lambda client: client.patch_maps(None), "^selectors None is no list"),
        (lambda client: client.patch_map_grid(WIDE, 3, [7]), "^rows 3 is no list"),
        (lambda client: client.patch_map_grid(WIDE, [3], 7), "^channels 7 is no list"),
        (lambda client: client.top_channels(8, layers=4), "^layers 4 is no list"),
        (lambda client: client.analyze_image(None), "^A picture is the bytes of its file"),
        (lambda client: client.analyze_image(b"x", maps=3), "^maps 3 is no list"),
        (lambda client: client.top_images(WIDE, 7, where={"rows": [1]}), "^where .* is no filter"),
        (
            lambda client: client.top_images(WIDE, 7, where=ImageFilter(has_box="no")),  # type: ignore[arg-type]
            "^has_box 'no' cannot be",
        ),
        (
            lambda client: client.top_images(WIDE, 7, where=ImageFilter(labels=[3])),  # type: ignore[list-item]
            "^label 3 is no text",
        ),
        (lambda _: open_local(None), "^An index is opened by the path"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_another_type(client: Client, ask: Callable[[Any], Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        ask(client)


@pytest.mark.parametrize("text", ["x", "3-1", "1,,2", "", "1-99999999999"])
def test_lists_of_channels_that_are_none(text: str, capsys: Captured) -> None:
    assert main(["top-images", "--layer", WIDE, "--channel", text]) == 2
    assert "--channel" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0.5", "a:b", "0.1:0.2:0.3", ".:1"])
def test_bands_that_are_none(text: str, capsys: Captured) -> None:
    assert main(["top-images", "--layer", WIDE, "--channel", "1", "--band", text]) == 2
    assert "--band" in capsys.readouterr().err


def test_box_scores_that_cannot_be_meant(client: Client, capsys: Captured) -> None:
    with pytest.raises(UsageError, match="Measure 'size' is not known"):
        client.top_images_by_box(WIDE, 1, measure="size")
    assert main(f"box-scores --layer {WIDE} --images".split()) == 2
    assert "give --channel C" in capsys.readouterr().err
    assert main(f"box-scores --layer {WIDE} -k 0".split()) == 2
    assert "-k is 0" in capsys.readouterr().err
