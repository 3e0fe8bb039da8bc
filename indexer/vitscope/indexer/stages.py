"""How busy each stage of a run was: what to look at where it is slower than the bare forward."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

Stage: TypeAlias = Literal["decode", "forward", "reduce", "write", "starved", "held"]
"""Decoding in its threads, the model, the reduction in the middle of it, writing in its thread, and
the model's thread waiting for pictures or for the disk."""


class Stages:
    """Seconds of a run by stage, of all threads and processes that worked at it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = dict.fromkeys(("total", *get_args(Stage)), 0.0)
        """By stage, and in `total` from a worker's first picture to its last receipt."""

    @contextmanager
    def at(self, stage: Stage) -> Iterator[None]:
        """Count the time in the block; any thread may."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({stage: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count seconds that were measured elsewhere."""
        with self._lock:
            for stage, some in seconds.items():
                self.seconds[stage] += some

    def shares(self) -> dict[str, float]:
        """Of the time of each worker; decoding counts its threads, so that it may pass 1."""
        total = self.seconds["total"] or 1.0
        return {stage: self.seconds[stage] / total for stage in get_args(Stage)}

    def __str__(self) -> str:
        """One line."""
        share = self.shares()
        return (
            f"Busy: decoding {share['decode']:.2f} threads, model {share['forward']:.0%}, "
            f"reduction {share['reduce']:.0%}, writing {share['write']:.0%}; the model waited for "
            f"pictures {share['starved']:.0%}, for the disk {share['held']:.0%}."
        )
