"""The service without a server: the same answers, from the folders of indexes, in this process.

The client finds it by its entry point, so that neither room imports the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from grpc import aio

from vitscope.server.questions import DESCRIPTIONS, QUESTIONS
from vitscope.server.served import Served, index_paths
from vitscope.server.status import status_of


class LocalService:
    """Takes the place of a stub of `ActivationService`; safe to share between threads.

    Calls raise `AioRpcError` with the status that a server would have sent. They keep to the
    generations that were published when it was made.
    """

    def __init__(self, *paths: Path) -> None:
        """Open the indexes at `paths`; raises what `open_generation` does, and `StartError`."""
        self._indexes = Served(index_paths(paths)).current

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method called so; what it is told besides the request changes nothing here."""
        if name in DESCRIPTIONS:
            return lambda request, **_: _checked(DESCRIPTIONS[name], self._indexes, request)
        if name not in QUESTIONS:
            raise AttributeError(f"the service has no method {name}")
        question = QUESTIONS[name]

        def answer(request: Any) -> Any:
            work, _ = question.bind(self._indexes, request)
            return work()

        if question.streamed:
            return lambda request, **_: _each(answer, request)
        return lambda request, **_: _checked(answer, request)


def _checked(answer: Callable[..., Any], *given: Any) -> Any:
    try:
        return answer(*given)
    except Exception as error:
        raise _as_status(error) from None


def _each(answer: Callable[..., Iterator[Any]], request: Any) -> Iterator[Any]:
    try:
        yield from answer(request)
    except Exception as error:
        raise _as_status(error) from None


def _as_status(error: Exception) -> Exception:
    """The status of an error; one that is a bug of ours stays what it is."""
    status = status_of(error)
    if status is None:
        return error
    code, sentence = status
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), sentence)
