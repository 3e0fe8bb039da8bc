"""Writing beside the forward: a few threads do what the forward's thread hands over."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from vitscope.indexer.stages import Stages

BYTES_WAITING = 256 << 20
_MOST_THREADS = 4
_NICENESS = 5


class Writing:
    """Begins pieces of work in the order they come; once one has failed, no other is begun.

    What was not begun fails as that one did. So what waits for those before it, and then writes a
    receipt, does so only where they are done.
    """

    def __init__(
        self, stages: Stages, bytes_waiting: int = BYTES_WAITING, threads: int | None = None
    ) -> None:
        """Without a number of threads, one for every four of the processor's."""
        usual = min(_MOST_THREADS, (os.cpu_count() or 1) // 4)
        self._threads = ThreadPoolExecutor(threads or max(1, usual), "writing", _give_way)
        self._stages = stages
        self._room = bytes_waiting
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._failure: BaseException | None = None

    def hand_over(self, work: Callable[[], None], size: int) -> Future[None]:
        """Have `work`, which holds `size` bytes, done; waits while too many bytes are held.

        Raises what an earlier piece of work raised.
        """
        while self._waiting and (
            self._waiting[0][0].done() or sum(held for _, held in self._waiting) + size > self._room
        ):
            self._waiting.popleft()[0].result()
        done = self._threads.submit(self._do, work)
        self._waiting.append((done, size))
        return done

    def check(self) -> None:
        """Raise what a piece of work raised, if one has."""
        if self._failure is not None:
            self.finish()

    def finish(self) -> None:
        """Wait until all is done; raises what a piece of work raised."""
        while self._waiting:
            self._waiting.popleft()[0].result()

    def close(self) -> None:
        """Stop after the pieces of work that are being done."""
        self._threads.shutdown(cancel_futures=True)

    def _do(self, work: Callable[[], None]) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            with self._stages.at("write"):
                work()
        except BaseException as failure:
            self._failure = failure
            raise


def _give_way() -> None:
    """Let the model go before this thread, where threads can be told so."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
