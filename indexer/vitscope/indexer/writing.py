"""Writing beside the forward: one thread does, in order, what the forward's thread hands over."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from vitscope.indexer.stages import Stages

_BYTES_WAITING = 256 << 20


def give_way() -> None:
    """Let this thread have what the model leaves of the processor, where threads can be told so."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Writing:
    """Does pieces of work in the order they come; once one has failed, no other is begun.

    So a receipt handed over after all it speaks of is only written where that is.
    """

    def __init__(self, stages: Stages, bytes_waiting: int = _BYTES_WAITING) -> None:
        self._thread = ThreadPoolExecutor(1, "writing", give_way)
        self._stages = stages
        self._room = bytes_waiting
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._failed = False

    def hand_over(self, work: Callable[[], None], size: int) -> None:
        """Have `work`, which holds `size` bytes, done; waits while too many bytes are held.

        Raises what an earlier piece of work raised.
        """
        while self._waiting and (
            self._waiting[0][0].done() or sum(held for _, held in self._waiting) + size > self._room
        ):
            self._waiting.popleft()[0].result()
        self._waiting.append((self._thread.submit(self._do, work), size))

    def finish(self) -> None:
        """Wait until all is done; raises what a piece of work raised."""
        while self._waiting:
            self._waiting.popleft()[0].result()

    def close(self) -> None:
        """Stop after the piece of work that is being done."""
        self._thread.shutdown(cancel_futures=True)

    def _do(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            with self._stages.at("write"):
                work()
        except BaseException:
            self._failed = True
            raise
