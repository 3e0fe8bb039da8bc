"""What channels make of a picture that is not in the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.queries.channels import Channels, ranked_channels
from vitscope.server.queries.checks import (
    check_channel,
    check_k,
    check_pooling,
    find_layer,
    find_layers,
)
from vitscope.server.queries.images import Near, nearest_to
from vitscope.server.queries.maps import MAX_MAP_BYTES, Maps
from vitscope.server.queries.model import Activation, Decoded, Halves, LiveModel
from vitscope.store.generation import Generation
from vitscope.store.manifest import LayerRecord, Pooling

MAX_BYTES = 3 << 20
"""Of a picture: a request stays clear of gRPC's limit of 4 MiB."""
USUAL_NEIGHBOURS = 10

_NONE = Channels((), np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked about a picture."""

    layers: Sequence[str] = ()
    pooling: Pooling = "mean"
    percentiles: bool = False
    channels: int | None = None
    """Strongest channels; 0 for none."""
    neighbours: int | None = None
    """Nearest images in each layer; 0 for none."""
    maps: Sequence[tuple[str, int]] = ()
    """Layers and channels whose maps are wanted."""
    include_maps: bool = False
    """Of the strongest channels too."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answer."""

    picture: Decoded
    channels: Channels
    neighbours: Sequence[tuple[str, Near]]
    """By layer."""
    maps: Sequence[Maps]
    """Without rows: of the strongest channels, then of those asked for."""
    same_as_row: int | None


def analyze(generation: Generation, live: LiveModel, data: bytes, asked: Question) -> Analysis:
    """Run the picture in `data` through the model once; raises where it is none."""
    layers = find_layers(generation, asked.layers)
    total = sum(layer.channels for layer in layers)
    k = check_k(asked.channels, total, "channel", field="channels", least=0)
    near = check_k(
        asked.neighbours,
        generation.manifest.valid_rows,
        "valid image",
        field="neighbours",
        usual=USUAL_NEIGHBOURS,
        least=0,
    )
    if k:
        for layer in layers:
            check_pooling(layer, asked.pooling)
    _check_maps(generation, layers, k, asked)
    picture = _decoded(live, data)

    drawn = {layer.name for layer in layers} if k and asked.include_maps else set()
    drawn |= {name for name, _ in asked.maps}
    seen = _Seen(live, picture, layers, asked.pooling, drawn)
    channels = _NONE
    if k:
        scores = [seen.scores[layer.name].astype(np.float64) for layer in layers]
        compared = asked.pooling if asked.percentiles else None
        channels = ranked_channels(generation, layers, scores, compared, k)
    neighbours = [
        (layer.name, nearest_to(generation, layer.name, seen.means[layer.name], near))
        for layer in layers
        if near
    ]
    strongest = zip(channels.layers, channels.channels.tolist(), strict=True)
    wanted = [*(strongest if asked.include_maps else ()), *asked.maps]
    maps = [
        _maps(generation.layer(name), [channel for _, channel in some], seen.activations[name])
        for name, some in groupby(wanted, lambda each: each[0])
    ]
    return Analysis(picture, channels, neighbours, maps, generation.rows.of_bytes(picture.sha256))


def _check_maps(
    generation: Generation, layers: Sequence[LayerRecord], k: int, asked: Question
) -> None:
    """Raise for a channel that there is not, and for more maps than a reply takes."""
    for name, channel in asked.maps:
        check_channel(find_layer(generation, name), channel)
    strongest = k if asked.include_maps else 0
    drawn = [*(layers if strongest else ()), *(generation.layer(name) for name, _ in asked.maps)]
    largest = max((layer.tokens.height * layer.tokens.width * 2 for layer in drawn), default=1)
    most, count = MAX_MAP_BYTES // largest, strongest + len(asked.maps)
    if count > most:
        raise InvalidArgumentError(
            f"maps: {count} maps would make too large a reply; ask for at most {most} of these "
            "layers, those of the strongest channels included."
        )


def _decoded(live: LiveModel, data: bytes) -> Decoded:
    if not data:
        raise InvalidArgumentError("picture is empty; send the bytes of a JPEG or PNG file.")
    if len(data) > MAX_BYTES:
        raise InvalidArgumentError(
            f"picture has {len(data)} bytes; at most {MAX_BYTES} are taken: send it smaller."
        )
    picture = live.decode(data)
    if picture.reason:
        raise InvalidArgumentError(
            f"picture: {picture.reason}; send a whole JPEG, PNG or other picture file."
        )
    return picture


class _Seen:
    """What the layers hold on one picture, from one forward."""

    def __init__(
        self,
        live: LiveModel,
        picture: Decoded,
        layers: Sequence[LayerRecord],
        pooling: Pooling,
        drawn: set[str],
    ) -> None:
        """Keeps all activations of the layers that are `drawn`."""
        self.scores: dict[str, Halves] = {}
        """By layer: (C,)"""
        self.means: dict[str, Halves] = {}
        """By layer: (C,), by which images are near each other."""
        self.activations: dict[str, Halves] = {}
        """By layer: (C, T)"""
        pooled = {layer.name: pooling in layer.poolings for layer in layers}

        def keep(name: str) -> Callable[[Activation], None]:
            def take(activation: Activation) -> None:
                if name in pooled:
                    self.means[name] = activation.scores("mean")[0]
                if pooled.get(name):
                    self.scores[name] = activation.scores(pooling)[0]
                if name in drawn:
                    self.activations[name] = activation.whole(0)

            return take

        live.run([picture], {name: keep(name) for name in {*pooled, *drawn}})


def _maps(layer: LayerRecord, channels: Sequence[int], activations: Halves) -> Maps:
    tokens = layer.tokens
    patches = activations[np.array(channels, np.int64), len(tokens.prefix) :]
    values = patches.reshape(-1, tokens.height, tokens.width)
    return Maps(layer.name, (), channels, values, recomputed=True)
