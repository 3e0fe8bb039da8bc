"""Scores through the client, and arguments that are refused before they are sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from client.truth import SHAPES, WIDE, bad_rows
from synthetic import Synthetic

from client import truth
from vitscope.client import Client, ImageFilter, NotFoundError, UsageError


@pytest.mark.parametrize(
    ("layer", "pooling"), [(name, pooling) for name in SHAPES for pooling in SHAPES[name].poolings]
)
@pytest.mark.parametrize("channels", [None, [2, 0, 2]])
def test_scores(
    client: Client, synthetic: Synthetic, layer: str, pooling: str, channels: list[int] | None
) -> None:
    found = client.scores(layer, channels, pooling=pooling)
    wanted = list(range(SHAPES[layer].channels)) if channels is None else channels
    expected = truth.scores(synthetic, layer, pooling).T[wanted] + np.float16(0)
    expected[:, bad_rows(synthetic)] = np.nan
    assert found.values.dtype == np.float16
    assert found.values.tobytes() == np.ascontiguousarray(expected).tobytes()
    assert found.channels.tolist() == wanted
    assert (found.generation, found.layer) == (synthetic.generation, layer)
    assert found.pooling == pooling
    blocks = list(client.scores_stream(layer, channels, pooling=pooling))
    assert np.concatenate([block.values for block in blocks]).tobytes() == found.values.tobytes()


def test_scores_of_what_is_not_there(client: Client) -> None:
    with pytest.raises(NotFoundError, match="channels: "):
        client.scores(WIDE, [11])
    with pytest.raises(UsageError, match="channels is empty"):
        client.scores(WIDE, [])
    # Wrong arguments are told of before the first block is asked for.
    with pytest.raises(UsageError, match="Pooling"):
        client.scores_stream(WIDE, pooling="sum")


def test_names_without_pictures(client: Client, synthetic: Synthetic) -> None:
    rows = [5, 0, 69, 5]
    whole, bare = client.images(rows), client.images(rows, pictures=False)
    for image, other, row in zip(whole, bare, rows, strict=True):
        assert other.jpeg == b""
        assert bool(image.jpeg) == (row not in bad_rows(synthetic))
        for name in ("row", "key", "label", "valid", "invalid_reason", "width", "height", "view"):
            assert getattr(image, name) == getattr(other, name)
    many = client.images([*range(70)] * 100, pictures=False)
    assert [image.row for image in many] == [*range(70)] * 100


LENGTHS: dict[str, int] = {"band": 2, "patch": 2, "rectangle": 4, "selector": 3}


def ask_with(client: Client, name: str, given: Any) -> None:
    match name:
        case "band":
            client.top_images(WIDE, 1, band=given)
        case "selector":
            client.patch_maps([given])
        case _:
            client.top_channels(1, **{name: given})


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (name, given)
        for name, length in LENGTHS.items()
        for given in (*(tuple(range(other)) for other in range(6) if other != length), "12", 7)
    ],
)
def test_tuples_of_another_length(client: Client, name: str, given: Any) -> None:
    with pytest.raises(UsageError, match=r"cannot be; write it as \("):
        ask_with(client, name, given)


def test_a_band_of_texts_is_no_band(client: Client) -> None:
    for band in (("0.1", "x"), (None, 1)):
        with pytest.raises(UsageError, match="are numbers"):
            ask_with(client, "band", band)


def test_a_filter_of_more_rows_than_a_request_carries(client: Client) -> None:
    most = client.top_images(WIDE, 4, k=3, where=ImageFilter(rows=[7] * 100_000))
    assert [image.row for image in most.images] == [7]
    for rows in (range(100_001), [1] * 5_000_000):
        with pytest.raises(UsageError, match="at most 100,000"):
            ImageFilter(rows=rows)
