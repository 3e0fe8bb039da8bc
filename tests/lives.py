"""A small index of real activations, its pictures and weights, for servers that run the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracle
from pictures import BAD, write_pictures

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.store.generation import Generation, open_generation
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

PICTURES = 9
KEPT, OTHER = "blocks.1.mlp", "blocks.0.mlp"
"""Layers with all activations and with a few maps only."""
LAYERS = (OTHER, KEPT)
SIDE = 10
"""Patches along either side of the grid; one class token goes before them."""


@dataclass(frozen=True)
class LiveIndex:
    """An index made picture by picture, so that a live model meets it to the last bit."""

    path: Path
    pictures: Path
    checkpoint: Path

    @property
    def files(self) -> list[Path]:
        """Picture files in the order of rows; the first ones are bad."""
        return [*(self.pictures / name for name in BAD), *sorted(self._good)]

    @property
    def good_rows(self) -> list[int]:
        """Rows that hold a picture."""
        return list(range(len(BAD), len(BAD) + PICTURES))

    @property
    def _good(self) -> list[Path]:
        return list(self.pictures.glob("class*/*.jpg"))

    @property
    def options(self) -> tuple[str, ...]:
        """What a server needs to run the model on the pictures."""
        return ("--live", "--checkpoint", str(self.checkpoint), "--data", str(self.pictures))

    @cached_property
    def generation(self) -> Generation:
        """What was published."""
        return open_generation(self.path)

    @cached_property
    def truth(self) -> dict[int, dict[str, oracle.Floats]]:
        """By row, the activations (T, C) of every layer, one picture a forward."""
        return dict(zip(self.good_rows, self.activations(self.files[len(BAD) :]), strict=True))

    def activations(self, files: list[Path]) -> list[dict[str, oracle.Floats]]:
        """Activations (T, C) of every layer on pictures of any kind, by plain PyTorch."""
        model = oracle.load("test_vit", self.checkpoint)
        return [
            {name: values[0] for name, values in each.items()}
            for each in oracle.activations(model, files, 1)
        ]

    def kept(self, layer: str, channel: int) -> set[int]:
        """Rows whose maps the index keeps."""
        record = self.generation.layer(layer)
        tops = [self.generation.top(layer, each, channel)[0] for each in record.poolings]
        return set(self.good_rows) if record.dense else {row for top in tops for row in top}


def build_live(folder: Path) -> LiveIndex:
    """Draw pictures, make weights, and index the ones with the others."""
    live = LiveIndex(folder / "live", folder / "pictures", folder / "weights.safetensors")
    write_pictures(live.pictures, PICTURES)
    for name, data in BAD.items():
        (live.pictures / name).write_bytes(data)
    oracle.save_random_model("test_vit", live.checkpoint)
    options = Options(
        device="cpu",
        model="test_vit",
        data=live.pictures,
        out=live.path,
        weights=Weights(live.checkpoint),
        top_k=2,
        batch_size=1,
        unit_rows=4,
        threads=1,
        retain_all=(KEPT,),
    )
    index(options)
    return live


def map_of(activations: oracle.Floats, channel: int) -> npt.NDArray[np.float16]:
    """The map (h, w) of a channel, from activations (T, C)."""
    return activations[1:, channel].astype(np.float16).reshape(SIDE, SIDE)


def values_of(maps: pb.PatchMaps) -> npt.NDArray[np.float16]:
    """Maps (n, h, w) of a reply."""
    return np.frombuffer(maps.values, "<f2").reshape(-1, maps.height, maps.width)


def analyze(stub: ActivationServiceStub, data: bytes, **fields: Any) -> pb.AnalyzeImageResponse:
    """What a server says about an own picture."""
    return stub.AnalyzeImage(pb.AnalyzeImageRequest(picture=data, **fields), timeout=60)
