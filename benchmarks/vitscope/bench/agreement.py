"""Whether the rankings of tools are those of plain hooks.

What is right is found here alone: with the model as timm gives it, hooks of PyTorch, and a sort of
Python. Nothing of it is shared with the adapters, whose answers are held against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import numpy as np
import numpy.typing as npt
import timm
import timm.data as timm_data
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vitscope.bench.record import Json

Scores = npt.NDArray[np.float32]
"""Of one channel, (N,)."""
CLOSE = 2e-3
"""By how much scores may be apart, relative to the greatest: float16 and bfloat16 are kept."""


def model_of(task: Json) -> Any:
    """timm's model with the task's weights, float32, in evaluation mode."""
    model = timm.create_model(
        task["model"],
        pretrained=True,
        pretrained_cfg_overlay={"file": task["weights"]},
        **task["model_kwargs"],
    )
    return model.eval()


def operations(task: Json) -> float:
    """Floating point operations of the forward of one picture."""
    model = model_of(task)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 3, *model.patch_embed.img_size))
    return float(counter.get_total_flops())


def means(task: Json) -> dict[str, Scores]:
    """Means over patches of all pictures, for the questions that are compared."""
    model = model_of(task)
    library: Any = timm_data
    config = library.resolve_data_config({}, model=model)
    config["input_size"] = (3, *model.patch_embed.img_size)
    transform = library.create_transform(**config, is_training=False)
    asked = task["questions"][: task["compared"]]
    found: dict[str, list[float]] = {f"{layer}|{channel}": [] for layer, channel in asked}

    def hook(layer: str) -> Any:
        channels = sorted({channel for other, channel in asked if other == layer})

        def note(_module: Any, _given: Any, output: torch.Tensor) -> None:
            for channel in channels:
                patches = output[0, model.num_prefix_tokens :, channel].double()
                found[f"{layer}|{channel}"].append(float(patches.mean()))

        return note

    for layer in {layer for layer, _ in asked}:
        model.get_submodule(f"{layer}.act").register_forward_hook(hook(layer))
    with torch.inference_mode():
        for path in task["pictures"]:
            with Image.open(path) as picture:
                model(transform(picture.convert("RGB"))[None])
    return {key: np.array(values, np.float32) for key, values in found.items()}


def agreement(found: Mapping[str, Json], truth: Mapping[str, Scores]) -> Iterator[str]:
    """A line for each tool that has rankings, on those of a channel `LAYER|CHANNEL`."""
    for name, each in found.items():
        judged = [judge(ranking, truth[key]) for key, ranking in each.get("rankings", {}).items()]
        if judged:
            yield _line(name, each, judged)


def _line(name: str, each: Json, judged: Sequence[Judged]) -> str:
    same, close, empty, negative = (
        sum(getattr(one, what) for one in judged) for what in ("same", "close", "empty", "negative")
    )
    farthest = max(one.farthest for one in judged)
    line = (
        f"**{name}**, {each['ranking_pooling']}: {same} of {len(judged)} rankings are those of "
        f"plain hooks, {close} up to ties within {CLOSE:g} of the greatest score; scores differ by "
        f"{farthest:.1e} of it at most."
    )
    if empty:
        line += f" It leaves {empty} places empty; in {negative} belongs a negative score."
    why = [
        each[note]
        for note, holds in (("ranking_note", same < len(judged)), ("empty_note", empty > 0))
        if holds and note in each
    ]
    return line + (f" Why: {'; '.join(why)}." if why else "")


@dataclass(frozen=True)
class Judged:
    """A ranking beside that of plain hooks."""

    same: bool
    """Row by row."""
    close: bool
    """Place by place as good: another row only where its score is as near as precision leaves."""
    empty: int
    """Places without a row."""
    negative: int
    """Of these, in how many a negative score belongs."""
    farthest: float
    """By how much scores differ, of the greatest."""


def judge(ranking: Sequence[Sequence[float]], scores: Scores) -> Judged:
    """A tool's (row, score), best first, -1 for none, beside scores (N,) of all pictures."""
    given = [(int(row), score) for row, score in ranking if row >= 0]
    rows = [row for row, _ in given]
    # Lower rows first among equals.
    best = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[: len(ranking)]
    scale = float(np.abs(scores).max()) or 1.0
    off = np.array([score for _, score in given]) - scores[rows]
    gap = scores[rows] - scores[best][: len(rows)]
    return Judged(
        same=rows == best,
        close=len(set(rows)) == len(best) and float(np.abs(gap).max(initial=0)) <= CLOSE * scale,
        empty=len(best) - len(rows),
        negative=int((scores[best][len(rows) :] < 0).sum()),
        farthest=float(np.abs(off).max(initial=0)) / scale,
    )
