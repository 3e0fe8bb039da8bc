"""Batches of decoded pictures, made by threads ahead of the forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from vitscope.indexer.decode import Picture
from vitscope.indexer.grids import Size
from vitscope.indexer.stages import Stages

_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded pictures of consecutive rows."""

    row: int
    """The first of them."""
    pixels: torch.Tensor
    """Model input (B, 3, H, W) float32; zeros where an image is invalid, so that the others keep
    their place in the batch, and with it their bits. Valid until the next batch is taken."""
    pictures: Sequence[Picture]
    """What else is known of them; without their pixels."""


class Batches:
    """Decodes announced rows in order, a bounded number of batches ahead."""

    def __init__(
        self,
        decode: Callable[[int], Picture],
        batch_size: int,
        input_size: Size,
        *,
        threads: int,
        pinned: bool,
        stages: Stages,
    ) -> None:
        """`decode` gives the picture of a row; a GPU copies `pinned` memory beside its work."""
        self._decode = decode
        self._size = batch_size
        self._stages = stages
        # Each would have as many helpers of torch's as there are cores, for one small picture.
        self._pool = ThreadPoolExecutor(threads, "decode", torch.set_num_threads, (1,))
        # Used again and again: fresh memory is paid for page by page.
        shape = (batch_size, 3, *input_size)
        self._free = deque(torch.empty(shape, pin_memory=pinned) for _ in range(_AHEAD + 1))
        self._taken: torch.Tensor | None = None
        self._announced: deque[range] = deque()
        self._begun: deque[tuple[int, torch.Tensor, list[Future[Picture]]]] = deque()

    def announce(self, rows: range) -> None:
        """Decode `rows` too, after those announced before."""
        self._announced += [rows[at : at + self._size] for at in range(0, len(rows), self._size)]
        self._begin()

    def take(self) -> Batch:
        """The next batch; no batch has images of two announcements."""
        if self._taken is not None:
            self._free.append(self._taken)
            self._taken = None
        self._begin()
        row, self._taken, decoding = self._begun.popleft()
        with self._stages.at("starved"):
            pictures = [future.result() for future in decoding]
        return Batch(row, self._taken[: len(pictures)], pictures)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        while self._free and self._announced:
            rows, pixels = self._announced.popleft(), self._free.popleft()
            pairs = zip(rows, pixels[: len(rows)], strict=True)
            decoding = [self._pool.submit(self._fill, row, place) for row, place in pairs]
            self._begun.append((rows.start, pixels, decoding))

    def _fill(self, row: int, place: torch.Tensor) -> Picture:
        with self._stages.at("decode"):
            picture = self._decode(row)
            if picture.pixels is None:
                place.zero_()
            else:
                place.copy_(picture.pixels)
            return replace(picture, pixels=None)
