"""Every answer over the wire, against brute force over the dense activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import grpc
import make_golden
import numpy as np
import numpy.typing as npt
import pytest
from started import ServerProcess
from synthetic import Synthetic

from vitscope.store.manifest import Pooling
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

LAYERS = ("blocks.0.mlp", "stages.1.blocks.0.mlp", "blocks.1.mlp")
NUMBERS: Mapping[Pooling, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
VALID = 65
GRIDS = {
    "blocks.0.mlp": pb.PatchGrid(input_height=48, input_width=80, cell_height=16, cell_width=16),
    "stages.1.blocks.0.mlp": pb.PatchGrid(
        input_height=48, input_width=80, cell_height=12, cell_width=32, top=-2.5, left=8
    ),
    "blocks.1.mlp": pb.PatchGrid(input_height=48, input_width=80, cell_height=48, cell_width=80),
}
"""Where the synthetic layers' patches lie, written out a second time."""


def pairs(images: Iterable[pb.ScoredImage]) -> list[tuple[int, float]]:
    return [(image.row, image.score) for image in images]


def values_of(maps: pb.PatchMaps) -> npt.NDArray[np.float16]:
    shape = (len(maps.rows), maps.height, maps.width)
    return np.frombuffer(maps.values, "<f2").reshape(shape)


@pytest.mark.parametrize("layer", LAYERS)
def test_top_images_of_every_channel_and_pooling(
    synthetic: Synthetic, stub: ActivationServiceStub, layer: str
) -> None:
    record = synthetic.layers[layer]
    maps = synthetic.maps(layer)
    kept = min(record.top_k, VALID)
    stored = [
        {
            row
            for pooling in record.poolings
            for row, _ in synthetic.ranking(layer, pooling, channel)[:kept]
        }
        for channel in range(record.channels)
    ]
    for pooling in record.poolings:
        for channel in range(record.channels):
            truth = synthetic.ranking(layer, pooling, channel)
            # Below and at what is kept with its map, just above, and everything there is.
            for k in sorted({1, kept - 1, kept, min(kept + 1, VALID), VALID}):
                reply = stub.TopImages(
                    pb.TopImagesRequest(
                        layer=layer,
                        channel=channel,
                        pooling=NUMBERS[pooling],
                        k=k,
                        include_maps=True,
                    )
                )
                assert reply.generation == synthetic.generation
                assert reply.pooling == NUMBERS[pooling]
                assert pairs(reply.images) == truth[:k]
                rows = [row for row, _ in truth[:k] if row in stored[channel]]
                assert list(reply.maps.rows) == rows
                assert list(reply.maps.channels) == [channel] * len(rows)
                assert reply.maps.layer == layer
                assert np.array_equal(values_of(reply.maps), maps[rows, channel])
                assert reply.maps.grid == GRIDS[layer]


def test_ranked_images_carry_key_and_label(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    reply = stub.TopImages(pb.TopImagesRequest(layer="blocks.0.mlp", channel=4, k=VALID))
    assert sorted(image.row for image in reply.images) == np.flatnonzero(synthetic.valid).tolist()
    for image in reply.images:
        record = synthetic.records[image.row]
        assert image.key == record.key
        assert (image.label if image.HasField("label") else None) == record.label


def test_left_out_k_and_pooling_mean_20_by_the_mean(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    reply = stub.TopImages(pb.TopImagesRequest(layer="blocks.0.mlp", channel=4))
    assert reply.pooling == index_pb2.POOLING_MEAN
    assert pairs(reply.images) == synthetic.ranking("blocks.0.mlp", "mean", 4)[:20]
    assert not reply.HasField("maps")


def kept_selectors(synthetic: Synthetic, layer: str) -> list[pb.PatchMapSelector]:
    """Every map of a layer that is among the top of some pooling, in a shuffled order."""
    record = synthetic.layers[layer]
    found = {
        (channel, row)
        for pooling in record.poolings
        for channel in range(record.channels)
        for row, _ in synthetic.ranking(layer, pooling, channel)[: record.top_k]
    }
    order = np.random.default_rng(5).permutation(len(found))
    ordered = sorted(found)
    return [
        pb.PatchMapSelector(layer=layer, channel=ordered[at][0], row=ordered[at][1])
        for at in order.tolist()
    ]


def flat(replies: Iterable[pb.GetPatchMapsResponse]) -> list[tuple[str, int, int, bytes]]:
    """All maps of a stream: layer, channel, row, values."""
    found = []
    for reply in replies:
        maps = reply.maps
        values = values_of(maps)
        for place, (row, channel) in enumerate(zip(maps.rows, maps.channels, strict=True)):
            found.append((maps.layer, channel, row, values[place].tobytes()))
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_every_kept_map_in_the_order_asked_for(
    synthetic: Synthetic, stub: ActivationServiceStub, layer: str
) -> None:
    selectors = kept_selectors(synthetic, layer)
    maps = synthetic.maps(layer)
    replies = list(stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=selectors)))
    assert flat(replies) == [
        (layer, s.channel, s.row, maps[s.row, s.channel].tobytes()) for s in selectors
    ]
    tokens = synthetic.layers[layer].tokens
    for reply in replies:
        assert reply.generation == synthetic.generation
        assert (reply.maps.height, reply.maps.width) == (tokens.height, tokens.width)
        assert reply.maps.grid == GRIDS[layer]


def test_maps_of_mixed_layers_and_repeated_maps_keep_their_order(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    several = [kept_selectors(synthetic, layer)[:4] for layer in LAYERS]
    selectors = [selector for group in zip(*several, strict=True) for selector in group]
    selectors += [selectors[0], *several[1], selectors[0]]
    found = flat(stub.GetPatchMaps(pb.GetPatchMapsRequest(maps=selectors)))
    assert found == [
        (s.layer, s.channel, s.row, synthetic.maps(s.layer)[s.row, s.channel].tobytes())
        for s in selectors
    ]


@pytest.mark.parametrize("layer", LAYERS)
def test_similar_images(synthetic: Synthetic, stub: ActivationServiceStub, layer: str) -> None:
    for row in np.flatnonzero(synthetic.valid).tolist():
        truth = synthetic.cosines(layer, row)
        for k in (1, 10, VALID - 1):
            reply = stub.SimilarImages(pb.SimilarImagesRequest(layer=layer, row=row, k=k))
            assert (reply.generation, reply.exact, reply.recall_at_10) == (
                synthetic.generation,
                True,
                1.0,
            )
            found = pairs(reply.images)
            rows = [other for other, _ in found]
            assert len(set(rows)) == k
            assert row not in rows
            assert synthetic.valid[rows].all()
            assert found == sorted(found, key=lambda pair: (-pair[1], pair[0]))
            assert np.allclose([score for _, score in found], truth[rows], atol=1e-5)
            others = [x for x in np.flatnonzero(synthetic.valid) if x != row and x not in rows]
            assert max(truth[others], default=-1) <= found[-1][1] + 1e-5


def test_similar_images_carry_key_and_label_and_20_is_the_default(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    reply = stub.SimilarImages(pb.SimilarImagesRequest(layer="blocks.0.mlp", row=3))
    assert len(reply.images) == 20
    # The other copies of the picture first.
    assert [image.row for image in reply.images][:4] == [9, 40, 41, 66]
    for image in reply.images:
        record = synthetic.records[image.row]
        assert image.key == record.key
        assert (image.label if image.HasField("label") else None) == record.label


def test_images_come_as_they_were_stored(synthetic: Synthetic, stub: ActivationServiceStub) -> None:
    rows = [69, 3, 0, 3, *range(70)]
    replies = list(stub.GetImages(pb.GetImagesRequest(rows=rows)))
    assert {reply.generation for reply in replies} == {synthetic.generation}
    images = [image for reply in replies for image in reply.images]
    assert [image.row for image in images] == rows
    for image in images:
        record = synthetic.records[image.row]
        assert image.jpeg == synthetic.thumbnails[image.row]
        assert (image.key, image.valid, image.invalid_reason) == (
            record.key,
            record.valid,
            record.reason,
        )
        assert (image.label if image.HasField("label") else None) == record.label
        assert (image.width, image.height) == (record.width, record.height)
        view = image.view
        corners = (view.x0, view.y0, view.x1, view.y1) if image.HasField("view") else None
        assert corners == record.view
    assert images[0].invalid_reason == "cannot identify image №69"
    assert not images[0].HasField("view")


def test_an_index_of_version_1_has_sizes_but_no_views(serve: Callable[..., ServerProcess]) -> None:
    address = serve(make_golden.DATA / "golden-v1" / "index").address
    with grpc.insecure_channel(address) as channel:
        old = ActivationServiceStub(channel)
        [reply] = old.GetImages(pb.GetImagesRequest(rows=range(40)))
        [layer, *_] = old.GetIndex(pb.GetIndexRequest()).index.layers
        top = old.TopImages(pb.TopImagesRequest(layer=layer.name, include_maps=True))
    assert any(image.valid for image in reply.images)
    for image in reply.images:
        assert (image.width > 0) == image.valid
        assert not image.HasField("view")
    # Its patches cover the input evenly, and are said to.
    tokens, grid = layer.tokens, top.maps.grid
    assert (grid.top, grid.left) == (tokens.top, tokens.left) == (0, 0)
    assert tokens.height * grid.cell_height == grid.input_height
    assert tokens.width * grid.cell_width == grid.input_width
    assert (tokens.cell_height, tokens.cell_width) == (grid.cell_height, grid.cell_width)


def test_the_most_images_at_once_come_in_order(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    rows = [row % 70 for row in range(1024)]
    images = [
        (image.row, image.jpeg)
        for reply in stub.GetImages(pb.GetImagesRequest(rows=rows))
        for image in reply.images
    ]
    assert images == [(row, synthetic.thumbnails[row]) for row in rows]


@pytest.mark.parametrize("name", ["", "zoo"])
def test_an_index_describes_itself(
    synthetic: Synthetic, stub: ActivationServiceStub, name: str
) -> None:
    index = stub.GetIndex(pb.GetIndexRequest(index=name)).index
    assert (index.name, index.generation) == ("zoo", synthetic.generation)
    assert (index.rows, index.valid_rows) == (70, VALID)
    assert (index.model.name, index.model.weights_source) == ("vit_synthetic.none", "random")
    assert (index.model.input_height, index.model.input_width) == (48, 80)
    assert index.model.weights_sha256 == synthetic.manifest.model.weights_sha256
    assert index.model.dtype == "float32"
    assert [layer.name for layer in index.layers] == list(LAYERS)
    for layer in index.layers:
        record = synthetic.layers[layer.name]
        assert (layer.depth, layer.channels) == (record.depth, record.channels)
        assert layer.maps_per_channel == record.top_k
        assert tuple(layer.tokens.prefix) == record.tokens.prefix
        assert (layer.tokens.height, layer.tokens.width) == (
            record.tokens.height,
            record.tokens.width,
        )
        grid = GRIDS[layer.name]
        assert (layer.tokens.cell_height, layer.tokens.cell_width) == (
            grid.cell_height,
            grid.cell_width,
        )
        assert (layer.tokens.top, layer.tokens.left) == (grid.top, grid.left)
        assert list(layer.poolings) == [NUMBERS[pooling] for pooling in record.poolings]


def test_listed_indexes_are_described_without_layers(
    synthetic: Synthetic, stub: ActivationServiceStub
) -> None:
    (listed,) = stub.ListIndexes(pb.ListIndexesRequest()).indexes
    expected = stub.GetIndex(pb.GetIndexRequest()).index
    del expected.layers[:]
    assert listed == expected
