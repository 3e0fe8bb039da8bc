"""Tables of answers: every kind has one, in pandas as in Parquet; answers are short to print."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from client.answers import DENSE, EXPECTED, OTHER, QUESTIONS, without_nan
from client.truth import PLAIN, WIDE
from pandas.testing import assert_frame_equal

import vitscope.client
from vitscope.client import Client, ImageFilter, TopChannels, TopImages, UsageError, results, tables
from vitscope.client.answer import Answer, source_of
from vitscope.client.cli import main

Captured = pytest.CaptureFixture[str]
Answers = dict[type[Answer], Answer]

PARTS = {
    "BoxScores",
    "BoxedImage",
    "ChangedImage",
    "ChannelChange",
    "ChannelMap",
    "Distinctness",
    "Layer",
    "Model",
    "NamedDirections",
    "PatchGrid",
    "ScoredChannel",
    "ScoredImage",
    "ScoredPatch",
    "TokenLayout",
}
"""Of answers, and no answers themselves."""

KINDS = sorted(EXPECTED, key=lambda kind: kind.__name__)

DTYPES = dict.fromkeys(("channel", "rank", "hubs", "y", "x", "depth", "channels"), "int32")
DTYPES |= dict.fromkeys(("width", "height", "maps_per_channel", "count"), "int32")
DTYPES |= dict.fromkeys(("row", "images", "inside_images"), "int64")
DTYPES |= dict.fromkeys(("highest", "other_score"), "float32")
DTYPES |= dict.fromkeys(("x0", "y0", "x1", "y1"), "float32")
TEXTS = {"key", "label", "layer", "prefix", "poolings", "reason", "name"}


def dtype(kind: type[Answer], name: str) -> str:
    """The type of a column, as NumPy calls it."""
    if name == "score" or (name[0] in "cq" and name[1:].replace(".", "").isdigit()):
        return "float32"
    if name == "difference" and kind.__name__ == "ChangedImages":
        return "float32"
    if name in TEXTS:
        return str(pandas.Series(["text"]).dtype)
    return "bool" if name == "valid" else DTYPES.get(name, "float64")


def test_every_result_is_an_answer_with_a_table_or_a_part_of_one() -> None:
    public = {name: getattr(vitscope.client, name) for name in vitscope.client.__all__}
    found = {name for name, each in public.items() if dataclasses.is_dataclass(each)}
    found -= {"ImageFilter", "Retries", "Tls"}
    answers = {name for name in found if issubclass(public[name], Answer)}
    assert found - answers == PARTS
    assert answers == {kind.__name__ for kind in EXPECTED}
    for name in answers:
        assert tables.table.dispatch(public[name]) is not tables.table.dispatch(object), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_the_answer_field_by_field(answers: Answers, kind: type[Answer]) -> None:
    answer = answers[kind]
    frame = answer.to_pandas()
    expected = list(map(without_nan, EXPECTED[kind](answer)))
    assert expected
    assert list(frame.columns) == list(expected[0])
    assert list(map(without_nan, frame.to_dict("records"))) == expected
    assert frame.index.tolist() == list(range(len(expected)))
    assert {name: str(each) for name, each in frame.dtypes.items()} == {
        name: dtype(kind, name) for name in expected[0]
    }
    told = {
        name: getattr(answer, name)
        for name in ("generation", "layer", "channel", "pooling", "exact", "patch", "measure")
        if hasattr(answer, name) and kind is not results.Image
    }
    assert told.items() <= frame.attrs.items()
    assert all(isinstance(value, str | int | float | tuple) for value in frame.attrs.values())


@pytest.mark.parametrize(
    ("line", "ask"),
    [
        (f"top-images --layer {OTHER}", lambda c, i: c.top_images_of_channels(OTHER, index=i)),
        (
            f"top-images --layer {DENSE} --distinct -k 3",
            lambda c, i: c.top_images_of_channels(DENSE, distinct=True, k=3, index=i),
        ),
        (f"statistics --layer {OTHER}", lambda c, i: [c.channel_statistics(OTHER, index=i)]),
        (f"box-scores --layer {DENSE}", lambda c, i: [c.box_scores(DENSE, index=i)]),
        ("images", lambda c, i: c.images(range(70), pictures=False, index=i)),
    ],
)
def test_a_frame_is_what_parquet_gives_back(
    pair_server: str, line: str, ask: Any, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out.parquet"
    line = f"export table {line} --server {pair_server} --index one --out {out}"
    assert main(line.split()) == 0
    with Client(pair_server) as client:
        assert_frame_equal(
            tables.to_pandas(ask(client, "one")), in_floats(pandas.read_parquet(out))
        )


def in_floats(frame: pandas.DataFrame) -> pandas.DataFrame:
    """With float32 for float16."""
    return frame.astype(dict.fromkeys(frame.select_dtypes("float16"), "float32"))


def test_scores_have_the_columns_of_their_export(
    pair_server: str, tmp_path: Path, capsys: Captured
) -> None:
    out = tmp_path / "out.parquet"
    line = f"export scores --layer {OTHER} --server {pair_server} --index one --out {out}"
    assert main(line.split()) == 0
    exported = in_floats(pandas.read_parquet(out).drop(columns=["key", "label"]))
    with Client(pair_server) as client:
        assert_frame_equal(client.scores(OTHER, index="one").to_pandas(), exported)
        twice = client.scores(OTHER, [3, 3], index="one")
    assert list(twice.to_pandas().columns) == ["row", "c3"]


def test_several_answers_are_one_frame(pair_server: str) -> None:
    with Client(pair_server) as client:
        tops = [client.top_images(layer, 1, k=3, index="one") for layer in (DENSE, OTHER)]
        tops.append(client.top_images(DENSE, 2, k=2, index="two"))
    frame = tables.to_pandas(tops)
    assert list(frame.columns[:4]) == ["generation", "layer", "channel", "rank"]
    assert frame["layer"].tolist() == [DENSE] * 3 + [OTHER] * 3 + [DENSE] * 2
    assert frame["row"].tolist() == [image.row for top in tops for image in top.images]
    assert frame["channel"].tolist() == [1] * 6 + [2] * 2
    assert frame.attrs == {"pooling": "mean", "candidates": tops[0].candidates}


def test_an_answer_of_nothing_has_an_empty_frame(client: Client) -> None:
    empty = dataclasses.replace(client.top_images(WIDE, 4), images=())
    full = client.top_images(PLAIN, 4, distinct=True)
    assert list(empty.to_pandas().columns) == ["channel", "rank", "row", "key", "label", "score"]
    assert len(empty.to_pandas()) == 0
    assert_frame_equal(
        tables.to_pandas([empty, full]).drop(columns="layer"), full.to_pandas(), check_like=True
    )


def test_maps_of_which_none_is_kept(pair_server: str) -> None:
    with Client(pair_server) as client:
        ranked = client.top_images(OTHER, 3, k=70 - 5, index="one").images
        where = ImageFilter(rows=[image.row for image in ranked[-4:]])
        maps = client.top_images(OTHER, 3, k=4, maps=True, where=where, index="one").maps
    assert maps is not None
    assert len(maps.rows) == len(maps.to_pandas()) == 0
    assert "<table" in maps._repr_html_()


def test_what_makes_no_frame(client: Client) -> None:
    with pytest.raises(UsageError, match="one or more answers, all of one kind"):
        tables.to_pandas([])
    with pytest.raises(UsageError, match="one or more answers, all of one kind"):
        tables.to_pandas([client.top_images(WIDE, 4), client.top_channels(5)])
    with pytest.raises(UsageError, match="different columns"):
        tables.to_pandas([client.top_images(WIDE, 4), client.top_images(WIDE, 4, distinct=True)])


def test_without_pandas_a_sentence_names_it(synthetic_server: str) -> None:
    code = f"""
import sys
sys.modules["pandas"] = None
from vitscope.client import Client, ImageFilter, UsageError
with Client({synthetic_server!r}) as client:
    top = client.top_images({WIDE!r}, 4, k=2)
assert "<img" in top._repr_html_()
try:
    top.to_pandas()
except UsageError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "to_pandas needs pandas; run `pip install pandas`.\n"


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_short_to_print(answers: Answers, kind: type[Answer]) -> None:
    text = repr(answers[kind])
    assert text.startswith(f"{kind.__name__}(generation=") or kind.__name__ in (
        "Index",
        "Neighbours",
    )
    assert len(text) < 700
    assert "array(" not in text
    assert "\n" not in text
    assert "Scored" not in text or f"<{len(EXPECTED[kind](answers[kind]))} Scored" in text


def test_where_an_answer_came_from_is_no_part_of_it(pair_server: str, answers: Answers) -> None:
    with Client(pair_server, timeout=20) as client:
        again = {kind: ask(client) for kind, ask in QUESTIONS.items()}
    one, other = answers[TopChannels], again[TopChannels]
    assert one == other
    assert hash(one) == hash(other)
    for answer in answers.values():
        copied = pickle.loads(pickle.dumps(answer))
        assert source_of(copied) is None
        assert repr(copied) == repr(answer)
        assert "source" not in {field.name for field in dataclasses.fields(answer)}  # type: ignore[arg-type]
    assert source_of(answers[TopImages]) is not None
    for copied in (copy.copy, copy.deepcopy):
        for answer in answers.values():
            same = copied(answer)
            assert same is not answer
            assert repr(same) == repr(answer)
            assert source_of(same) is source_of(answer)
    assert dataclasses.asdict(one)["generation"] == one.generation  # type: ignore[call-overload, attr-defined]


def test_a_deep_copy_has_arrays_of_its_own(client: Client) -> None:
    top = client.top_images(WIDE, 4, k=3, maps=True)
    shallow, deep = copy.copy(top), copy.deepcopy(top)
    assert top.maps is not None
    assert deep.maps is not None
    assert shallow.maps is top.maps
    assert not np.shares_memory(deep.maps.values, top.maps.values)
    assert np.array_equal(deep.maps.values, top.maps.values)
    assert source_of(deep.maps) is source_of(top)
    bare = pickle.loads(pickle.dumps(top))
    assert source_of(copy.copy(bare)) is source_of(copy.deepcopy(bare)) is None


def test_long_texts_are_short_to_print(client: Client) -> None:
    top = client.top_images(WIDE, 4, k=1)
    name = f"{'begin' * 40}{'end' * 40}"
    [image] = client.images([5])
    for answer in (
        dataclasses.replace(top.images[0], label=name, key=name),
        dataclasses.replace(image, label=name, key=name),
        client.top_patches(WIDE, 4, k=1).patches[0],
    ):
        text = repr(answer)
        assert len(text) < 500
        assert text.startswith(f"{type(answer).__name__}(")
        assert name not in text
    long = dataclasses.replace(top.images[0], label=name)
    assert "label='beginbegin" in repr(long)
    assert "…" in repr(long)
    assert "endend'" in repr(long)
    assert long.label == name
    [row] = dataclasses.replace(top, images=(long,)).to_pandas().to_dict("records")
    assert row["label"] == name
