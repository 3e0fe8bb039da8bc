"""What a server has done, in Prometheus' text format over HTTP (https://prometheus.io/docs).

Several workers write into files of one folder, which the parent adds up, as prometheus_client's
multiprocess mode does; that has to be decided before the library is loaded.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from vitscope.server.errors import StartError
from vitscope.server.listening import host_and_port

if TYPE_CHECKING:
    from vitscope.server.admission import Gates
    from vitscope.server.calls import Call

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_EVERY = 1.0


class Metrics:
    """Of this process."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._calls = Counter("vitscope_calls", "Calls that ended.", ("method", "code"))
        self._seconds = Histogram(
            "vitscope_call_seconds",
            "From a request to the end of its reply.",
            ("method",),
            buckets=_SECONDS,
        )
        self._in_hand = Gauge(
            "vitscope_calls_in_hand",
            "Calls that are being answered or wait for a thread.",
            ("cost",),
            multiprocess_mode="livesum",
        )
        self._refused = Gauge(
            "vitscope_calls_refused",
            "Calls that were one too many, since the start.",
            ("cost",),
            multiprocess_mode="livesum",
        )

    def ended(self, call: Call) -> None:
        """A call has ended."""
        self._calls.labels(call.method, call.code).inc()
        self._seconds.labels(call.method).observe(call.seconds)

    async def watch(self, gates: Gates) -> None:
        """Note every second how much is in hand, without end."""
        while True:
            for gate in gates:
                self._in_hand.labels(gate.cost).set(gate.in_hand)
                self._refused.labels(gate.cost).set(gate.refused)
            await asyncio.sleep(_EVERY)


def prepare_metrics(*, several: bool) -> None:
    """Decide where numbers are kept, before the library is loaded; raises `StartError`."""
    if several:
        try:
            folder = tempfile.mkdtemp(prefix="vitscope-metrics-")
        except OSError as error:
            raise StartError(
                f"--metrics of several workers takes a folder for temporary files "
                f"({error.strerror}); name one that can be written to with TMPDIR."
            ) from None
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[_FOLDER] = folder
    else:
        os.environ.pop(_FOLDER, None)


def serve_metrics(listen: str) -> None:
    """Answer HTTP at HOST:PORT from a thread; raises `StartError` where that is taken."""
    from prometheus_client import REGISTRY, CollectorRegistry, multiprocess, start_http_server

    registry = REGISTRY
    if _FOLDER in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    host, port = host_and_port("--metrics", listen)
    try:
        start_http_server(port, host.strip("[]"), registry)
    except OSError as error:
        raise StartError(
            f"Cannot listen on {listen} ({error.strerror}); choose another with --metrics "
            "HOST:PORT."
        ) from None
    except UnicodeError:
        raise StartError(
            f"Cannot listen on {listen} (the host is no name); choose another with --metrics "
            "HOST:PORT."
        ) from None


def forget(process: int) -> None:
    """Count no more what a worker that has ended had in hand."""
    from prometheus_client import multiprocess

    if _FOLDER in os.environ:
        multiprocess.mark_process_dead(process)  # type: ignore[no-untyped-call]
