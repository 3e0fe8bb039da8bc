"""What a server says of itself, on stderr."""

from __future__ import annotations

import asyncio
import logging


def set_up(level: int = logging.INFO) -> None:
    """Lines with time and level from now on."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    # FAISS tells how it probed the processor.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    # gRPC has a traceback for every call that comes once the server ends, and is cancelled.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_cancellation)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)
