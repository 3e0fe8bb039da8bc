"""The running top-K of every channel of a layer, with the patch maps of the images in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer.pooling import to_half

ROW_BITS = 40
"""Bits of a ranking key that hold the row: a trillion images."""
_LAST_ROW = (1 << ROW_BITS) - 1
_NONE = -1

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
    keys = (order << ROW_BITS) | (_LAST_ROW - rows)
    return keys.masked_fill(scores.isnan(), _NONE)


class RunningTop:
    """The K best images of each of C channels seen so far, for one layer and pooling.

    Slots are unordered: an entrant takes the slot of the image it drives out, so that maps are
    written once and never moved.
    """

    def __init__(self, channels: int, k: int, cells: int, device: str) -> None:
        self._keys = torch.full((channels, k), _NONE, dtype=torch.int64, device=device)
        self._maps = torch.empty((channels, k, cells), dtype=torch.float16, device=device)
        self._bar = self._keys[:, 0].clone()

    def update(self, scores: torch.Tensor, rows: torch.Tensor, patches: torch.Tensor) -> None:
        """Take in a batch: scores (B, C) float16, rows (B,) int64, patches (B, H * W, C)."""
        keys = ranking_keys(scores.T.contiguous(), rows)  # [C, B]
        # Most channels of most batches change nothing: only those with an entrant go on.
        channels = (keys > self._bar[:, None]).any(1).nonzero()[:, 0]
        if not len(channels):
            return
        k = self._keys.shape[1]
        merged = torch.cat([self._keys[channels], keys[channels]], 1)  # [M, K + B]
        keep = torch.zeros_like(merged, dtype=torch.bool)
        keep.scatter_(1, merged.topk(k, sorted=False).indices, True)
        # As many leave a channel as enter it, and both lists are in channel order: they pair up.
        leave = (~keep[:, :k]).nonzero()
        enter = keep[:, k:].nonzero()
        channel, slot, image = channels[enter[:, 0]], leave[:, 1], enter[:, 1]
        self._keys[channel, slot] = keys[channel, image]
        self._maps[channel, slot] = to_half(patches[image, :, channel])
        self._bar[channels] = self._keys[channels].amin(1)

    def candidates(self, start: int, stop: int) -> Candidates:
        """What the top-K holds of rows `start` to `stop`, on the host."""
        best, slot = self._keys.sort(1, descending=True)
        row = _LAST_ROW - (best & _LAST_ROW)
        mine = ((best != _NONE) & (row >= start) & (row < stop)).nonzero()
        channel, rank = mine[:, 0], mine[:, 1]
        keys = np.empty(len(mine), KEY)
        keys["channel"] = channel.cpu().numpy()
        keys["row"] = row[channel, rank].cpu().numpy()
        keys["score"] = _scores(best[channel, rank]).cpu().numpy()
        return Candidates(keys, self._maps[channel, slot[channel, rank]].cpu().numpy())

    def restore(self, keys: npt.NDArray[np.void]) -> None:
        """Take in finished candidates (M,) of dtype `KEY`, so that only better ones are kept.

        Their maps are on the disk already and are not needed again.
        """
        rows = torch.from_numpy(keys["row"].astype(np.int64))
        scores = torch.from_numpy(keys["score"].astype(np.float16))
        order = ranking_keys(scores, rows).to(self._keys.device)
        channel = torch.from_numpy(keys["channel"].astype(np.int64)).to(order.device)
        place = torch.argsort(channel, stable=True)
        counts = torch.bincount(channel, minlength=len(self._keys))
        within = (
            torch.arange(len(order), device=order.device)
            - (counts.cumsum(0) - counts)[channel[place]]
        )
        batch = torch.full((len(counts), int(counts.max())), _NONE, device=order.device)
        batch[channel[place], within] = order[place]
        merged = torch.cat([self._keys, batch], 1)
        self._keys = merged.topk(self._keys.shape[1]).values.contiguous()
        self._bar = self._keys.amin(1)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    order = ((keys >> ROW_BITS) - (1 << 15)).short()
    return (order ^ ((order >> 15) & 0x7FFF)).view(torch.float16)
