"""The gRPC service: from the wire, to an answer, to the wire; blocking work in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from vitscope.server.admission import Gates
from vitscope.server.calls import current
from vitscope.server.questions import DESCRIPTIONS, QUESTIONS, Cost, Question
from vitscope.server.served import Held, Served

_REPLIES_AT_ONCE = 16
"""Of a stream, made ahead of being sent: few, so that a caller who goes away costs little."""


class ActivationService:
    """The methods of `vitscope.v1.ActivationService`, as gRPC looks them up by their names.

    A request keeps to the generation that is served when it comes. Methods raise `QueryError` and
    what the store raises, for the interceptor to turn into statuses.
    """

    def __init__(self, served: Served, gates: Gates) -> None:
        self._served = served
        self._gates = gates
        for name, question in QUESTIONS.items():
            method = self._stream if question.streamed else self._answer
            setattr(self, name, partial(method, question))
        for name in DESCRIPTIONS:
            setattr(self, name, partial(self._describe, name))

    async def _describe(self, name: str, request: Any, context: Any) -> Any:
        indexes = self._served.current
        described = DESCRIPTIONS[name](indexes, request)
        if name == "GetIndex":
            _note(indexes, request)
        return described

    async def _answer(self, question: Question, request: Any, context: Any) -> Any:
        answer, cost = self._bound(question, request)
        return await self._gates[cost].run(answer)

    async def _stream(self, question: Question, request: Any, context: Any) -> AsyncIterator[Any]:
        answer, cost = self._bound(question, request)
        gate = self._gates[cost]
        # Each may take a forward, which nobody waits for any more where the caller went away.
        at_once = 1 if cost == "model" else _REPLIES_AT_ONCE
        with gate.stream() as stream:
            replies, some = await stream.run(partial(_begin, answer, at_once))
            while some:
                for reply in some:
                    yield reply
                some = await stream.run(partial(_some, replies, at_once))

    def _bound(self, question: Question, request: Any) -> tuple[Callable[[], Any], Cost]:
        indexes = self._served.current
        answer, cost = question.bind(indexes, request)
        _note(indexes, request, cost)
        return answer, cost


def _note(indexes: Mapping[str, Held], request: Any, cost: str = "") -> None:
    """Have the call tell of the index, which is there, and of what it takes."""
    if (call := current.get()) is not None:
        call.index, call.cost = request.index or next(iter(indexes)), cost


def _begin(answer: Callable[[], Iterator[Any]], count: int) -> tuple[Iterator[Any], list[Any]]:
    replies = answer()
    return replies, _some(replies, count)


def _some(replies: Iterator[Any], count: int) -> list[Any]:
    return list(islice(replies, count))
