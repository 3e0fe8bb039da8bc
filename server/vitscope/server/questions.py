"""What the service can be asked: each method's answer, what it costs, and how it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vitscope.server import answers, replies
from vitscope.server.queries.checks import find_index
from vitscope.server.served import Held
from vitscope.v1 import index_pb2
from vitscope.v1 import query_pb2 as pb

Cost = Literal["light", "scan", "model"]
"""What a question takes: a few columns or rankings; a whole layer or all images, the longer the
more there are; forwards of the live model. Each class has threads and a limit of its own, so that
none holds up another."""


@dataclass(frozen=True, slots=True)
class Question:
    """How one method is answered."""

    answer: Callable[..., Any]
    """Of a generation and a request."""
    cost: Cost | Callable[[Any], Cost] = "light"
    """As a function: of the request."""
    streamed: bool = False
    """The answer is an iterator of replies."""
    live: bool = False
    """The answer takes the live model, as `live`."""
    pair: bool = False
    """The answer takes a second generation, which the request calls `other`."""

    def costs(self, *, live: bool) -> tuple[Cost, ...]:
        """All that it may cost, by the request and, where some have live models, the index."""
        if self.live:
            return ("light", "model") if live else ("light",)
        return ("light", "scan") if callable(self.cost) else (self.cost,)

    def bind(self, indexes: Mapping[str, Held], request: Any) -> tuple[Callable[[], Any], Cost]:
        """The answer to a request, to be called in a thread, and what it costs.

        It keeps to the generations that `indexes` has now. Raises `QueryError` where there is no
        such index.
        """
        held = find_index(indexes, request.index)
        given = [held.generation]
        if self.pair:
            given.append(find_index(indexes, request.other, "other").generation)
        if self.live:
            cost: Cost = "model" if held.live else "light"
            return partial(self.answer, *given, request, live=held.live), cost
        cost = self.cost(request) if callable(self.cost) else self.cost
        return partial(self.answer, *given, request), cost


def _of_likeness(request: pb.SimilarImagesRequest | pb.SimilarPatchesRequest) -> Cost:
    return "scan" if request.exact else "light"


QUESTIONS: Mapping[str, Question] = {
    "TopImages": Question(answers.top_images),
    "TopImagesOfChannels": Question(answers.top_images_of_channels, "scan", streamed=True),
    "GetChannelStatistics": Question(answers.channel_statistics),
    "TopPatches": Question(answers.top_patches),
    "TopChannels": Question(answers.top_channels, live=True),
    "SimilarChannels": Question(answers.similar_channels),
    "GetBoxScores": Question(answers.box_scores, "scan"),
    "TopImagesByBox": Question(answers.top_images_by_box, "scan"),
    "GetPatchMaps": Question(answers.patch_maps, streamed=True, live=True),
    "SimilarImages": Question(answers.similar_images, _of_likeness),
    "SimilarPatches": Question(answers.similar_patches, _of_likeness),
    "TopImagesAlongDirection": Question(answers.top_images_along, "scan"),
    "ListDirections": Question(answers.named_directions),
    "AnalyzeImage": Question(answers.analyze_image, live=True),
    "GetImages": Question(answers.images_of, streamed=True),
    "GetScores": Question(answers.scores_of, "scan", streamed=True),
    "CompareChannels": Question(answers.compare_channels, "scan", pair=True),
    "CompareImages": Question(answers.compare_images, pair=True),
}
"""All methods that read an index."""


def describe_all(
    indexes: Mapping[str, Held], request: pb.ListIndexesRequest
) -> pb.ListIndexesResponse:
    """Describe every index, without layers."""
    found = [_described(name, held, layers=False) for name, held in indexes.items()]
    return pb.ListIndexesResponse(indexes=found)


def describe(indexes: Mapping[str, Held], request: pb.GetIndexRequest) -> pb.GetIndexResponse:
    """Describe one index; raises `QueryError` where there is none."""
    held = find_index(indexes, request.index)
    name = next(name for name, each in indexes.items() if each is held)
    return pb.GetIndexResponse(index=_described(name, held, layers=True))


def _described(name: str, held: Held, *, layers: bool) -> index_pb2.Index:
    return replies.index_to(name, held.generation, layers=layers, live=held.live is not None)


DESCRIPTIONS: Mapping[str, Callable[[Mapping[str, Held], Any], Any]] = {
    "ListIndexes": describe_all,
    "GetIndex": describe,
}
"""Methods that describe the indexes from what is in memory: no thread is taken for them."""
