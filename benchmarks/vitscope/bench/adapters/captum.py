"""captum: LayerActivation over all layers at once, and its AV store for what is kept on disk.

It ranks nothing. LayerActivation gives the activations of a batch at a list of layers; the AV
class, in which its concept and influence modules keep activations, writes and reads a tensor file
for each layer and batch. Its generate_dataset_activations would write every token's value, as dense
.npy files do; here one line pools a batch before AV.save, and a sort of what was loaded answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from captum._utils.av import AV
from captum.attr import LayerActivation
from torch.utils.data import DataLoader

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    answers_of_tables,
    batches_of,
    folder_bytes,
    load_model,
    pooled,
    run,
    timed,
    transform_of,
)


class Tool:
    """The attribution, and the few lines around it."""

    def __init__(self, task: Json, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.model = load_model(task)
        self.pictures = Pictures(task, transform_of(self.model))

    def patches(self, layers: list[str], pictures: Pictures) -> Any:
        """Activations of patches (B, P, C) of every layer, a batch after the other."""
        modules = [self.model.get_submodule(f"{layer}.act") for layer in layers]
        # Of a list of one it makes a mistake.
        activation = LayerActivation(self.model, modules if len(modules) > 1 else modules[0])
        for batch, _ in batches_of(self.task, pictures):
            found = activation.attribute(batch)
            some = found if isinstance(found, list) else [found]
            yield [each[:, self.model.num_prefix_tokens :] for each in some]

    def keep(self) -> None:
        """Pool all layers in one pass, and save them."""
        layers = self.task["layers"]
        for number, found in enumerate(self.patches(layers, self.pictures)):
            kept = [pooled(each, "mean") for each in found]
            AV.save(str(self.folder), self.task["model"], "mean", layers, kept, str(number))


def load(task: Json, folder: Path, layer: str) -> torch.Tensor:
    """Pooled activations (N, C) of a layer."""
    kept: Any = AV.load(str(folder), task["model"], "mean", layer)
    # Iterated by itself it ends in an error.
    return torch.cat(list(DataLoader(kept, batch_size=None)))


def index(task: Json, folder: Path) -> Json:
    """Pool and keep."""
    tool = Tool(task, folder)
    seconds, _ = timed(tool.keep)
    what = "one number a picture, layer and channel: their mean, in a file a layer and batch"
    return {"index": {"seconds": seconds, "bytes": folder_bytes(folder), "what": what}}


def answer(task: Json, folder: Path) -> Json:
    """Sort columns of what was kept; run the model for the rest."""
    layers: dict[str, torch.Tensor] = {}

    def opened(layer: str) -> torch.Tensor:
        if layer not in layers:
            layers[layer] = load(task, folder, layer)
        return layers[layer]

    what = {
        "answers": "AV.load of a layer, which then stays in memory, one column sorted by its user",
        "other_pooling": "all pictures again, the layer asked",
        "label_filter": "rows of the layer; it knows no labels",
        "maps": "LayerActivation of the pictures",
    }
    return answers_of_tables(task, opened, lambda: Tool(task, folder), what)


if __name__ == "__main__":
    run(["captum"], index, answer)
