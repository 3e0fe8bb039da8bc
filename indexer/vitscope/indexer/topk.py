"""The running top-K of every channel of a layer, with the patch maps of the images in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer.allocation import halves
from vitscope.indexer.pooling import to_half

# Compiled code (`host`) has these three frozen in: change that file with them.
ROW_BITS = 40
"""Bits of a ranking key that hold the row: a trillion images."""
LAST_ROW = (1 << ROW_BITS) - 1
NONE = -1
"""The key of what is in no ranking."""

_BLOCK = 1 << 12
"""Maps gathered together: 1.6 MB of a 14 x 14 grid, which the processor's cache holds."""
_MAPS_AT_ONCE = 1 << 16
"""Maps copied together: at the beginning every image enters everywhere."""

KEY = np.dtype([("channel", "<i4"), ("row", "<i8"), ("score", "<f2")])


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images of some rows that may be among a channel's best, sorted by channel and rank."""

    keys: npt.NDArray[np.void]
    """(M,) of dtype `KEY`."""
    places: npt.NDArray[np.int64]
    """(M,): where the map of each is."""
    kept: npt.NDArray[np.float16]
    """Maps (…, H * W), in no order, with others among them."""

    @property
    def maps(self) -> npt.NDArray[np.float16]:
        """All maps (M, H * W)."""
        return self.kept[self.places]

    def blocks(self) -> Iterator[npt.NDArray[np.float16]]:
        """The same some at a time, each valid until the next: a copy of all would be large."""
        maps = np.empty((_BLOCK, self.kept.shape[1]), np.float16)
        for start in range(0, len(self.places), _BLOCK):
            some = self.places[start : start + _BLOCK]
            # All places exist: without this, NumPy copies once more to be able to take back.
            yield np.take(self.kept, some, 0, maps[: len(some)], mode="clip")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a running top-K was at the end of a unit; unsorted, so that this costs little."""

    keys: npt.NDArray[np.int64]
    """(P, C, K)."""
    places: npt.NDArray[np.int64]
    """(P, C, K): where the map of each is."""
    maps: npt.NDArray[np.float16]
    """(…, H * W)."""
    rows: range

    def candidates(self, pooling: int) -> Candidates:
        """What the top-K of the pooling of that number holds of `rows`."""
        order = np.argsort(self.keys[pooling], 1)[:, ::-1]  # [C, K], best first
        keys, places = (
            np.take_along_axis(each[pooling], order, 1) for each in (self.keys, self.places)
        )
        mine = _of(self.rows, keys)
        best = keys[mine]
        found = np.empty(len(best), KEY)
        found["channel"] = mine.nonzero()[0]
        found["row"] = LAST_ROW - (best & LAST_ROW)
        found["score"] = _scores(best)
        return Candidates(found, places[mine], self.maps)


def ranking_keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One int64 per score, unique, whose order is: higher score, then lower row; NaN is -1.

    `scores` (..., B) float16 without -0, `rows` (B,) int64.
    """
    bits = scores.view(torch.int16)
    order = (bits ^ ((bits >> 15) & 0x7FFF)).long() + (1 << 15)
    keys = (order << ROW_BITS) | (LAST_ROW - rows)
    return keys.masked_fill(scores.isnan(), NONE)


class RunningTop:
    """The K best images of each of C channels seen so far, for P poolings of one layer.

    Slots are unordered: an entrant takes the slot of the image it drives out, so that maps are
    written once and never moved.
    """

    def __init__(self, poolings: int, channels: int, k: int, cells: int, device: str) -> None:
        self.keys = torch.full((poolings, channels, k), NONE, dtype=torch.int64, device=device)
        """(P, C, K)."""
        self.maps = halves((*self.keys.shape, cells), device)
        """(P, C, K, H * W)."""
        self.bars = self.keys[:, :, 0].clone()
        """(P, C): the least of the keys, which an entrant has to beat."""

    def update(self, scores: torch.Tensor, rows: torch.Tensor, patches: torch.Tensor) -> None:
        """Take in a batch: scores (P, B, C) float16, rows (B,) int64, patches (B, H * W, C)."""
        _, channels, k = self.keys.shape
        mine, bars = self.keys.view(-1, k), self.bars.view(-1)  # [P * C, K], [P * C]
        maps = self.maps.view(len(mine), k, -1)
        keys = ranking_keys(scores.transpose(1, 2).contiguous(), rows).view(len(mine), -1)
        # Most channels of most batches change nothing: only those with an entrant go on.
        changing = (keys > bars[:, None]).any(1).nonzero()[:, 0]
        if not len(changing):
            return
        old, slots = mine[changing].sort(1)  # [M, K]
        new, images = keys[changing].topk(min(k, keys.shape[1]))  # [M, N]
        # The best of the batch drives out the least of those so far, the next the next.
        pairs = new > old[:, : new.shape[1]]
        kept = torch.cat([torch.maximum(new, old[:, : new.shape[1]]), old[:, new.shape[1] :]], 1)
        number, rank = pairs.nonzero(as_tuple=True)
        place, slot, image = changing[number], slots[number, rank], images[number, rank]
        entering, least = new[number, rank], kept.amin(1)
        # Maps first: where memory ends among them, the batch can be taken in anew.
        for start in range(0, len(place), _MAPS_AT_ONCE):
            some = slice(start, start + _MAPS_AT_ONCE)
            mapped = patches[image[some], :, place[some] % channels]
            maps[place[some], slot[some]] = to_half(mapped)
        mine[place, slot] = entering
        bars[changing] = least

    def take(self, rows: range, maps: torch.Tensor | None = None) -> Taken:
        """What there is of `rows`.

        With other `maps` for what comes, those there were are given away; without, they are copied.
        """
        keys = self.keys.cpu().numpy().copy()
        places = np.arange(keys.size).reshape(keys.shape)
        if maps is not None:
            given, self.maps = self.maps, maps
            return Taken(keys, places, given.flatten(0, 2).numpy(), rows)
        mine = _of(rows, keys)
        chosen = torch.from_numpy(places[mine]).to(self.maps.device)
        places[mine] = np.arange(len(chosen))
        # Whole maps copied at once: general indexing goes element by element.
        kept = self.maps.flatten(0, 2).index_select(0, chosen)
        return Taken(keys, places, kept.cpu().numpy(), rows)

    def restore(self, pooling: int, keys: npt.NDArray[np.void]) -> None:
        """Take in finished candidates (M,) of dtype `KEY`, so that only better ones are kept.

        Their maps are on the disk already and are not needed again.
        """
        mine = self.keys[pooling]
        rows = torch.from_numpy(keys["row"].astype(np.int64))
        scores = torch.from_numpy(keys["score"].astype(np.float16))
        order = ranking_keys(scores, rows).to(mine.device)
        channel = torch.from_numpy(keys["channel"].astype(np.int64)).to(mine.device)
        place = torch.argsort(channel, stable=True)
        counts = torch.bincount(channel, minlength=len(mine))
        within = (
            torch.arange(len(order), device=order.device)
            - (counts.cumsum(0) - counts)[channel[place]]
        )
        batch = torch.full((len(counts), int(counts.max())), NONE, device=order.device)
        batch[channel[place], within] = order[place]
        merged = torch.cat([mine, batch], 1)
        # In place: the compiled reduction writes to the same memory.
        mine.copy_(merged.topk(mine.shape[1]).values)
        self.bars[pooling] = mine.amin(1)


def _of(rows: range, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which keys are of images of `rows`."""
    row = LAST_ROW - (keys & LAST_ROW)
    mine: npt.NDArray[np.bool_] = (keys != NONE) & (row >= rows.start) & (row < rows.stop)
    return mine


def _scores(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    order = ((keys >> ROW_BITS) - (1 << 15)).astype(np.int16)
    return (order ^ ((order >> 15) & 0x7FFF)).view(np.float16)
