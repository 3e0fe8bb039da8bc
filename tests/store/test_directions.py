"""Directions beside an index: no part of it, and nothing that stands in its way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import build

from vitscope.store.directions import Directions, NamedDirections, UnusableDirectionError
from vitscope.store.errors import NotKeptError
from vitscope.store.generation import open_generation
from vitscope.store.prune import prune
from vitscope.store.verify import verify


def test_they_are_no_part_of_the_index(tmp_path: Path) -> None:
    made = build(tmp_path / "index", rows=20)
    generation = open_generation(made.path)
    layer = generation.layer("blocks.0.mlp")
    assert Directions(generation).named(layer) == []
    with pytest.raises(NotKeptError, match="none lies beside the index"):
        Directions(generation).read(layer, "probe")
    folder = made.path / "directions" / layer.name
    folder.mkdir(parents=True)
    weights = np.arange(22, dtype=np.float32).reshape(2, 11)
    np.save(folder / "probe.npy", weights)
    # Seen at once, without another generation.
    assert Directions(generation).named(layer) == [NamedDirections(layer.name, "probe", 2)]
    assert Directions(generation).read(layer, "probe/1").tolist() == weights[1].tolist()
    assert Directions(generation).named(generation.layer("blocks.1.mlp")) == []
    assert verify(made.path, deep=True).problems == ()
    assert prune(made.path).removed == ()
    assert (folder / "probe.npy").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04garbage",
        b"\x93NUMPY\x01\x00\x08\x00[(((((\n ",
        b"\x93NUMPY\x01\x00\x08\x00{\x00\x00\x00\x00\x00\x00\n",
        b"\x93NUMPY\x02\x00" + (9_000).to_bytes(4, "little") + b"(" * 9_000,
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff",
    ],
)
def test_a_file_that_numpy_cannot_read(tmp_path: Path, data: bytes) -> None:
    made = build(tmp_path / "index", rows=20)
    generation = open_generation(made.path)
    layer = generation.layer("blocks.0.mlp")
    folder = made.path / "directions" / layer.name
    folder.mkdir(parents=True)
    (folder / "bad.npy").write_bytes(data)
    with pytest.raises(UnusableDirectionError, match="'bad' is not readable as a NumPy array"):
        Directions(generation).read(layer, "bad")
    assert Directions(generation).named(layer) == []
