"""Whether somebody still waits for an answer: long queries ask, and stop where nobody does."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from threading import Event
from typing import TypeVar

_T = TypeVar("_T")


class CallerGoneError(Exception):
    """The call was cancelled, or its deadline has passed, while it was being answered."""


_gone: ContextVar[Event | None] = ContextVar("gone", default=None)


def check_caller() -> None:
    """Raise `CallerGoneError` where the caller of this thread's work has gone; costs nothing."""
    gone = _gone.get()
    if gone is not None and gone.is_set():
        raise CallerGoneError


def run_for(gone: Event, work: Callable[..., _T], *given: object) -> _T:
    """What `work` gives; `check_caller` raises within it once `gone` is set."""

    def run() -> _T:
        _gone.set(gone)
        check_caller()
        return work(*given)

    return copy_context().run(run)
