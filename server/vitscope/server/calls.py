"""The call that is being answered: its id, and what logs, metrics and traces tell of it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeVar
from urllib.parse import unquote

from vitscope.v1 import service_pb2

_T = TypeVar("_T")

REQUEST_ID = "x-request-id"
"""Metadata with the id, from a caller who has one and to every caller."""
OTHER = "other"
"""Any method that the service does not have: callers may name what they like."""

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"]
_METHODS = frozenset(_SERVICE.methods_by_name)
_SANE = re.compile(r"[!-~]{1,128}")


@dataclass(slots=True)
class Call:
    """One call, from its first byte to the end of its reply."""

    id: str
    method: str
    """Of the service, or `OTHER`."""
    metadata: tuple[tuple[str, str | bytes], ...] = field(default=(), repr=False)
    """As the caller sent them, the token too."""
    began: float = field(default_factory=perf_counter)
    peer: str = ""
    """The caller's host; empty where nobody asks for it."""
    token: str = ""
    """The name of the token."""
    index: str = ""
    cost: str = ""
    waited: float = 0.0
    """Seconds for a thread; of a stream, of all its parts."""
    worked: float = 0.0
    """Seconds in a thread."""
    sent: int = 0
    """Bytes of replies."""
    code: str = "OK"
    reason: str = ""
    """The sentence that the caller was told in place of an answer."""
    seconds: float = 0.0
    """From `began` to the end."""
    trace: str = ""
    """The id of its trace; empty for none."""


Observer = Callable[[Call], None]
"""Is told of every call that ended."""

current: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that this task or thread is at."""


def call_from(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Call:
    """A call that comes, under the caller's id or, where that is none or odd, a new one."""
    metadata = tuple(metadata)
    given = [value for key, value in metadata if key == REQUEST_ID]
    sane = len(given) == 1 and isinstance(given[0], str) and _SANE.fullmatch(given[0])
    service, _, name = method.rpartition("/")
    known = name in _METHODS and service == f"/{_SERVICE.full_name}"
    return Call(
        sane[0] if sane else f"{random.getrandbits(64):016x}", name if known else OTHER, metadata
    )


def measured(call: Call, work: Callable[[], _T]) -> Callable[[], _T]:
    """The same work, to be done by a thread: how long it waits and takes is noted in the call."""
    came = perf_counter()

    def run() -> _T:
        begun = perf_counter()
        call.waited += begun - came
        try:
            return work()
        finally:
            call.worked += perf_counter() - begun

    return run


def host_of(peer: str) -> str:
    """The host of what gRPC calls a peer, such as `ipv4:10.0.0.7:5123` or `ipv6:%5B::1%5D:9`."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else kind
