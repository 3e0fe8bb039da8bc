"""The gRPC service: from the wire, to an answer, to the wire; blocking work in an executor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from itertools import islice
from threading import Event
from typing import Any, TypeVar

from vitscope.server import answers, convert
from vitscope.server.going import run_for
from vitscope.server.queries.checks import find_index
from vitscope.server.queries.model import LiveModel
from vitscope.store.generation import Generation
from vitscope.v1 import query_pb2 as pb
from vitscope.v1 import service_pb2_grpc

_T = TypeVar("_T")

_REPLIES_AT_ONCE = 16
"""Of a stream, made ahead of being sent: few, so that a caller who goes away costs little."""


class ActivationService(service_pb2_grpc.ActivationServiceServicer):
    """Answers from the generations it was given; a request keeps to one of them throughout."""

    def __init__(
        self,
        generations: Mapping[str, Generation],
        executor: Executor,
        live: Mapping[str, LiveModel],
    ) -> None:
        """`live` has the live models, by the name of their index."""
        self._generations = generations
        self._executor = executor
        self._live = live

    async def ListIndexes(  # noqa: N802
        self, request: pb.ListIndexesRequest, context: Any
    ) -> pb.ListIndexesResponse:
        """Describe every index, without layers."""
        indexes = [
            convert.index_to(name, held, layers=False, live=name in self._live)
            for name, held in self._generations.items()
        ]
        return pb.ListIndexesResponse(indexes=indexes)

    async def GetIndex(  # noqa: N802
        self, request: pb.GetIndexRequest, context: Any
    ) -> pb.GetIndexResponse:
        """Describe one index."""
        generation = find_index(self._generations, request.index)
        name = next(name for name, held in self._generations.items() if held is generation)
        live = name in self._live
        return pb.GetIndexResponse(index=convert.index_to(name, generation, layers=True, live=live))

    async def TopImages(  # noqa: N802
        self, request: pb.TopImagesRequest, context: Any
    ) -> pb.TopImagesResponse:
        """The images that a channel ranks first."""
        return await self._answer(answers.top_images, request)

    async def TopImagesOfChannels(  # noqa: N802
        self, request: pb.TopImagesOfChannelsRequest, context: Any
    ) -> AsyncIterator[pb.TopImagesResponse]:
        """The same for several channels."""
        async for reply in self._stream(answers.top_images_of_channels, request):
            yield reply

    async def GetChannelStatistics(  # noqa: N802
        self, request: pb.GetChannelStatisticsRequest, context: Any
    ) -> pb.GetChannelStatisticsResponse:
        """Statistics of channels."""
        return await self._answer(answers.channel_statistics, request)

    async def TopPatches(  # noqa: N802
        self, request: pb.TopPatchesRequest, context: Any
    ) -> pb.TopPatchesResponse:
        """The patches on which a channel is strongest."""
        return await self._answer(answers.top_patches, request)

    async def TopChannels(  # noqa: N802
        self, request: pb.TopChannelsRequest, context: Any
    ) -> pb.TopChannelsResponse:
        """The channels that are strongest on an image."""
        return await self._answer(self._with_live(answers.top_channels, request), request)

    async def SimilarChannels(  # noqa: N802
        self, request: pb.SimilarChannelsRequest, context: Any
    ) -> pb.SimilarChannelsResponse:
        """The channels that go with a channel."""
        return await self._answer(answers.similar_channels, request)

    async def GetBoxScores(  # noqa: N802
        self, request: pb.GetBoxScoresRequest, context: Any
    ) -> pb.GetBoxScoresResponse:
        """How far channels look at labelled boxes."""
        return await self._answer(answers.box_scores, request)

    async def TopImagesByBox(  # noqa: N802
        self, request: pb.TopImagesByBoxRequest, context: Any
    ) -> pb.TopImagesByBoxResponse:
        """The images on which a channel looks most at labelled boxes, or least."""
        return await self._answer(answers.top_images_by_box, request)

    async def GetPatchMaps(  # noqa: N802
        self, request: pb.GetPatchMapsRequest, context: Any
    ) -> AsyncIterator[pb.GetPatchMapsResponse]:
        """Patch maps of chosen images and channels."""
        answer = self._with_live(answers.patch_maps, request)
        # Each may cost a forward, which nobody waits for any more where the caller went away.
        at_once = 1 if self._live else _REPLIES_AT_ONCE
        async for reply in self._stream(answer, request, at_once):
            yield reply

    async def SimilarImages(  # noqa: N802
        self, request: pb.SimilarImagesRequest, context: Any
    ) -> pb.SimilarImagesResponse:
        """The images nearest to an image."""
        return await self._answer(answers.similar_images, request)

    async def SimilarPatches(  # noqa: N802
        self, request: pb.SimilarPatchesRequest, context: Any
    ) -> pb.SimilarPatchesResponse:
        """The patches nearest to a patch."""
        return await self._answer(answers.similar_patches, request)

    async def TopImagesAlongDirection(  # noqa: N802
        self, request: pb.TopImagesAlongDirectionRequest, context: Any
    ) -> pb.TopImagesAlongDirectionResponse:
        """The images that lie farthest along a direction."""
        return await self._answer(answers.top_images_along, request)

    async def ListDirections(  # noqa: N802
        self, request: pb.ListDirectionsRequest, context: Any
    ) -> pb.ListDirectionsResponse:
        """The directions that lie beside an index."""
        return await self._answer(answers.named_directions, request)

    async def AnalyzeImage(  # noqa: N802
        self, request: pb.AnalyzeImageRequest, context: Any
    ) -> pb.AnalyzeImageResponse:
        """What channels make of a picture that is brought along."""
        return await self._answer(self._with_live(answers.analyze_image, request), request)

    async def GetImages(  # noqa: N802
        self, request: pb.GetImagesRequest, context: Any
    ) -> AsyncIterator[pb.GetImagesResponse]:
        """Thumbnails and names of images."""
        async for reply in self._stream(answers.images_of, request):
            yield reply

    async def GetScores(  # noqa: N802
        self, request: pb.GetScoresRequest, context: Any
    ) -> AsyncIterator[pb.GetScoresResponse]:
        """The scores of all images."""
        async for reply in self._stream(answers.scores_of, request):
            yield reply

    async def CompareChannels(  # noqa: N802
        self, request: pb.CompareChannelsRequest, context: Any
    ) -> pb.CompareChannelsResponse:
        """The channels that change most from one index to another."""
        return await self._compare(answers.compare_channels, request)

    async def CompareImages(  # noqa: N802
        self, request: pb.CompareImagesRequest, context: Any
    ) -> pb.CompareImagesResponse:
        """The images on which a channel changes most from one index to another."""
        return await self._compare(answers.compare_images, request)

    async def _compare(
        self, answer: Callable[[Generation, Generation, Any], _T], request: Any
    ) -> _T:
        generation = find_index(self._generations, request.index)
        other = find_index(self._generations, request.other, "other")
        return await self._run(answer, generation, other, request)

    async def _answer(self, answer: Callable[[Generation, Any], _T], request: Any) -> _T:
        generation = find_index(self._generations, request.index)
        return await self._run(answer, generation, request)

    def _with_live(self, answer: Callable[..., _T], request: Any) -> Callable[..., _T]:
        """The answer, told of the live model of the request's index where there is one."""
        only = next(iter(self._generations)) if len(self._generations) == 1 else ""
        return partial(answer, live=self._live.get(request.index or only))

    async def _stream(
        self,
        answer: Callable[[Generation, Any], Iterator[_T]],
        request: Any,
        at_once: int = _REPLIES_AT_ONCE,
    ) -> AsyncIterator[_T]:
        replies = await self._answer(answer, request)
        while some := await self._run(_some, replies, at_once):
            for reply in some:
                yield reply

    async def _run(self, work: Callable[..., _T], *given: Any) -> _T:
        gone = Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, run_for, gone, work, *given)
        finally:
            # Where the call was cancelled the thread is still at it.
            gone.set()


def _some(replies: Iterator[_T], count: int) -> list[_T]:
    return list(islice(replies, count))
