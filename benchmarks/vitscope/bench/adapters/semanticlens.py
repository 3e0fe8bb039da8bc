"""semanticlens: its ActivationComponentVisualizer over all layers, with its cache on disk.

It hooks the layers, pools every activation with an aggregator and keeps, for every channel, the
numbers and (bfloat16) values of the best n pictures, one safetensors file a layer. Its own
aggregators for transformers pool all tokens; those below leave prefix tokens out, as its
documentation has one write a named function for any other pooling. It finds its files again by n,
the aggregator's name and those of model and data set. It begins from zeros, so that pictures whose
pooled value is negative are never among the best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from semanticlens.component_visualization import ActivationComponentVisualizer
from semanticlens.component_visualization.activation_caching import ActCache

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    Ranking,
    Ways,
    answers,
    batches_of,
    common_label,
    folder_bytes,
    load_model,
    pooled,
    run,
    timed,
    transform_of,
)


class Tool:
    """The visualizer, and the few lines around it."""

    def __init__(self, task: Json, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.model = load_model(task)
        self.model.name = task["model"]
        self.pictures = Pictures(task, transform_of(self.model))
        prefix = self.model.num_prefix_tokens

        def patch_mean(tensor: torch.Tensor) -> Any:
            return pooled(tensor[:, prefix:], "mean").detach().cpu()

        def patch_max(tensor: torch.Tensor) -> Any:
            return pooled(tensor[:, prefix:], "max").detach().cpu()

        self.means, self.maxima = patch_mean, patch_max

    def visualizer(
        self, pool: Callable[..., Any], layers: list[str], pictures: Pictures | None = None
    ) -> Any:
        """It has run over layers, or found that it had."""
        some = pictures or self.pictures
        found = ActivationComponentVisualizer(
            self.model,
            some,
            some,
            layer_names=[f"{layer}.act" for layer in layers],
            num_samples=self.task["k"],
            aggregate_fn=pool,
            cache_dir=str(self.folder),
        )
        found.run(batch_size=self.task["batch_size"])
        return found

    def maps(self, layer: str, channel: int, rows: Sequence[int]) -> list[torch.Tensor]:
        """Of all patches, by the tool's hook."""
        name = f"{layer}.act"
        found = []
        some = Pictures(self.task, self.pictures.transform, rows)
        for batch, _ in batches_of(self.task, some):
            cache = ActCache([name])
            with torch.no_grad(), cache.hook_context(self.model):
                self.model(batch)
            found.append(cache.cache[name][:, self.model.num_prefix_tokens :, channel])
        return found


def best_of(visualizer: Any, layer: str, channel: int) -> Ranking:
    """As the tool gives them; empty places have row -1."""
    name = f"{layer}.act"
    rows = visualizer.get_max_reference(name)[channel]
    scores = visualizer.actmax_cache[name].activations[channel]
    return [[int(row), float(score)] for row, score in zip(rows, scores, strict=True)]


def index(task: Json, folder: Path) -> Json:
    """Run it over the pictures."""
    tool = Tool(task, folder)
    seconds, _ = timed(lambda: tool.visualizer(tool.means, task["layers"]))
    what = f"numbers and values of the best {task['k']} of every channel under one pooling"
    return {"index": {"seconds": seconds, "bytes": folder_bytes(folder), "what": what}}


def answer(task: Json, folder: Path) -> Json:
    """Ask its cache; run it again for the rest."""
    tool = Tool(task, folder)
    label, rows = common_label(task)
    opened: list[Any] = []

    def best(layer: str, channel: int) -> Ranking:
        if not opened:
            opened.append(tool.visualizer(tool.means, task["layers"]))
        return best_of(opened[0], layer, channel)

    def labelled(layer: str, channel: int) -> Ranking:
        some = Pictures(task, tool.pictures.transform, rows)
        some.name = f"label-{label}"
        return best_of(tool.visualizer(tool.means, [layer], some), layer, channel)

    def by_maximum(layer: str, channel: int) -> Ranking:
        return best_of(tool.visualizer(tool.maxima, [layer]), layer, channel)

    what = {
        "answers": "its files of all layers are loaded (and the model, which does not count)",
        "other_pooling": "a second run with another aggregator, of the layer asked",
        "label_filter": "a run over those pictures, of the layer asked: only the best are kept",
        "maps": "a forward of the pictures under its hook",
    }
    return {
        **answers(task, Ways(best, labelled, tool.maps, by_maximum), what),
        "ranking_note": "it keeps bfloat16",
        "empty_note": "it begins from zeros, so that no picture with a negative mean is among the "
        "best, and means of a GELU often are",
    }


if __name__ == "__main__":
    run(["semanticlens"], index, answer)
