"""What a server says of itself, on stderr: lines for people, or JSON for what collects them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vitscope.server.calls import Call, Observer, current

_calls = logging.getLogger("vitscope.server.calls")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """As given on the command line."""

    format: str = "text"
    """Or `json`."""
    level: str = "info"
    calls: str = "none"
    """Which calls get a line when they end: `none`, `failed` ones or `all`."""


def set_up(options: LogOptions, worker: int | None = None) -> None:
    """Lines of that format from that level on; `worker` is the number of this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json(worker) if options.format == "json" else _Text())
    logging.basicConfig(level=options.level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    # FAISS tells how it probed the processor.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    # gRPC has a traceback for every call that comes once the server ends, and is cancelled.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_cancellation)


def call_log(options: LogOptions) -> Observer | None:
    """What writes the lines of calls that ended; None where no call gets one."""
    if options.calls == "none" or not _calls.isEnabledFor(logging.INFO):
        return None
    return _log_failed if options.calls == "failed" else _log_call


def _log_failed(call: Call) -> None:
    if call.code != "OK":
        _log_call(call)


def _log_call(call: Call) -> None:
    fields = {
        # Not of the context: a stream may be closed outside of its call's.
        **_ids(call),
        "method": call.method,
        "code": call.code,
        "index": call.index,
        "cost": call.cost,
        "ms": _milliseconds(call.seconds),
        "queue_ms": _milliseconds(call.waited),
        "work_ms": _milliseconds(call.worked),
        "reply_bytes": call.sent,
        "peer": call.peer,
        "token": call.token,
        "reason": call.reason,
    }
    present = {key: value for key, value in fields.items() if value != ""}
    _calls.info("A call ended.", extra={"fields": present})


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _ids(call: Call | None) -> dict[str, str]:
    """By which a line is found."""
    if call is None:
        return {}
    return {"request_id": call.id} | ({"trace_id": call.trace} if call.trace else {})


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """What a line says besides its message."""
    return _ids(current.get()) | getattr(record, "fields", {})


class _Text(logging.Formatter):
    """Time, level, message, and what is named besides as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        pairs = (f" {name}={_shown(value)}" for name, value in _fields(record).items())
        return super().formatMessage(record) + "".join(pairs)


def _shown(value: Any) -> str:
    """As it stands where that is one word, or what callers send could look like other fields."""
    text = str(value)
    plain = text.isprintable() and not set(text) & set(" \"'=\\")
    return text if plain and text else repr(text)


class _Json(logging.Formatter):
    """One object a line."""

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._process = {"pid": os.getpid()} | ({} if worker is None else {"worker": worker})

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or not issubclass(kind, asyncio.CancelledError)
