"""How far a long piece of work is, on standard error."""

import sys
import time

_LIVE_SECONDS = 0.5
_PLAIN_SECONDS = 10.0


class Progress:
    """A line with a count: redrawn on a terminal, printed now and then elsewhere.

    Work that ends sooner than the first line is due prints none.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._live = sys.stderr.isatty()
        self._printed = time.monotonic()
        self._shown = False

    def advance(self, count: int) -> None:
        """Count `count` more as done."""
        self._done += count
        now = time.monotonic()
        if now - self._printed >= (_LIVE_SECONDS if self._live else _PLAIN_SECONDS):
            self._printed, self._shown = now, True
            self._show("" if self._live else "\n")

    def finish(self) -> None:
        """End the line on a terminal."""
        if self._live and self._shown:
            self._show("\n")

    def _show(self, after: str) -> None:
        share = f"{self._done:,}/{self._total:,} ({self._done / max(1, self._total):.0%})"
        before = "\r" if self._live else ""
        print(f"{before}{self._what}: {share}", end=after, file=sys.stderr, flush=True)
