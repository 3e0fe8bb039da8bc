"""How two plans differ, for people: total over the fields of a plan, and short."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vitscope.indexer.differences import FIELDS, differences
from vitscope.indexer.plan import Plan
from vitscope.store.manifest import LayerRecord, ModelRecord, TokenLayout

LAYER = LayerRecord(
    name="blocks.0.mlp",
    depth=0,
    channels=192,
    tokens=TokenLayout.even(("cls",), 2, 2, (32, 32)),
    poolings=("mean", "max", "cls"),
    top_k=8,
    dense=False,
    dense_prefix=False,
)
MODEL = ModelRecord(
    name="test_vit",
    weights_source="checkpoint",
    weights_sha256="0" * 64,
    input_size=(32, 32),
    dtype="float32",
    transform=("Resize(size=32)", "CenterCrop(size=(32, 32))"),
    decoder="pillow",
    exif="ignored",
)
PLAN: dict[str, Any] = json.loads(
    Plan(
        model=MODEL,
        layers=(LAYER,),
        base="",
        base_rows=0,
        rows=60,
        rows_sha256="0" * 64,
        batch_size=4,
        unit_rows=20,
        threads=2,
        thumbnail_size=256,
    ).to_json()
)
OTHER: dict[type, Callable[[Any], Any]] = {
    int: lambda old: old + 1,
    float: lambda old: old + 1,
    bool: lambda old: not old,
    str: lambda old: f"{old}0",
}


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Where the plan's fields lie in its JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, *path, key)
    elif isinstance(value, list) and isinstance(value[0], dict):
        yield from leaves(value[0], *path, 0)
    else:
        yield path


def changed(**values: Any) -> bytes:
    """The plan with other values, by path with `__` between its parts."""
    plan = copy.deepcopy(PLAN)
    for path, value in values.items():
        *outer, last = path.split("__")
        place = plan
        for part in outer:
            place = place["layers"][0] if part == "layers" else place[part]
        place[last] = value
    return json.dumps(plan).encode()


PATHS = list(leaves(PLAN))
PICTURES = "--data (and --limit) of"


def test_every_field_of_a_plan_has_a_name_for_people() -> None:
    fields = {".".join(part for part in path if part != 0) for path in PATHS}
    assert fields == FIELDS.keys() - {"device"}


@pytest.mark.parametrize("path", PATHS)
def test_every_field_is_told_by_its_name_alone(path: tuple[Any, ...]) -> None:
    name = "__".join(part for part in path if part != 0)
    value: Any = PLAN
    for part in path:
        value = value[part]
    many = isinstance(value, list)
    new = [*value, OTHER[type(value[0])](value[0])] if many else OTHER[type(value)](value)
    [said] = differences(changed(), changed(**{name: new}))
    assert FIELDS[name.replace("__", ".")].name in said
    assert len(said) < 100


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"threads": 0}, ["--device cuda (not cpu)"]),
        ({"model__input_size": [32, 48]}, ["--img-size 32x48 (not 32)"]),
        ({"base": "000001-00"}, ["--append to 000001-00 (not without it)"]),
        # Digests, and transforms that print themselves at length.
        ({"model__weights_sha256": "1" * 64}, ["another --checkpoint (or weights of the hub)"]),
        ({"model__transform": ["x" * 99]}, ["another transform of the pictures"]),
        # What follows from another field, and what is cut to the number of rows.
        ({"model__name": "vit", "layers__channels": 9}, ["--model vit (not test_vit)"]),
        ({"rows": 5, "unit_rows": 5, "layers__top_k": 5}, [f"{PICTURES} 5 pictures (not 60 pict"]),
        ({"rows": 1, "unit_rows": 1, "layers__top_k": 1}, [f"{PICTURES} 1 picture (not 60 pict"]),
        ({"rows": 70, "unit_rows": 8, "rows_sha256": "1"}, [PICTURES, "--unit-rows 8 (not 20)"]),
        # Fields of another version.
        ({"colour": "grey"}, ["another colour"]),
    ],
)
def test_differences_are_told_by_option(other: dict[str, Any], said: list[str]) -> None:
    told = differences(changed(), changed(**other))
    assert len(told) == len(said)
    for phrase, beginning in zip(told, said, strict=True):
        assert phrase.startswith(beginning)


def test_equal_plans_and_plans_of_other_versions() -> None:
    assert differences(changed(), changed()) == []
    assert differences(changed(), b"{}")
