"""Retention `all`: every activation of a layer, written a shard of images at a time."""

from __future__ import annotations

import numpy as np
import torch

from vitscope.indexer.pooling import HALF_MAX
from vitscope.store.arrays import Array
from vitscope.store.manifest import LayerRecord


class DenseWriter:
    """Gathers images until a shard of them is full, so that no shard is written twice."""

    def __init__(self, layer: LayerRecord, array: Array, shard_rows: int) -> None:
        self._array = array
        shape = (shard_rows, layer.channels, layer.tokens.tokens)
        self._buffer = np.empty(shape, np.float16)
        self._start = self._filled = 0

    def start_unit(self, row: int) -> None:
        """The next image is `row`, the first of a shard."""
        self._start, self._filled = row, 0

    def add(self, activation: torch.Tensor, valid: torch.Tensor) -> None:
        """Take in activations (B, T, C) of the next images; NaN where `valid` (B,) is False."""
        halves = activation.clamp(-HALF_MAX, HALF_MAX).half()
        halves = halves.masked_fill(~valid[:, None, None], torch.nan)
        values = halves.transpose(1, 2).cpu().numpy()  # [B, C, T]
        while len(values):
            room = min(len(values), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + room] = values[:room]
            self._filled += room
            values = values[room:]
            if self._filled == len(self._buffer):
                self.flush()

    def flush(self) -> None:
        """Write what was gathered: a full shard, or the last of a unit."""
        if self._filled:
            rows = slice(self._start, self._start + self._filled)
            self._array.write(self._buffer[: self._filled], rows)
            self._start, self._filled = self._start + self._filled, 0
