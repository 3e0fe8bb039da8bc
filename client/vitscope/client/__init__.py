"""Ask a vitscope server which images, and which patches of them, make a channel fire.

with Client("127.0.0.1:50051") as client:
    for image in client.top_images("blocks.5.mlp", 7, pooling="max", k=9).images:
        print(image.row, image.label, image.score)

Pictures are drawn by `vitscope.client.pictures`.
"""

from vitscope.client.client import Client
from vitscope.client.errors import (
    AccessError,
    CancelledError,
    DamagedIndexError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    NotKeptError,
    OverloadedError,
    RequestError,
    ServerError,
    UnavailableError,
    UnsupportedError,
    UsageError,
    VitscopeError,
)
from vitscope.client.filters import ImageFilter
from vitscope.client.results import (
    BoxedImage,
    BoxScores,
    ChannelBoxScores,
    ChannelStatistics,
    Distinctness,
    Image,
    Index,
    Layer,
    Model,
    PatchGrid,
    PatchMap,
    PatchMaps,
    ScoredChannel,
    ScoredImage,
    ScoredPatch,
    SimilarChannels,
    SimilarImages,
    TokenLayout,
    TopChannels,
    TopImages,
    TopImagesByBox,
    TopPatches,
)

__all__ = [
    "AccessError",
    "BoxScores",
    "BoxedImage",
    "CancelledError",
    "ChannelBoxScores",
    "ChannelStatistics",
    "Client",
    "DamagedIndexError",
    "DeadlineError",
    "Distinctness",
    "Image",
    "ImageFilter",
    "Index",
    "InvalidRequestError",
    "Layer",
    "Model",
    "NotFoundError",
    "NotKeptError",
    "OverloadedError",
    "PatchGrid",
    "PatchMap",
    "PatchMaps",
    "RequestError",
    "ScoredChannel",
    "ScoredImage",
    "ScoredPatch",
    "ServerError",
    "SimilarChannels",
    "SimilarImages",
    "TokenLayout",
    "TopChannels",
    "TopImages",
    "TopImagesByBox",
    "TopPatches",
    "UnavailableError",
    "UnsupportedError",
    "UsageError",
    "VitscopeError",
]
