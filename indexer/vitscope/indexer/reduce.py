"""All that is kept of a layer: pooled scores of every image and the top images with their maps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer import host
from vitscope.indexer.allocation import halves
from vitscope.indexer.memory import enough_memory
from vitscope.indexer.pooling import pool, round_to_half, saturated, to_half
from vitscope.indexer.topk import Candidates, RunningTop, Taken
from vitscope.store.manifest import LayerRecord, Pooling

SPARE_BYTES = 1 << 30
_SHARE = 256
"""Channels that a thread takes at a time at most; compiled code does not take more."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """What a unit leaves of a layer."""

    layer: LayerRecord
    scores: npt.NDArray[np.float16]
    """(P, C, U)."""
    prefix: npt.NDArray[np.float16]
    """Activations (U, P, C) of the prefix tokens; empty where they are not kept."""
    top: Taken
    nbytes: int
    """Memory that it takes besides that of the reduction."""
    release: Callable[[], None]
    """To be called when the maps of `top` are not needed any more."""

    @property
    def candidates(self) -> Iterator[Candidates]:
        """By pooling."""
        return map(self.top.candidates, range(len(self.layer.poolings)))


class Room:
    """How much memory may be taken for a second copy of maps, by all layers together."""

    def __init__(self, most: int = SPARE_BYTES) -> None:
        self._left = most

    def take(self, size: int) -> bool:
        """Whether there were `size` bytes left; they are taken then."""
        if size > self._left:
            return False
        self._left -= size
        return True


class LayerReduction:
    """Reduces the activations of one layer, batch by batch, unit by unit.

    On the processor by compiled code (`vitscope.indexer.host`), elsewhere, or where `compiled` is
    False, by PyTorch; to the same bits.
    """

    def __init__(
        self,
        layer: LayerRecord,
        device: str,
        *,
        helpers: ThreadPoolExecutor | None = None,
        threads: int = 1,
        compiled: bool | None = None,
        room: Room | None = None,
    ) -> None:
        """`helpers` are threads that help this one, so that `threads` share a reduction; elsewhere
        than on the processor there are none.

        In `room` the maps of the next unit lie, while those of the last are being written.
        """
        tokens = layer.tokens
        on_cpu = torch.device(device).type == "cpu"
        self.layer = layer
        self._compiled = on_cpu if compiled is None else compiled
        self._helpers = helpers
        self._threads = threads
        self._parts = _parts(layer.channels, max(1, threads) if helpers else 1)
        cells = tokens.height * tokens.width
        self._top = RunningTop(len(layer.poolings), layer.channels, layer.top_k, cells, device)
        # A device's memory is dear; what is copied from there has to be on the host anyway.
        self._room = room if on_cpu and room else Room(0)
        self._spare: deque[torch.Tensor] = deque()
        self._sources = np.array([_source(layer, pooling) for pooling in layer.poolings], np.int64)
        self._device = device
        self.start_unit(0)

    def start_unit(self, rows: int) -> None:
        """Make room for the scores of `rows` images; invalid ones stay NaN."""
        layer = self.layer
        kept = len(layer.tokens.prefix) if layer.dense_prefix else 0
        # On the device, whole units: to fetch what a batch gave would keep it waiting.
        self._scores = self._blank(len(layer.poolings), layer.channels, rows)
        self._prefix = self._blank(rows, kept, layer.channels)
        self._saturated = torch.zeros((), dtype=torch.int64, device=self._device)

    def _blank(self, *shape: int) -> torch.Tensor:
        return torch.full(shape, torch.nan, dtype=torch.float16, device=self._device)

    @property
    def saturated(self) -> int:
        """Scores of the current unit that lie beyond the range of float16."""
        return int(self._saturated)

    def carry(
        self,
        scores: Mapping[Pooling, npt.NDArray[np.float16]],
        prefix: npt.NDArray[np.float16] | None,
    ) -> None:
        """Take over scores (C, M) and prefix activations (M, P, C) of the first M images."""
        for pooling, some in scores.items():
            number = self.layer.poolings.index(pooling)
            self._scores[number, :, : some.shape[1]] = torch.from_numpy(some)
        if prefix is not None:
            self._prefix[: len(prefix)] = torch.from_numpy(prefix)

    def update(self, activation: torch.Tensor, row: int, valid: torch.Tensor, offset: int) -> None:
        """Take in activations (B, T, C) of images `row` and following, `offset` into the unit.

        Where `valid` (B,) is False there is no image; what the model made of the blank in its
        place is left out. Where memory ends, the same images can be taken in anew, also in parts.
        """
        # All that takes memory comes before the top-K: what has entered must not enter again.
        if self.layer.dense_prefix:
            halves = to_half(activation[:, : len(self.layer.tokens.prefix)])
            halves = halves.masked_fill(~valid[:, None, None], torch.nan)
            self._prefix[offset : offset + len(activation)] = halves
        if self._compiled:
            self._update_compiled(activation, row, valid, offset)
        else:
            self._update(activation, row, valid, offset)

    def _update(self, activation: torch.Tensor, row: int, valid: torch.Tensor, offset: int) -> None:
        tokens = self.layer.tokens
        wide = torch.stack([pool(activation, tokens, each) for each in self.layer.poolings])
        wide = wide.masked_fill(~valid[:, None], torch.nan)  # [P, B, C]
        rounded = round_to_half(wide)
        rows = torch.arange(row, row + len(activation), device=activation.device)
        beyond = self._saturated + saturated(wide)
        self._scores[:, :, offset : offset + len(activation)] = rounded.transpose(1, 2)
        self._top.update(rounded, rows, activation[:, len(tokens.prefix) :])
        self._saturated = beyond

    def _update_compiled(
        self, activation: torch.Tensor, row: int, valid: torch.Tensor, offset: int
    ) -> None:
        values = activation.float().contiguous().numpy()
        keys, bars = self._top.keys.numpy(), self._top.bars.numpy()
        maps = self._top.maps.view(torch.int16).numpy()

        def reduce(start: int, stop: int) -> int:
            return host.reduce_channels(
                values,
                len(self.layer.tokens.prefix),
                self._sources,
                start,
                stop,
                row,
                valid.numpy(),
                self._scores.view(torch.int16).numpy(),
                offset,
                keys,
                bars,
                maps,
            )

        # Channels have nothing to do with each other: the bits do not depend on who takes which.
        # Whoever is free takes the next part: a thread whose core is busy keeps nobody waiting.
        parts = deque(self._parts)

        def work() -> int:
            return sum(reduce(*part) for part in _left(parts))

        helping = min(self._threads, len(parts)) - 1 if self._helpers else 0
        others = [self._helpers.submit(work) for _ in range(helping) if self._helpers]
        with enough_memory():
            # Where it ends here, some channels have taken the batch in, and it cannot be again.
            mine = work()
            # Helpers that have not begun are not needed any more.
            self._saturated += mine + sum(each.result() for each in others if not each.cancel())

    def take(self, rows: range) -> Reduced:
        """What the unit leaves; candidates are images of `rows` that may be among the best of all.

        Nothing of it is touched again, until it is released.
        """
        given, spare = self._top.maps, self._spare_maps()
        top = self._top.take(rows, spare)

        def release() -> None:
            if spare is not None:
                self._spare.append(given)

        scores, prefix = self._scores.cpu().numpy(), self._prefix.cpu().numpy()
        arrays = [scores, prefix, top.keys, *([top.maps] if spare is None else ())]
        nbytes = sum(array.nbytes for array in arrays)
        return Reduced(self.layer, scores, prefix, top, nbytes, release)

    def _spare_maps(self) -> torch.Tensor | None:
        if self._spare:
            return self._spare.popleft()
        maps = self._top.maps
        return halves(maps.shape, maps.device) if self._room.take(maps.nbytes) else None

    def restore(self, pooling: Pooling, keys: npt.NDArray[np.void]) -> None:
        """Take in the candidates of an earlier unit, whose maps are on the disk."""
        self._top.restore(self.layer.poolings.index(pooling), keys)


def _source(layer: LayerRecord, pooling: Pooling) -> int:
    if pooling == "cls":
        return layer.tokens.prefix.index("cls")
    return host.MEAN if pooling == "mean" else host.MAX


def _parts(channels: int, threads: int) -> list[tuple[int, int]]:
    """Ranges of channels, as many for each thread, of whole cache lines of float32."""
    count = min(-(-channels // (_SHARE * threads)) * threads, -(-channels // 16))
    ends = [channels * number // count // 16 * 16 for number in range(count)] + [channels]
    return list(pairwise(ends))


def _left(parts: deque[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What nobody has taken yet."""
    while True:
        try:
            part = parts.popleft()
        except IndexError:
            return
        yield part
