"""zennit-crp: FeatureVisualization over all layers, read back by activation.

It hooks the layers in a forward and a backward pass and keeps, for each layer and channel, the best
40 pictures by activation and by relevance, and the same once more for every target (here: label).
Its ChannelConcept takes the second dimension for the channels; the small subclass below, which is
how its documentation has one describe other layers, turns tokens and channels round and leaves the
prefix tokens out. Its score is the sum over patches, divided by their number here. No rules of LRP
are given, and the backward pass has no switch. A last batch of one picture would make it fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from crp.attribution import CondAttribution
from crp.concepts import ChannelConcept
from crp.helper import load_maximization, load_statistics
from crp.visualization import FeatureVisualization

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    Ranking,
    Ways,
    answers,
    common_label,
    folder_bytes,
    load_model,
    run,
    timed,
    transform_of,
)


class PatchChannels(ChannelConcept):  # type: ignore[misc]
    """Channels of a layer (B, T, C), over its patch tokens."""

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix

    def reference_sampling(self, relevance: torch.Tensor, *given: Any, **more: Any) -> Any:
        """Rank the pictures of a batch, channels first as the tool wants them."""
        turned = relevance[:, self.prefix :].transpose(1, 2).contiguous()
        return super().reference_sampling(turned, *given, **more)


class Tool:
    """The visualization, and the few lines around it."""

    def __init__(self, task: Json, folder: Path) -> None:
        self.task = task
        self.folder = folder
        self.model = load_model(task)
        self.pictures = Pictures(task, transform_of(self.model))
        self.patches = self.model.patch_embed.num_patches

    def made(self, target: str, layers: Sequence[str]) -> Any:
        """Over layers, by the sum over patches or their maximum."""
        concept = PatchChannels(self.model.num_prefix_tokens)
        return FeatureVisualization(
            CondAttribution(self.model),
            self.pictures,
            {f"{layer}.act": concept for layer in layers},
            max_target=target,
            abs_norm=False,
            path=str(self.folder / target),
        )

    def run(self, made: Any) -> None:
        """Over all pictures."""
        made.run(None, 0, len(self.pictures), self.task["batch_size"])

    def best(self, files: Any, channel: int, scale: int) -> Ranking:
        """From the tool's arrays."""
        rows, values, _ = files
        k = self.task["k"]
        pairs = zip(rows[:k, channel], values[:k, channel], strict=True)
        return [[int(row), float(value) / scale] for row, value in pairs]


def index(task: Json, folder: Path) -> Json:
    """Run it over the pictures, forward and backward."""
    tool = Tool(task, folder)
    made = tool.made("sum", task["layers"])
    seconds, _ = timed(lambda: tool.run(made))
    return {
        "index": {
            "seconds": seconds,
            "bytes": folder_bytes(Path(made.ActMax.PATH)),
            "what": "numbers, values and places of the best 40 of every channel by their sum; as "
            "much again by relevance, and both for every label, is written and not counted",
        }
    }


def answer(task: Json, folder: Path) -> Json:
    """Ask its arrays; run it again for the rest."""
    tool = Tool(task, folder)
    made = tool.made("sum", task["layers"])
    label, _ = common_label(task)
    target = sorted(set(task["labels"])).index(label)

    def best(layer: str, channel: int) -> Ranking:
        files = load_maximization(made.ActMax.PATH, f"{layer}.act")
        return tool.best(files, channel, tool.patches)

    def labelled(layer: str, channel: int) -> Ranking:
        files = load_statistics(made.ActStats.PATH, f"{layer}.act", target)
        return tool.best(files, channel, tool.patches)

    def maps(layer: str, channel: int, rows: Sequence[int]) -> Any:
        data, _ = made.get_data_concurrently(rows, preprocessing=True)
        asked = [{"y": [0]}] * len(rows)
        found = made.attribution(data, asked, record_layer=[f"{layer}.act"])
        return found.activations[f"{layer}.act"][:, tool.model.num_prefix_tokens :, channel]

    def by_maximum(layer: str, channel: int) -> Ranking:
        again = tool.made("max", [layer])
        tool.run(again)
        return tool.best(load_maximization(again.ActMax.PATH, f"{layer}.act"), channel, 1)

    what = {
        "answers": "load_maximization, which maps a layer's arrays anew for every question",
        "other_pooling": "a second run with max_target='max', of the layer asked",
        "label_filter": "load_statistics of the label as target",
        "maps": "the pictures again, forward and backward",
    }
    return answers(task, Ways(best, labelled, maps, by_maximum), what)


if __name__ == "__main__":
    run(["zennit-crp", "zennit"], index, answer)
