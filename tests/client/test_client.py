"""Every method of the client, over a connection to the real server, against the dense truth."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from client.truth import INPUT, PLAIN, SHAPES, WHOLE, WIDE, bad_rows, good_rows
from numpy.testing import assert_array_equal
from synthetic import Synthetic

from client import truth
from vitscope.client import Client, PatchGrid, ScoredImage, UsageError


def pairs(images: Sequence[ScoredImage]) -> list[tuple[int, float]]:
    return [(image.row, image.score) for image in images]


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


@pytest.mark.parametrize("proxy", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_no_proxy_is_asked(
    synthetic_server: str, silent_address: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(proxy, f"http://{silent_address}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with Client(synthetic_server) as client:
        assert [index.name for index in client.indexes()] == ["zoo"]


def test_the_index_describes_itself(client: Client, synthetic: Synthetic) -> None:
    index = client.index()
    assert client.index("zoo") == index
    assert (index.name, index.generation) == ("zoo", synthetic.generation)
    assert (index.rows, index.valid_rows) == (70, 65)
    assert (index.model.name, index.model.weights_source) == ("vit_synthetic.none", "random")
    assert (index.model.input_height, index.model.input_width) == (48, 80)
    assert [layer.name for layer in index.layers] == list(SHAPES)
    for depth, layer in enumerate(index.layers):
        shape = SHAPES[layer.name]
        assert (layer.depth, layer.channels) == (depth, shape.channels)
        assert layer.tokens.prefix == shape.prefix
        assert (layer.tokens.height, layer.tokens.width) == (shape.height, shape.width)
        assert (layer.tokens.cell_height, layer.tokens.cell_width) == shape.cell
        assert (layer.tokens.top, layer.tokens.left) == shape.corner
        assert layer.poolings == shape.poolings
        assert layer.maps_per_channel == shape.kept


def test_indexes_come_without_layers(client: Client) -> None:
    [listed] = client.indexes()
    whole = client.index()
    assert listed.layers == ()
    assert (listed.name, listed.generation, listed.model) == (
        whole.name,
        whole.generation,
        whole.model,
    )


@pytest.mark.parametrize("layer", SHAPES)
def test_top_images_with_the_maps_that_are_kept(
    client: Client, synthetic: Synthetic, layer: str
) -> None:
    shape, maps = SHAPES[layer], truth.maps(synthetic, layer)
    most = len(good_rows(synthetic))
    for pooling in shape.poolings:
        for channel in range(shape.channels):
            expected = truth.best(synthetic, layer, channel, pooling)
            for k in (1, min(shape.kept, most), most):
                top = client.top_images(layer, channel, pooling=pooling, k=k, maps=True)
                assert (top.generation, top.layer, top.channel, top.pooling) == (
                    synthetic.generation,
                    layer,
                    channel,
                    pooling,
                )
                assert pairs(top.images) == expected[:k]
                stored = truth.kept_rows(synthetic, layer, channel)
                rows = [row for row, _ in expected[:k] if row in stored]
                assert top.maps is not None
                assert top.maps.layer == layer
                assert_array_equal(top.maps.rows, rows)
                assert_array_equal(top.maps.channels, [channel] * len(rows))
                assert_array_equal(top.maps.values, maps[rows, ..., channel])
                assert top.maps.grid == PatchGrid(*INPUT, *shape.cell, *shape.corner)


def test_top_images_bring_names_and_by_default_20_by_the_mean_without_maps(
    client: Client, synthetic: Synthetic
) -> None:
    top = client.top_images(WIDE, np.int64(4))
    assert (top.pooling, top.maps) == ("mean", None)
    assert pairs(top.images) == truth.best(synthetic, WIDE, 4, "mean")[:20]
    for image in top.images:
        record = synthetic.records[image.row]
        assert (image.key, image.label) == (record.key, record.label)
    assert {image.label is None for image in top.images} == {True, False}


@pytest.mark.parametrize("layer", SHAPES)
def test_patch_map(client: Client, synthetic: Synthetic, layer: str) -> None:
    shape, maps = SHAPES[layer], truth.maps(synthetic, layer)
    for channel in range(0, shape.channels, 2):
        row = max(truth.kept_rows(synthetic, layer, channel))
        one = client.patch_map(layer, np.int32(channel), np.int64(row))
        assert (one.generation, one.layer, one.channel, one.row) == (
            synthetic.generation,
            layer,
            channel,
            row,
        )
        assert one.values.dtype == np.float16
        assert_array_equal(one.values, maps[row, ..., channel])
        assert one.grid == PatchGrid(*INPUT, *shape.cell, *shape.corner)


def test_patch_maps_come_in_the_order_asked_for(client: Client, synthetic: Synthetic) -> None:
    asked = [
        (layer, channel, row)
        for layer in (WIDE, WHOLE, PLAIN, WIDE)
        for channel in (2, 0)
        for row in sorted(truth.kept_rows(synthetic, layer, channel), key=lambda row: row % 7)
    ]
    answers = client.patch_maps(asked)
    assert [maps.layer for maps in answers] == [WIDE, WHOLE, PLAIN, WIDE]
    found = [
        (maps.layer, channel, row)
        for maps in answers
        for channel, row in zip(maps.channels.tolist(), maps.rows.tolist(), strict=True)
    ]
    assert found == asked
    for maps in answers:
        assert maps.generation == synthetic.generation
        dense = truth.maps(synthetic, maps.layer)
        assert_array_equal(maps.values, dense[maps.rows, ..., maps.channels])


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
def test_a_grid_of_patch_maps(client: Client, synthetic: Synthetic, encoding: str) -> None:
    rows, channels = np.array([7, 3, 7]), [2, 0]
    maps = client.patch_map_grid(WHOLE, rows, channels, encoding=encoding)
    assert maps.rows.tolist() == [7, 7, 3, 3, 7, 7]
    assert maps.channels.tolist() == [2, 0] * 3
    expected = truth.maps(synthetic, WHOLE)[maps.rows, ..., maps.channels]
    # Maps of one patch have nothing between their least and greatest value.
    assert_array_equal(maps.values, expected)
    assert (maps.scale is None) == (encoding == "float16")


def test_maps_with_a_byte_a_value(client: Client, synthetic: Synthetic) -> None:
    rows = sorted(truth.kept_rows(synthetic, PLAIN, 5))
    asked = [(PLAIN, 5, row) for row in rows]
    [exact], [small] = client.patch_maps(asked), client.patch_maps(asked, encoding="uint8")
    assert small.scale is not None
    assert len(small.scale) == len(rows)
    off = np.abs(exact.values.astype(np.float64) - small.values.astype(np.float64))
    assert (off <= small.scale[:, None, None] * 0.51 + 2e-3).all()
    with pytest.raises(UsageError, match="Encoding 'int4' is not known"):
        client.patch_maps(asked, encoding="int4")


@pytest.mark.parametrize("layer", SHAPES)
def test_similar_images(client: Client, synthetic: Synthetic, layer: str) -> None:
    good = good_rows(synthetic)
    for row in good[::9]:
        cosines = truth.cosines(synthetic, layer, row)
        for k in (1, 10, len(good) - 1):
            near = client.similar_images(layer, row, k=k)
            assert (near.generation, near.layer, near.row) == (synthetic.generation, layer, row)
            assert (near.exact, near.recall_at_10) == (True, 1.0)
            rows = [image.row for image in near.images]
            assert len(set(rows)) == len(rows) == k
            assert not set(rows) & {row, *bad_rows(synthetic)}
            assert pairs(near.images) == sorted(pairs(near.images), key=lambda p: (-p[1], p[0]))
            found = np.array([image.score for image in near.images])
            assert np.allclose(found, cosines[rows], atol=1e-5)
            passed_over = [other for other in good if other != row and other not in rows]
            assert cosines[passed_over].max(initial=-1) <= found[-1] + 1e-5


def test_similar_images_bring_names_and_are_20_by_default(
    client: Client, synthetic: Synthetic
) -> None:
    near = client.similar_images(WIDE, 3)
    assert len(near.images) == 20
    assert [image.row for image in near.images[:4]] == [9, 40, 41, 66]  # copies of row 3
    for image in near.images:
        record = synthetic.records[image.row]
        assert (image.key, image.label) == (record.key, record.label)


def test_images_are_the_stored_bytes_in_the_order_asked_for(
    client: Client, synthetic: Synthetic
) -> None:
    rows = [69, 3, 0, 3, *range(70)] * 10
    images = client.images(rows)
    assert [image.row for image in images] == rows
    for image in images:
        record = synthetic.records[image.row]
        assert image.generation == synthetic.generation
        assert image.jpeg == synthetic.thumbnails[image.row]
        assert (image.key, image.label) == (record.key, record.label)
        assert image.valid == (image.row not in bad_rows(synthetic))
        assert image.invalid_reason == record.reason
        assert (image.width, image.height, image.view) == (
            record.width,
            record.height,
            record.view,
        )
    assert images[0].invalid_reason == "cannot identify image №69"


def test_every_method_asks_the_index_that_is_named(
    synthetic: Synthetic, pond: Synthetic, two_indexes: str
) -> None:
    with Client(two_indexes) as client:
        listed = client.indexes()
        assert {index.name: index.rows for index in listed} == {"zoo": 70, "пруд": 40}
        for index in (synthetic, pond):
            name = index.name
            assert client.index(name).generation == index.generation
            top = client.top_images(WIDE, 4, k=12, index=name)
            assert pairs(top.images) == truth.best(index, WIDE, 4, "mean")[:12]
            one = client.patch_map(WHOLE, 2, 7, index=name)
            assert_array_equal(one.values, truth.maps(index, WHOLE)[7, ..., 2])
            near = client.similar_images(WIDE, 5, k=3, index=name)
            cosines = truth.cosines(index, WIDE, 5)
            rows = [image.row for image in near.images]
            assert np.allclose([image.score for image in near.images], cosines[rows], atol=1e-5)
            [image] = client.images([33], index=name)
            assert image.key == index.records[33].key
            generations = {top.generation, one.generation, near.generation, image.generation}
            assert generations == {index.generation}
        assert client.images([33], index="zoo")[0].jpeg == synthetic.thumbnails[33]
        assert client.images([33], index="пруд")[0].jpeg == b""


def test_threads_share_a_client(client: Client, synthetic: Synthetic) -> None:
    failures: list[int] = []

    def ask(channel: int) -> None:
        for k in (1, 9, 30):
            top = client.top_images(PLAIN, channel, pooling="max", k=k)
            if pairs(top.images) != truth.best(synthetic, PLAIN, channel, "max")[:k]:
                failures.append(channel)

    threads = [threading.Thread(target=ask, args=(channel,)) for channel in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
