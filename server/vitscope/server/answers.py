"""From a request, by a query, to the reply: one function for each question, run in a thread."""

from __future__ import annotations

from collections.abc import Iterator

from vitscope.server import convert
from vitscope.server.errors import NotKeptHereError
from vitscope.server.queries import analysis, boxes, channels, images, maps, patches
from vitscope.server.queries.model import LiveModel
from vitscope.store.generation import Generation
from vitscope.store.manifest import Pooling
from vitscope.v1 import query_pb2 as pb


def top_images(generation: Generation, request: pb.TopImagesRequest) -> pb.TopImagesResponse:
    """The images that a channel ranks first."""
    question = convert.question_from(request)
    top = images.top_images(generation, request.layer, request.channel, question)
    return _top_images_to(generation, question.pooling, top, request.include_maps)


def top_images_of_channels(
    generation: Generation, request: pb.TopImagesOfChannelsRequest
) -> Iterator[pb.TopImagesResponse]:
    """The same for several channels, each as it is asked for."""
    question = convert.question_from(request)
    found = images.top_images_of_channels(generation, request.layer, request.channels, question)
    return (
        _top_images_to(generation, question.pooling, top, request.include_maps) for top in found
    )


def _top_images_to(
    generation: Generation, pooling: Pooling, top: images.TopImages, include_maps: bool
) -> pb.TopImagesResponse:
    kept = None
    if include_maps:
        rows = top.ranking.rows
        kept = maps.maps_of_ranked(generation, top.layer, top.channel, pooling, rows)
    return convert.top_images_to(generation, pooling, top, kept)


def channel_statistics(
    generation: Generation, request: pb.GetChannelStatisticsRequest
) -> pb.GetChannelStatisticsResponse:
    """Statistics of channels."""
    pooling = convert.pooling_from(request.pooling)
    found = channels.channel_statistics(generation, request.layer, pooling, request.channels)
    return convert.statistics_to(generation, pooling, found)


def top_patches(generation: Generation, request: pb.TopPatchesRequest) -> pb.TopPatchesResponse:
    """The patches on which a channel is strongest."""
    found = patches.top_patches(
        generation,
        request.layer,
        request.channel,
        convert.k_from(request),
        convert.filter_from(request.filter),
    )
    return convert.patches_to(generation, found)


def top_channels(
    generation: Generation, request: pb.TopChannelsRequest, live: LiveModel | None = None
) -> pb.TopChannelsResponse:
    """The channels that are strongest on an image, or a part of it."""
    found = channels.top_channels(
        generation,
        request.row,
        request.layers,
        convert.where_from(request),
        convert.k_from(request),
        percentiles=convert.percentiles_from(request.measure),
        live=live,
    )
    return pb.TopChannelsResponse(generation=generation.name, channels=convert.channels_to(found))


def similar_channels(
    generation: Generation, request: pb.SimilarChannelsRequest
) -> pb.SimilarChannelsResponse:
    """The channels that go with a channel."""
    found = channels.similar_channels(
        generation, request.layer, request.channel, convert.k_from(request), request.layers
    )
    return pb.SimilarChannelsResponse(
        generation=generation.name, channels=convert.channels_to(found)
    )


def box_scores(generation: Generation, request: pb.GetBoxScoresRequest) -> pb.GetBoxScoresResponse:
    """How far channels look at labelled boxes."""
    found = boxes.box_scores(
        generation,
        request.layer,
        request.channels,
        tuple(request.box_labels),
        convert.filter_from(request.filter),
    )
    return pb.GetBoxScoresResponse(
        generation=generation.name,
        channels=found.channels,
        images=found.images.tolist(),
        scores=convert.box_scores_to(found.scores),
    )


def top_images_by_box(
    generation: Generation, request: pb.TopImagesByBoxRequest
) -> pb.TopImagesByBoxResponse:
    """The images on which a channel looks most at labelled boxes, or least."""
    found = boxes.top_images_by_box(
        generation,
        request.layer,
        request.channel,
        tuple(request.box_labels),
        convert.filter_from(request.filter),
        convert.k_from(request),
        convert.box_measure_from(request.measure),
        lowest=convert.order_from(request.order) == "bottom",
    )
    return convert.ranked_by_box_to(generation, found)


def patch_maps(
    generation: Generation, request: pb.GetPatchMapsRequest, live: LiveModel | None = None
) -> Iterator[pb.GetPatchMapsResponse]:
    """Patch maps of chosen images and channels."""
    selectors = [maps.Selector(each.layer, each.channel, each.row) for each in request.maps]
    grids = [maps.Grid(each.layer, each.rows, each.channels) for each in request.grids]
    small = convert.in_bytes_from(request.encoding)
    found = maps.patch_maps(generation, selectors, grids, live)
    return (
        pb.GetPatchMapsResponse(
            generation=generation.name, maps=convert.maps_to(generation, some, in_bytes=small)
        )
        for some in found
    )


def similar_images(
    generation: Generation, request: pb.SimilarImagesRequest
) -> pb.SimilarImagesResponse:
    """The images nearest to an image."""
    ranking, recall = images.similar_images(
        generation, request.layer, request.row, convert.k_from(request)
    )
    return pb.SimilarImagesResponse(
        generation=generation.name,
        images=convert.ranking_to(generation, ranking),
        exact=recall == 1.0,
        recall_at_10=recall,
    )


def analyze_image(
    generation: Generation, request: pb.AnalyzeImageRequest, live: LiveModel | None = None
) -> pb.AnalyzeImageResponse:
    """What channels make of a picture that is brought along."""
    if live is None:
        raise NotKeptHereError(
            "index: this server does not run the model of the index; start it with --live."
        )
    asked = convert.analysis_from(request)
    found = analysis.analyze(generation, live, request.picture, asked)
    return convert.analysis_to(generation, found)


def images_of(
    generation: Generation, request: pb.GetImagesRequest
) -> Iterator[pb.GetImagesResponse]:
    """Thumbnails and names of images."""
    rows = images.check_rows(generation, request.rows)
    return convert.images_to(generation, rows)
