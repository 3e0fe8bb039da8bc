"""From a request, by a query, to the reply: one function for each question, run in a thread."""

from __future__ import annotations

from collections.abc import Iterator

from vitscope.server import replies, requests
from vitscope.server.errors import NotKeptHereError
from vitscope.server.queries import (
    analysis,
    boxes,
    channels,
    compare,
    directions,
    images,
    maps,
    patches,
    scores,
    similar,
)
from vitscope.server.queries.model import LiveModel
from vitscope.store.generation import Generation
from vitscope.store.manifest import Pooling
from vitscope.v1 import query_pb2 as pb


def top_images(generation: Generation, request: pb.TopImagesRequest) -> pb.TopImagesResponse:
    """The images that a channel ranks first."""
    question = requests.question_from(request)
    top = images.top_images(generation, request.layer, request.channel, question)
    return _top_images_to(generation, question.pooling, top, request.include_maps)


def top_images_of_channels(
    generation: Generation, request: pb.TopImagesOfChannelsRequest
) -> Iterator[pb.TopImagesResponse]:
    """The same for several channels, each as it is asked for."""
    question = requests.question_from(request)
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
    return replies.top_images_to(generation, pooling, top, kept)


def channel_statistics(
    generation: Generation, request: pb.GetChannelStatisticsRequest
) -> pb.GetChannelStatisticsResponse:
    """Statistics of channels."""
    pooling = requests.pooling_from(request.pooling)
    found = channels.channel_statistics(generation, request.layer, pooling, request.channels)
    return replies.statistics_to(generation, pooling, found)


def top_patches(generation: Generation, request: pb.TopPatchesRequest) -> pb.TopPatchesResponse:
    """The patches on which a channel is strongest."""
    found = patches.top_patches(
        generation,
        request.layer,
        request.channel,
        requests.k_from(request),
        requests.filter_from(request.filter),
    )
    return pb.TopPatchesResponse(
        generation=generation.name,
        patches=replies.patches_to(generation, found),
        grid=replies.grid_to(generation, found.layer),
    )


def top_channels(
    generation: Generation, request: pb.TopChannelsRequest, live: LiveModel | None = None
) -> pb.TopChannelsResponse:
    """The channels that are strongest on an image, or a part of it."""
    found = channels.top_channels(
        generation,
        request.row,
        request.layers,
        requests.where_from(request),
        requests.k_from(request),
        percentiles=requests.percentiles_from(request.measure),
        live=live,
    )
    return pb.TopChannelsResponse(generation=generation.name, channels=replies.channels_to(found))


def similar_channels(
    generation: Generation, request: pb.SimilarChannelsRequest
) -> pb.SimilarChannelsResponse:
    """The channels that go with a channel."""
    found = channels.similar_channels(
        generation, request.layer, request.channel, requests.k_from(request), request.layers
    )
    return pb.SimilarChannelsResponse(
        generation=generation.name, channels=replies.channels_to(found)
    )


def box_scores(generation: Generation, request: pb.GetBoxScoresRequest) -> pb.GetBoxScoresResponse:
    """How far channels look at labelled boxes."""
    found = boxes.box_scores(
        generation,
        request.layer,
        request.channels,
        tuple(request.box_labels),
        requests.filter_from(request.filter),
    )
    return pb.GetBoxScoresResponse(
        generation=generation.name,
        channels=found.channels,
        images=found.images.tolist(),
        inside_images=found.inside_images.tolist(),
        scores=replies.box_scores_to(found.scores),
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
        requests.filter_from(request.filter),
        requests.k_from(request),
        requests.box_measure_from(request.measure),
        lowest=requests.order_from(request.order) == "bottom",
    )
    return replies.ranked_by_box_to(generation, found)


def patch_maps(
    generation: Generation, request: pb.GetPatchMapsRequest, live: LiveModel | None = None
) -> Iterator[pb.GetPatchMapsResponse]:
    """Patch maps of chosen images and channels."""
    selectors = [maps.Selector(each.layer, each.channel, each.row) for each in request.maps]
    grids = [maps.Grid(each.layer, each.rows, each.channels) for each in request.grids]
    small = requests.in_bytes_from(request.encoding)
    return (
        pb.GetPatchMapsResponse(
            generation=generation.name, maps=replies.maps_to(generation, some, in_bytes=small)
        )
        for some in maps.patch_maps(generation, selectors, grids, live)
    )


def similar_images(
    generation: Generation, request: pb.SimilarImagesRequest
) -> pb.SimilarImagesResponse:
    """The images nearest to an image."""
    near = images.similar_images(
        generation, request.layer, request.row, requests.k_from(request), exact=request.exact
    )
    return pb.SimilarImagesResponse(
        generation=generation.name,
        images=replies.ranking_to(generation, near.ranking),
        exact=near.exact,
        recall_at_10=near.recall,
    )


def similar_patches(
    generation: Generation, request: pb.SimilarPatchesRequest
) -> pb.SimilarPatchesResponse:
    """The patches nearest to a patch."""
    place = channels.Patch(request.patch.y, request.patch.x) if request.HasField("patch") else None
    near = similar.similar_patches(
        generation,
        request.layer,
        request.row,
        place,
        requests.k_from(request),
        other_images=request.other_images,
        exact=request.exact,
    )
    return pb.SimilarPatchesResponse(
        generation=generation.name,
        patches=replies.patches_to(generation, near.patches),
        grid=replies.grid_to(generation, near.patches.layer),
        exact=near.exact,
        recall_at_10=near.recall,
    )


def top_images_along(
    generation: Generation, request: pb.TopImagesAlongDirectionRequest
) -> pb.TopImagesAlongDirectionResponse:
    """The images that lie farthest along a direction."""
    direction, question = requests.direction_from(request.direction), requests.along_from(request)
    along = directions.top_images_along(generation, request.layer, direction, question)
    return pb.TopImagesAlongDirectionResponse(
        generation=generation.name,
        images=replies.ranking_to(generation, along.ranking),
        candidates=along.candidates,
    )


def named_directions(
    generation: Generation, request: pb.ListDirectionsRequest
) -> pb.ListDirectionsResponse:
    """The directions that lie beside the index."""
    found = directions.named_directions(generation, request.layer)
    named = [
        pb.NamedDirections(layer=each.layer, name=each.name, count=each.count) for each in found
    ]
    return pb.ListDirectionsResponse(generation=generation.name, directions=named)


def analyze_image(
    generation: Generation, request: pb.AnalyzeImageRequest, live: LiveModel | None = None
) -> pb.AnalyzeImageResponse:
    """What channels make of a picture that is brought along."""
    if live is None:
        raise NotKeptHereError(
            "index: this server does not run the model of the index; start it with --live."
        )
    asked = requests.analysis_from(request)
    found = analysis.analyze(generation, live, request.picture, asked)
    return replies.analysis_to(generation, found)


def images_of(
    generation: Generation, request: pb.GetImagesRequest
) -> Iterator[pb.GetImagesResponse]:
    """Thumbnails and names of images."""
    pictures = not request.without_pictures
    rows = images.check_rows(generation, request.rows, pictures=pictures)
    return replies.images_to(generation, rows, pictures=pictures)


def scores_of(
    generation: Generation, request: pb.GetScoresRequest
) -> Iterator[pb.GetScoresResponse]:
    """The scores of all images."""
    pooling = requests.pooling_from(request.pooling)
    found = scores.scores(generation, request.layer, pooling, request.channels)
    return (replies.scores_to(generation, pooling, block) for block in found)


def compare_channels(
    generation: Generation, other: Generation, request: pb.CompareChannelsRequest
) -> pb.CompareChannelsResponse:
    """The channels that change most from one index to another."""
    found = compare.changed_channels(
        generation,
        other,
        request.layer,
        requests.pooling_from(request.pooling),
        requests.filter_from(request.filter),
        requests.change_from(request.measure),
        requests.k_from(request),
        lowest=requests.order_from(request.order) == "bottom",
    )
    return replies.changed_channels_to(generation, other, found)


def compare_images(
    generation: Generation, other: Generation, request: pb.CompareImagesRequest
) -> pb.CompareImagesResponse:
    """The images on which a channel changes most from one index to another."""
    found = compare.changed_images(
        generation,
        other,
        request.layer,
        request.channel,
        requests.pooling_from(request.pooling),
        requests.filter_from(request.filter),
        requests.k_from(request),
        lowest=requests.order_from(request.order) == "bottom",
    )
    return replies.changed_images_to(generation, other, found)
