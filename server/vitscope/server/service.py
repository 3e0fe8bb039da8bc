"""The gRPC service: from the wire, to an answer, to the wire; blocking work in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from vitscope.server.admission import Gates
from vitscope.server.questions import DESCRIPTIONS, QUESTIONS, Question
from vitscope.server.served import Served

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
        return DESCRIPTIONS[name](self._served.current, request)

    async def _answer(self, question: Question, request: Any, context: Any) -> Any:
        answer, cost = question.bind(self._served.current, request)
        return await self._gates[cost].run(answer)

    async def _stream(self, question: Question, request: Any, context: Any) -> AsyncIterator[Any]:
        answer, cost = question.bind(self._served.current, request)
        gate = self._gates[cost]
        # Each may take a forward, which nobody waits for any more where the caller went away.
        at_once = 1 if cost == "model" else _REPLIES_AT_ONCE
        with gate.stream():
            replies, some = await gate.run(partial(_begin, answer, at_once))
            while some:
                for reply in some:
                    yield reply
                some = await gate.run(partial(_some, replies, at_once), again=True)


def _begin(answer: Callable[[], Iterator[Any]], count: int) -> tuple[Iterator[Any], list[Any]]:
    replies = answer()
    return replies, _some(replies, count)


def _some(replies: Iterator[Any], count: int) -> list[Any]:
    return list(islice(replies, count))
