"""All that is kept of a layer: pooled scores of every image and the top images with their maps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from vitscope.indexer.pooling import pool, round_to_half, saturated, to_half
from vitscope.indexer.topk import Candidates, RunningTop
from vitscope.store.manifest import LayerRecord, Pooling


class LayerReduction:
    """Reduces the activations of one layer, batch by batch, unit by unit."""

    def __init__(self, layer: LayerRecord, device: str) -> None:
        tokens = layer.tokens
        self.layer = layer
        self._tops: Mapping[Pooling, RunningTop] = {
            pooling: RunningTop(layer.channels, layer.top_k, tokens.height * tokens.width, device)
            for pooling in layer.poolings
        }
        self._scores: dict[Pooling, npt.NDArray[np.float16]] = {}
        self._prefix = np.empty((0, 0, layer.channels), np.float16)
        self.saturated = 0
        """Scores of the current unit that lie beyond the range of float16."""

    def start_unit(self, rows: int) -> None:
        """Make room for the scores of `rows` images; invalid ones stay NaN."""
        shape = (self.layer.channels, rows)
        self._scores = {
            pooling: np.full(shape, np.nan, np.float16) for pooling in self.layer.poolings
        }
        kept = len(self.layer.tokens.prefix) if self.layer.dense_prefix else 0
        self._prefix = np.full((rows, kept, self.layer.channels), np.nan, np.float16)
        self.saturated = 0

    def carry(
        self,
        scores: Mapping[Pooling, npt.NDArray[np.float16]],
        prefix: npt.NDArray[np.float16] | None,
    ) -> None:
        """Take over scores (C, M) and prefix activations (M, P, C) of the first M images."""
        for pooling, some in scores.items():
            self._scores[pooling][:, : some.shape[1]] = some
        if prefix is not None:
            self._prefix[: len(prefix)] = prefix

    def update(
        self, activation: torch.Tensor, rows: torch.Tensor, valid: torch.Tensor, offset: int
    ) -> None:
        """Take in activations (B, T, C) of images `rows` (B,), `offset` into the unit.

        Where `valid` (B,) is False there is no image; what the model made of the blank in its
        place is left out.
        """
        tokens = self.layer.tokens
        patches = activation[:, len(tokens.prefix) :]
        blank = ~valid[:, None]
        for pooling, top in self._tops.items():
            wide = pool(activation, tokens, pooling).masked_fill(blank, torch.nan)
            self.saturated += saturated(wide)
            scores = round_to_half(wide)
            top.update(scores, rows, patches)
            self._scores[pooling][:, offset : offset + len(rows)] = scores.T.cpu().numpy()
        if self.layer.dense_prefix:
            halves = to_half(activation[:, : len(tokens.prefix)])
            halves = halves.masked_fill(blank[:, :, None], torch.nan)
            self._prefix[offset : offset + len(rows)] = halves.cpu().numpy()

    def scores(self, pooling: Pooling) -> npt.NDArray[np.float16]:
        """Scores (C, U) of the current unit."""
        return self._scores[pooling]

    def prefix(self) -> npt.NDArray[np.float16]:
        """Activations (U, P, C) of the prefix tokens in the current unit, where they are kept."""
        return self._prefix

    def candidates(self, pooling: Pooling, start: int, stop: int) -> Candidates:
        """Images of rows `start` to `stop` that may be among the best of all."""
        return self._tops[pooling].candidates(start, stop)

    def restore(self, pooling: Pooling, keys: npt.NDArray[np.void]) -> None:
        """Take in the candidates of an earlier unit, whose maps are on the disk."""
        self._tops[pooling].restore(keys)
