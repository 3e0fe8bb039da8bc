"""thingsvision: outputs of all modules in one pass, pooled by its user, one .npy file a module.

`batch_extraction(module_names=…)` is its documented way to several modules at once and to anything
that is done to their outputs; here one line, the mean over patches, and `save_features`. Its stock
`extract_features(…, output_dir=…)` keeps every token of every module, as dense .npy files do.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import torch
from thingsvision import get_extractor_from_model
from thingsvision.utils.storing import save_features

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    answers_of_tables,
    batches_of,
    folder_bytes,
    load_model,
    run,
    table_of,
    timed,
    transform_of,
)


class Tool:
    """The extractor, and the few lines around it."""

    def __init__(self, task: Json) -> None:
        self.task = task
        model = load_model(task)
        self.prefix = model.num_prefix_tokens
        transform = transform_of(model)
        self.pictures = Pictures(task, transform)
        with quiet():
            self.extractor = get_extractor_from_model(
                model=model, device="cpu", backend="pt", preprocess=transform
            )

    def patches(self, layers: list[str], pictures: Pictures) -> Iterator[list[torch.Tensor]]:
        """Activations of patches (B, P, C) of every layer, a batch after the other."""
        names = [f"{layer}.act" for layer in layers]
        with self.extractor.batch_extraction(module_names=names, output_type="tensor") as tool:
            for batch, _ in batches_of(self.task, pictures):
                found = tool.extract_batch(batch=batch, flatten_acts=False)
                # Of a single module it gives the tensor itself.
                some = [found[name] for name in names] if isinstance(found, dict) else [found]
                yield [each[:, self.prefix :] for each in some]


def quiet() -> contextlib.AbstractContextManager[object]:
    """What the tool prints goes where errors go."""
    return contextlib.redirect_stdout(sys.stderr)


def index(task: Json, folder: Path) -> Json:
    """Pool all layers in one pass, and save them."""
    tool, layers = Tool(task), task["layers"]

    def write() -> None:
        found = table_of(layers, tool.patches(layers, tool.pictures), "mean")
        for layer, values in found.items():
            with quiet():
                save_features(values.numpy(), out_path=str(folder / layer), file_format="npy")

    seconds, _ = timed(write)
    what = "one number a picture, layer and channel: their mean, in a .npy file a layer"
    return {"index": {"seconds": seconds, "bytes": folder_bytes(folder), "what": what}}


def answer(task: Json, folder: Path) -> Json:
    """Sort columns of the files; run the model for the rest."""

    def opened(layer: str) -> Any:
        return np.load(folder / layer / "features.npy", mmap_mode="r")

    what = {
        "answers": "a layer's file is mapped into memory, one column sorted by its user",
        "other_pooling": "all pictures again, the layer asked",
        "label_filter": "rows of the file; it knows no labels",
        "maps": "the pictures again",
    }
    return answers_of_tables(task, opened, lambda: Tool(task), what)


if __name__ == "__main__":
    run(["thingsvision"], index, answer)
