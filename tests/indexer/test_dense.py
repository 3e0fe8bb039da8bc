"""Writing all activations of a layer, in batches that know nothing of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numpy.testing import assert_array_equal

from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.pooling import to_half
from vitscope.store import layout
from vitscope.store.arrays import Array, create_array, open_array
from vitscope.store.errors import NotWrittenError
from vitscope.store.manifest import LayerRecord, TokenLayout

LAYER = LayerRecord(
    "blocks.0.mlp", 0, 100, TokenLayout.even(("cls",), 3, 5, (30, 50)), ("mean",), 9, True, False
)
EXTREMES = (65504.0, 65519.9, 65520.0, 1e9, -65520.0, -1e9, torch.inf, -torch.inf)
ROWS, UNIT = 150, 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_read_is_what_was_added(tmp_path: Path, dtype: torch.dtype) -> None:
    activations = torch.randn(ROWS, 16, 100)
    activations[0, 0, : len(EXTREMES)] = torch.tensor(EXTREMES)
    activations = activations.to(dtype)
    valid = torch.arange(ROWS) % 7 != 3
    truth = to_half(activations).masked_fill(~valid[:, None, None], torch.nan)
    stored = truth.transpose(1, 2).numpy()
    spec = layout.activations_spec(LAYER, ROWS, UNIT)
    writer = DenseWriter(LAYER, create_array(tmp_path / "a", spec), spec.shard[0])
    for start in range(0, ROWS, UNIT):
        stop = min(start + UNIT, ROWS)
        writer.start_unit(start)
        writer.add_stored(stored[start : start + 5])
        for first in range(start + 5, stop, 12):
            mine = slice(first, min(first + 12, stop))
            # Not every model gives its channels last in memory.
            strided = activations[mine].transpose(1, 2).contiguous().transpose(1, 2)
            writer.add(strided, valid[mine])
        flush(writer)
    assert_array_equal(open_array(tmp_path / "a").read(), stored)
    array = zarr.open(str(tmp_path / "a"), mode="r")
    assert isinstance(array, zarr.Array)
    assert_array_equal(np.asarray(array[:]), stored)


def test_a_shard_that_cannot_be_written_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise NotWrittenError("No.")

    spec = layout.activations_spec(LAYER, ROWS, UNIT)
    writer = DenseWriter(LAYER, create_array(tmp_path / "a", spec), spec.shard[0])
    monkeypatch.setattr(Array, "write", refuse)
    writer.start_unit(0)
    writer.add(torch.zeros(70, 16, 100), torch.ones(70, dtype=torch.bool))
    with pytest.raises(NotWrittenError):
        flush(writer)


def flush(writer: DenseWriter) -> None:
    """Wait until all that was taken in is on the disk."""
    written = writer.hand_over()
    assert written
    written.result()
