"""How far a long piece of work is, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from vitscope.store.stopping import check

_LIVE_SECONDS = 0.5
_PLAIN_SECONDS = 10.0


class Progress:
    """A line with rate and time left: redrawn on a terminal, printed now and then elsewhere."""

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        unit: int = 1,
        out: TextIO | None = None,
    ) -> None:
        """`done` of `total` were there before; the line counts in multiples of `unit`."""
        self._what = what
        self._unit = unit
        self._total = total
        self._start_done = done
        self.done = done
        self._out = out or sys.stderr
        self._live = self._out.isatty()
        self._start = self._printed = time.monotonic()

    def advance(self, count: int) -> None:
        """Count `count` more as done; show it where it is time to, stop where that was asked."""
        check()
        self.done += count
        now = time.monotonic()
        if now - self._printed >= (_LIVE_SECONDS if self._live else _PLAIN_SECONDS):
            self._printed = now
            self._show(now, "\r" if self._live else "", "" if self._live else "\n")

    def skip(self, count: int) -> None:
        """Count `count` more as done before, which says nothing of the rate."""
        self._start_done += count
        self.done += count

    def finish(self) -> None:
        """Show the last state on a line of its own."""
        self._show(time.monotonic(), "\r" if self._live else "", "\n")

    def _show(self, now: float, before: str, after: str) -> None:
        rate = (self.done - self._start_done) / max(now - self._start, 1e-9)
        left = (self._total - self.done) / rate if rate else 0.0
        state = f"ETA {_clock(left)}" if self.done < self._total else _clock(now - self._start)
        line = (
            f"{self._what}: {self.done // self._unit:,}/{self._total // self._unit:,} "
            f"({self.done / max(self._total, 1):.0%}), {rate / self._unit:,.1f}/s, {state}"
        )
        self._out.write(f"{before}{line:<60}{after}" if self._live else f"{line}{after}")
        self._out.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
