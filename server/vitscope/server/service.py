"""The gRPC service: from the wire, to an answer, to the wire; blocking work in an executor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar

from vitscope.server import convert, queries
from vitscope.store.generation import Generation
from vitscope.v1 import query_pb2 as pb
from vitscope.v1 import service_pb2_grpc

_T = TypeVar("_T")


class ActivationService(service_pb2_grpc.ActivationServiceServicer):
    """Answers from the generations it was given; a request keeps to one of them throughout."""

    def __init__(self, generations: Mapping[str, Generation], executor: Executor) -> None:
        self._generations = generations
        self._executor = executor

    async def ListIndexes(  # noqa: N802
        self, request: pb.ListIndexesRequest, context: Any
    ) -> pb.ListIndexesResponse:
        """Describe every index, without layers."""
        found = self._generations.items()
        indexes = [convert.index_to(name, held, layers=False) for name, held in found]
        return pb.ListIndexesResponse(indexes=indexes)

    async def GetIndex(  # noqa: N802
        self, request: pb.GetIndexRequest, context: Any
    ) -> pb.GetIndexResponse:
        """Describe one index."""
        generation = queries.find_index(self._generations, request.index)
        name = next(name for name, held in self._generations.items() if held is generation)
        return pb.GetIndexResponse(index=convert.index_to(name, generation, layers=True))

    async def TopImages(  # noqa: N802
        self, request: pb.TopImagesRequest, context: Any
    ) -> pb.TopImagesResponse:
        """The images on which a channel scores highest."""
        return await self._run(self._top_images, request)

    async def GetPatchMaps(  # noqa: N802
        self, request: pb.GetPatchMapsRequest, context: Any
    ) -> AsyncIterator[pb.GetPatchMapsResponse]:
        """Patch maps of chosen images and channels."""
        for reply in await self._run(self._patch_maps, request):
            yield reply

    async def SimilarImages(  # noqa: N802
        self, request: pb.SimilarImagesRequest, context: Any
    ) -> pb.SimilarImagesResponse:
        """The images nearest to an image."""
        return await self._run(self._similar_images, request)

    async def GetImages(  # noqa: N802
        self, request: pb.GetImagesRequest, context: Any
    ) -> AsyncIterator[pb.GetImagesResponse]:
        """Thumbnails and names of images."""
        for reply in await self._run(self._images, request):
            yield reply

    async def _run(self, answer: Callable[[Any], _T], request: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, answer, request)

    def _top_images(self, request: pb.TopImagesRequest) -> pb.TopImagesResponse:
        generation = queries.find_index(self._generations, request.index)
        pooling = convert.pooling_from(request.pooling)
        k = request.k if request.HasField("k") else None
        channel = (request.layer, request.channel, pooling)
        ranking = queries.top_images(generation, *channel, k)
        reply = pb.TopImagesResponse(
            generation=generation.name,
            pooling=convert.pooling_to(pooling),
            images=convert.ranking_to(generation, ranking),
        )
        if request.include_maps:
            maps = queries.top_maps(generation, *channel, ranking)
            reply.maps.CopyFrom(convert.maps_to(generation, maps))
        return reply

    def _patch_maps(self, request: pb.GetPatchMapsRequest) -> list[pb.GetPatchMapsResponse]:
        generation = queries.find_index(self._generations, request.index)
        selectors = [queries.Selector(m.layer, m.channel, m.row) for m in request.maps]
        return [
            pb.GetPatchMapsResponse(
                generation=generation.name, maps=convert.maps_to(generation, maps)
            )
            for maps in queries.patch_maps(generation, selectors)
        ]

    def _similar_images(self, request: pb.SimilarImagesRequest) -> pb.SimilarImagesResponse:
        generation = queries.find_index(self._generations, request.index)
        k = request.k if request.HasField("k") else None
        ranking, recall = queries.similar_images(generation, request.layer, request.row, k)
        return pb.SimilarImagesResponse(
            generation=generation.name,
            images=convert.ranking_to(generation, ranking),
            exact=recall == 1.0,
            recall_at_10=recall,
        )

    def _images(self, request: pb.GetImagesRequest) -> list[pb.GetImagesResponse]:
        generation = queries.find_index(self._generations, request.index)
        rows = queries.check_rows(generation, request.rows)
        return list(convert.images_to(generation, rows))
