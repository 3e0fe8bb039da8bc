"""Protobuf messages, put on the wire and read back, become the results they stand for."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from vitscope.client import convert, convert_maps, fields, requests
from vitscope.client.entries import Layer, PatchGrid, ScoredImage, TokenLayout
from vitscope.client.errors import ServerError, UsageError
from vitscope.client.results import Image
from vitscope.v1 import index_pb2, query_pb2


def some_maps(count: int = 2, layer: str = "blocks.0.mlp", first: int = 0) -> query_pb2.PatchMaps:
    values = (np.arange(count * 6) + first).astype("<f2")
    return query_pb2.PatchMaps(
        layer=layer,
        rows=range(first, first + count),
        channels=[7] * count,
        height=2,
        width=3,
        values=values.tobytes(),
    )


def reply(maps: query_pb2.PatchMaps) -> query_pb2.GetPatchMapsResponse:
    return query_pb2.GetPatchMapsResponse(generation="g1", maps=maps)


@pytest.mark.parametrize("name", ["mean", "max", "cls"])
def test_poolings_go_there_and_back(name: str) -> None:
    assert convert.pooling_name(fields.pooling_value(name)) == name


def test_an_unknown_pooling_names_the_choices() -> None:
    with pytest.raises(UsageError, match="'sum' is not known; choose one of mean, max, cls"):
        fields.pooling_value("sum")


def test_every_pooling_of_the_proto_has_a_name() -> None:
    values = set(index_pb2.Pooling.values()) - {index_pb2.POOLING_UNSPECIFIED}
    assert set(fields.POOLINGS.values()) == values


def test_layer() -> None:
    model = index_pb2.Model(input_height=112, input_width=96)
    message = index_pb2.Layer(
        name="blocks.5.mlp",
        depth=5,
        channels=768,
        tokens=index_pb2.TokenLayout(
            prefix=["cls", "reg"],
            height=14,
            width=16,
            cell_height=7.5,
            cell_width=6,
            top=-1.25,
            left=3,
        ),
        poolings=[index_pb2.POOLING_MAX, index_pb2.POOLING_CLS],
        maps_per_channel=20,
    )
    again = index_pb2.Layer.FromString(message.SerializeToString())
    assert convert.layer(again, model) == Layer(
        name="blocks.5.mlp",
        depth=5,
        channels=768,
        tokens=TokenLayout(("cls", "reg"), 14, 16, 7.5, 6.0, -1.25, 3.0),
        poolings=("max", "cls"),
        maps_per_channel=20,
    )


def test_an_older_server_does_not_tell_where_patches_lie() -> None:
    """All that it knows cover the input evenly."""
    model = index_pb2.Model(input_height=112, input_width=96)
    tokens = index_pb2.TokenLayout(height=14, width=16)
    assert convert.token_layout(tokens, model) == TokenLayout((), 14, 16, 8.0, 6.0, 0.0, 0.0)
    assert convert_maps.patch_maps(some_maps(), "g1").grid is None


GRID: dict[str, Any] = {
    "input_height": 20,
    "input_width": 50,
    "cell_height": 8,
    "cell_width": 16,
    "top": 2,
    "left": -4.5,
}


def test_the_place_of_maps() -> None:
    message = some_maps()
    message.grid.CopyFrom(query_pb2.PatchGrid(**GRID))
    grid = convert_maps.patch_maps(message, "g1").grid
    assert grid == PatchGrid(20, 50, 8.0, 16.0, 2.0, -4.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell_height": 0.0},
        {"cell_width": -16.0},
        {"cell_height": math.nan},
        {"cell_width": math.inf},
        {"cell_width": 1e-3},
        {"cell_height": 1e4},
        {"top": math.nan},
        {"left": -math.inf},
        {"top": 20.0},
        {"top": -16.0},
        {"left": 50.0},
        {"left": -48.0},
        {"input_height": 0},
        {"input_width": -50},
    ],
    ids=str,
)
def test_patches_that_lie_nowhere_are_refused(changes: dict[str, Any]) -> None:
    place = GRID | changes
    message = some_maps()
    message.grid.CopyFrom(query_pb2.PatchGrid(**place))
    with pytest.raises(ServerError, match=r"inconsistent: patches of .* do not lie in an input"):
        convert_maps.patch_maps(message, "g1")
    sides = {name: place.pop(name) for name in ("input_height", "input_width")}
    tokens = index_pb2.TokenLayout(height=2, width=3, **place)
    with pytest.raises(ServerError, match=r"inconsistent: patches of .* do not lie in an input"):
        convert.token_layout(tokens, index_pb2.Model(**sides))


def test_index_describes_its_model() -> None:
    message = index_pb2.Index(name="a", generation="g1", rows=9, valid_rows=8)
    message.model.name = "vit"
    message.model.input_height, message.model.input_width = 224, 384
    index = convert.index(index_pb2.Index.FromString(message.SerializeToString()))
    assert (index.name, index.generation, index.rows, index.valid_rows) == ("a", "g1", 9, 8)
    assert (index.model.name, index.model.input_height, index.model.input_width) == (
        "vit",
        224,
        384,
    )
    assert index.layers == ()


def test_an_absent_label_is_none_and_an_empty_one_is_not() -> None:
    without = query_pb2.ScoredImage(row=3, key="a.jpg", score=0.5)
    empty = query_pb2.ScoredImage(row=3, key="a.jpg", score=0.5, label="")
    assert convert.scored_image(without) == ScoredImage(3, "a.jpg", None, 0.5)
    assert convert.scored_image(empty) == ScoredImage(3, "a.jpg", "", 0.5)


def test_scores_are_the_float16_values_exactly() -> None:
    score = float(np.float16(0.1))
    message = query_pb2.ScoredImage.FromString(
        query_pb2.ScoredImage(score=score).SerializeToString()
    )
    assert convert.scored_image(message).score == score


def test_top_images_joins_question_and_answer() -> None:
    message = query_pb2.TopImagesResponse(
        generation="g1", pooling=index_pb2.POOLING_MAX, maps=some_maps()
    )
    top = convert.top_images(message, "blocks.0.mlp", np.int64(7))
    assert (top.generation, top.layer, top.channel, top.pooling) == (
        "g1",
        "blocks.0.mlp",
        7,
        "max",
    )
    assert type(top.channel) is int
    assert top.maps is not None
    assert top.maps.values.shape == (2, 2, 3)


def test_top_images_without_maps() -> None:
    message = query_pb2.TopImagesResponse(generation="g1")
    assert convert.top_images(message, "blocks.0.mlp", 7).maps is None


def test_patch_maps_are_row_major() -> None:
    maps = convert_maps.patch_maps(some_maps(), "g1")
    assert maps.values.dtype == np.float16
    assert maps.rows.dtype == np.int64
    assert maps.channels.dtype == np.int32
    assert_array_equal(maps.values[1], [[6, 7, 8], [9, 10, 11]])


@pytest.mark.parametrize("field", ["values", "channels", "height", "rows"])
def test_patch_maps_of_the_wrong_size_are_refused(field: str) -> None:
    message = some_maps()
    message.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(ServerError, match="inconsistent"):
        convert_maps.patch_maps(message, "g1")


def test_an_odd_number_of_bytes_is_refused() -> None:
    message = some_maps()
    message.values += b"\0"
    with pytest.raises(ServerError, match="inconsistent"):
        convert_maps.patch_maps(message, "g1")


def test_a_stream_is_joined_where_layer_and_grid_agree() -> None:
    parts = [some_maps(2), some_maps(0), some_maps(1, first=2), some_maps(1, "blocks.1.mlp")]
    asked = [("blocks.0.mlp", 7, np.int64(row)) for row in range(3)] + [("blocks.1.mlp", 7, 0)]
    joined = convert_maps.patch_maps_stream(map(reply, parts), asked)
    assert [maps.layer for maps in joined] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert_array_equal(joined[0].rows, [0, 1, 2])
    assert_array_equal(joined[0].values[2], [[2, 3, 4], [5, 6, 7]])


def test_maps_of_other_places_are_not_joined() -> None:
    parts = [some_maps(1, first=row) for row in range(4)]
    for part, top in zip(parts, (2, 2, 3, 3), strict=True):
        part.grid.CopyFrom(query_pb2.PatchGrid(**GRID | {"top": top}))
    asked = [("blocks.0.mlp", 7, row) for row in range(4)]
    joined = convert_maps.patch_maps_stream(map(reply, parts), asked)
    assert [len(maps.rows) for maps in joined] == [2, 2]
    assert [maps.grid and maps.grid.top for maps in joined] == [2.0, 3.0]


def test_a_stream_that_ends_early_is_refused() -> None:
    asked = [("blocks.0.mlp", 7, row) for row in range(3)]
    with pytest.raises(ServerError, match="2 maps where 3 were asked for"):
        convert_maps.patch_maps_stream([reply(some_maps(2))], asked)


@pytest.mark.parametrize(
    "asked", [("blocks.0.mlp", 7, 1), ("blocks.0.mlp", 6, 0), ("blocks.1.mlp", 7, 0)]
)
def test_maps_that_were_not_asked_for_are_refused(asked: tuple[str, int, int]) -> None:
    with pytest.raises(ServerError, match="other maps than those asked for"):
        convert_maps.patch_maps_stream([reply(some_maps(1))], [asked])


def test_images() -> None:
    message = query_pb2.GetImagesResponse(
        generation="g1",
        images=[query_pb2.Image(row=4, key="b.jpg", valid=False, invalid_reason="empty")],
    )
    expected = Image("g1", 4, "b.jpg", None, False, "empty", b"", 0, 0, None)
    assert convert_maps.images_stream([message], [np.int64(4)]) == [expected]
    with pytest.raises(ServerError, match="1 images where 2"):
        convert_maps.images_stream([message], [4, 4])
    with pytest.raises(ServerError, match="other images than those asked for"):
        convert_maps.images_stream([message], [5])


def test_an_image_carries_its_size_and_view() -> None:
    view = query_pb2.Rectangle(x0=-2.5, y0=0, x1=642.5, y1=480)
    message = query_pb2.Image(row=4, key="b", valid=True, width=640, height=480, view=view)
    image = convert_maps.image(query_pb2.Image.FromString(message.SerializeToString()), "g1")
    assert (image.width, image.height) == (640, 480)
    assert image.view == (-2.5, 0.0, 642.5, 480.0)
    message.ClearField("view")
    assert convert_maps.image(message, "g1").view is None


@pytest.mark.parametrize(
    "changes",
    [{"x0": 9.0}, {"y1": 0.0}, {"x1": math.nan}, {"y0": -math.inf}, {"width": 0}],
    ids=str,
)
def test_a_view_of_nothing_is_refused(changes: dict[str, Any]) -> None:
    size = {"width": 8, "height": 6, **changes}
    corners = {name: size.pop(name) for name in tuple(size) if name[0] in "xy"}
    view = query_pb2.Rectangle(**{"x0": 0, "y0": 0, "x1": 8, "y1": 6, **corners})
    message = query_pb2.Image(row=4, valid=True, view=view, **size)
    with pytest.raises(ServerError, match="inconsistent: row 4 shows"):
        convert_maps.image(message, "g1")


def ranked(pooling: str, k: int | None, *, maps: bool = False) -> requests.Ranked:
    return requests.Ranked(pooling, k, maps, None, "top", None, False)


def test_requests_carry_what_was_asked() -> None:
    request = requests.top_images_request(
        "a", "blocks.0.mlp", np.int32(3), ranked("cls", 0, maps=True)
    )
    assert (request.index, request.layer, request.channel) == ("a", "blocks.0.mlp", 3)
    assert (request.pooling, request.k, request.include_maps) == (index_pb2.POOLING_CLS, 0, True)
    assert request.HasField("k")
    assert not requests.top_images_request("", "x", 3, ranked("mean", None)).HasField("k")
    [selector] = requests.patch_maps_request("", [("x", 1, 2)]).maps
    assert (selector.layer, selector.channel, selector.row) == ("x", 1, 2)
    assert not requests.similar_images_request("", "x", 3, None).HasField("k")
    assert list(requests.images_request("", np.array([3, 1])).rows) == [3, 1]


def test_numbers_and_text_that_no_field_can_carry_are_refused() -> None:
    with pytest.raises(UsageError, match="channel 2147483648 is out of range"):
        requests.top_images_request("", "x", 1 << 31, ranked("mean", None))
    with pytest.raises(UsageError, match="row"):
        requests.images_request("", [1 << 63])
    with pytest.raises(UsageError, match="UTF-8"):
        requests.index_request("\udcff")
