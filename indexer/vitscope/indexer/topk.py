"""The running top-K of every channel of a layer, with the patch maps of the images in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer.pooling import to_half

# Compiled code (`host`) has these three frozen in: change that file with them.
ROW_BITS = 40
"""Bits of a ranking key that hold the row: a trillion images."""
LAST_ROW = (1 << ROW_BITS) - 1
NONE = -1
"""The key of what is in no ranking."""

_MAPS_AT_ONCE = 1 << 16
"""Maps copied together: at the beginning every image enters everywhere."""

KEY = np.dtype([("channel", "<i4"), ("row", "<i8"), ("score", "<f2")])


@dataclass(frozen=True, slots=True)
class Candidates:
    """Images of some rows that may be among a channel's best, sorted by channel and rank."""

    keys: npt.NDArray[np.void]
    """(M,) of dtype `KEY`."""
    maps: npt.NDArray[np.float16]
    """(M, H * W)."""


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
        self.maps = torch.empty((*self.keys.shape, cells), dtype=torch.float16, device=device)
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
        merged = torch.cat([mine[changing], keys[changing]], 1)  # [M, K + B]
        keep = torch.zeros_like(merged, dtype=torch.bool)
        keep.scatter_(1, merged.topk(k, sorted=False).indices, True)
        # As many leave a channel as enter it, and both lists are in channel order: they pair up.
        leave = (~keep[:, :k]).nonzero()
        enter = keep[:, k:].nonzero()
        place, slot, image = changing[enter[:, 0]], leave[:, 1], enter[:, 1]
        mine[place, slot] = keys[place, image]
        for start in range(0, len(place), _MAPS_AT_ONCE):
            some = slice(start, start + _MAPS_AT_ONCE)
            mapped = patches[image[some], :, place[some] % channels]
            maps[place[some], slot[some]] = to_half(mapped)
        bars[changing] = mine[changing].amin(1)

    def candidates(self, pooling: int, rows: range) -> Candidates:
        """What the top-K of the pooling of that number holds of `rows`."""
        best, slot = self.keys[pooling].sort(1, descending=True)
        row = LAST_ROW - (best & LAST_ROW)
        mine = ((best != NONE) & (row >= rows.start) & (row < rows.stop)).nonzero()
        channel, rank = mine[:, 0], mine[:, 1]
        keys = np.empty(len(mine), KEY)
        keys["channel"] = channel.cpu().numpy()
        keys["row"] = row[channel, rank].cpu().numpy()
        keys["score"] = _scores(best[channel, rank]).cpu().numpy()
        places = channel * self.keys.shape[2] + slot[channel, rank]
        # Whole maps copied at once: general indexing goes element by element.
        maps = self.maps[pooling].flatten(0, 1).index_select(0, places)
        return Candidates(keys, maps.cpu().numpy())

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


def _scores(keys: torch.Tensor) -> torch.Tensor:
    order = ((keys >> ROW_BITS) - (1 << 15)).short()
    return (order ^ ((order >> 15) & 0x7FFF)).view(torch.float16)
