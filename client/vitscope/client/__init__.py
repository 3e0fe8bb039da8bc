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
from vitscope.client.results import (
    Image,
    Index,
    Layer,
    Model,
    PatchGrid,
    PatchMap,
    PatchMaps,
    ScoredImage,
    SimilarImages,
    TokenLayout,
    TopImages,
)

__all__ = [
    "AccessError",
    "CancelledError",
    "Client",
    "DamagedIndexError",
    "DeadlineError",
    "Image",
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
    "ScoredImage",
    "ServerError",
    "SimilarImages",
    "TokenLayout",
    "TopImages",
    "UnavailableError",
    "UnsupportedError",
    "UsageError",
    "VitscopeError",
]
