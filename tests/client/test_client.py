"""The client over a real connection to a server with canned answers."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from vitscope.client import (
    Client,
    InvalidRequestError,
    NotFoundError,
    NotKeptError,
    UnavailableError,
    UsageError,
)

LAYER = "blocks.1.mlp"


@pytest.mark.parametrize(
    "address",
    ["", "localhost", ":50051", "host:", "host:0", "host:65536", "http://host:1", "a b:1", "::1:5"],
)
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(UsageError, match="write HOST:PORT"):
        Client(address)


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.1:65535", "[::1]:50051", "a-b.c:80"])
def test_addresses_that_can_be(address: str) -> None:
    Client(address).close()


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(UsageError, match="timeout"):
        Client("localhost:1", timeout=timeout)


def test_nothing_listens(silent_address: str) -> None:
    with Client(silent_address) as client, pytest.raises(UnavailableError) as caught:
        client.indexes()
    assert silent_address in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_indexes_and_layers(server_address: str) -> None:
    with Client(server_address) as client:
        assert [index.name for index in client.indexes()] == ["canned"]
        [layer] = client.index().layers
    assert (layer.name, layer.tokens.height, layer.tokens.width) == (LAYER, 2, 3)


def test_top_images_with_the_maps_that_are_kept(server_address: str) -> None:
    with Client(server_address) as client:
        top = client.top_images(LAYER, 3, k=3, maps=True)
    assert [image.row for image in top.images] == [0, 1, 2]
    assert [image.label for image in top.images] == ["class 0", "class 1", None]
    assert top.maps is not None
    assert_array_equal(top.maps.rows, [0, 1])
    assert_array_equal(top.maps.channels, [3, 3])


def test_patch_maps_come_in_order(server_address: str) -> None:
    with Client(server_address) as client:
        maps = client.patch_maps([(LAYER, 3, 1), (LAYER, 4, 0), ("blocks.0.mlp", 4, 0)])
    assert [one.layer for one in maps] == [LAYER, "blocks.0.mlp"]
    assert_array_equal(maps[0].rows, [1, 0])
    assert_array_equal(maps[0].channels, [3, 4])


def test_patch_map(server_address: str) -> None:
    with Client(server_address) as client:
        one = client.patch_map(LAYER, 3, np.int64(1))
    assert (one.generation, one.layer, one.channel, one.row) == ("g7", LAYER, 3, 1)
    assert_array_equal(one.values, np.array([[0, 1, 2], [3, 4, 5]], np.float16) + 0.125)


def test_similar_images(server_address: str) -> None:
    with Client(server_address) as client:
        near = client.similar_images(LAYER, 2)
    assert [image.row for image in near.images] == [0, 1, 3, 4]
    assert (near.row, near.exact, near.recall_at_10) == (2, False, 0.5)


def test_images(server_address: str) -> None:
    with Client(server_address) as client:
        first, second = client.images([5, 0])
    assert (first.row, first.valid, first.invalid_reason, first.jpeg) == (
        5,
        False,
        "truncated",
        b"",
    )
    assert second.jpeg.startswith(b"\xff\xd8")


def test_refusals_keep_the_servers_sentence(server_address: str) -> None:
    with Client(server_address) as client:
        with pytest.raises(NotFoundError, match="no layer 'x'"):
            client.top_images("x", 0)
        with pytest.raises(InvalidRequestError, match="k is 0; give 1 to 5"):
            client.top_images(LAYER, 0, k=0)
        with pytest.raises(NotKeptError, match="no map of 3"):
            client.patch_map(LAYER, 0, 3)
