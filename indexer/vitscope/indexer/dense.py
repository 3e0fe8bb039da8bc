"""Retention `all`: every activation of a layer, written a shard of images at a time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer.pooling import HALF_MAX
from vitscope.store.arrays import Array
from vitscope.store.manifest import LayerRecord


class DenseWriter:
    """Gathers images until a shard of them is full, so that no shard is written twice.

    A thread writes one shard while the next is gathered: two are in memory. Images stay as they
    come, tokens before channels; what is written is a view of them with these axes exchanged.
    """

    def __init__(self, layer: LayerRecord, array: Array, shard_rows: int) -> None:
        self._array = array
        shape = (shard_rows, layer.tokens.tokens, layer.channels)
        self._buffer, self._other = (torch.empty(shape, dtype=torch.float16) for _ in range(2))
        self._start = self._filled = 0
        self._thread = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    def close(self) -> None:
        """Stop after what is being written."""
        self._thread.shutdown(cancel_futures=True)

    def start_unit(self, row: int) -> None:
        """The next image is `row`, the first of a shard."""
        self._start, self._filled = row, 0

    def add(self, activation: torch.Tensor, valid: torch.Tensor) -> None:
        """Take in activations (B, T, C) of the next images; NaN where `valid` (B,) is False.

        All of them or, where memory ends, none.
        """
        bad = ~valid.cpu().numpy()
        activation = activation.contiguous()
        if activation.device.type != "cpu":
            activation = activation.half().cpu()
        while len(activation):
            room = self._room(len(activation))
            # Converted without a copy in between; what overflows is infinite at first. The same
            # values as `to_half` gives.
            room.copy_(activation[: len(room)]).clamp_(-HALF_MAX, HALF_MAX)
            room.numpy()[bad[: len(room)]] = np.nan
            activation, bad = activation[len(room) :], bad[len(room) :]
            self._took(len(room))

    def add_stored(self, values: npt.NDArray[np.float16]) -> None:
        """Take in activations (B, C, T) of the next images as they are stored."""
        while len(values):
            room = self._room(len(values)).numpy()
            room[...] = values[: len(room)].transpose(0, 2, 1)
            values = values[len(room) :]
            self._took(len(room))

    def hand_over(self) -> Future[None] | None:
        """Let the thread write what was gathered, once it has written what was before.

        What is given is done when all that was taken in is on the disk, and raises what the thread
        could not write.
        """
        if self._filled:
            self._wait()
            values = self._buffer[: self._filled].numpy().transpose(0, 2, 1)  # [B, C, T]
            rows = slice(self._start, self._start + self._filled)
            self._written = self._thread.submit(self._array.write, values, rows)
            self._buffer, self._other = self._other, self._buffer
            self._start, self._filled = rows.stop, 0
        return self._written

    def _room(self, images: int) -> torch.Tensor:
        return self._buffer[self._filled :][:images]

    def _took(self, images: int) -> None:
        self._filled += images
        if self._filled == len(self._buffer):
            self.hand_over()

    def _wait(self) -> None:
        if self._written:
            # Raises what the thread could not write.
            self._written.result()
