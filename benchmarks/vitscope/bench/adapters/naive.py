"""What people do without a tool: the model again for every question, or all activations in files.

The name of the folder says which. `again` keeps nothing; `npy` keeps every activation of every
layer as float16 in one .npy file a layer, (images, tokens, channels); `zarr` the same through
zarr-python, with chunks of one image, as a loop that appends image after image would have them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    Ranking,
    Ways,
    answers,
    batches_of,
    best_of,
    common_label,
    folder_bytes,
    load_model,
    pooled,
    run,
    timed,
    transform_of,
)

FEW = 3
"""Questions for which the model runs again; they take as long as one another."""


def activations(model: Any, layers: list[str], batches: Any) -> Iterator[list[torch.Tensor]]:
    """Of all layers, (B, T, C) each, a batch after the other, by hooks."""
    found: dict[str, torch.Tensor] = {}

    def keep(layer: str) -> Callable[..., None]:
        return lambda _module, _given, output: found.__setitem__(layer, output)

    hooks = [
        model.get_submodule(f"{layer}.act").register_forward_hook(keep(layer)) for layer in layers
    ]
    try:
        with torch.inference_mode():
            for pictures, _ in batches:
                model(pictures)
                yield [found[layer] for layer in layers]
    finally:
        for hook in hooks:
            hook.remove()


def prepare(task: Json) -> tuple[Any, Pictures]:
    """The model and its pictures."""
    model = load_model(task)
    return model, Pictures(task, transform_of(model))


def index_nothing(task: Json, folder: Path) -> Json:
    """There is nothing to do before the first question."""
    return {"index": {"seconds": 0.0, "bytes": 0, "what": "nothing is kept"}}


def answer_again(task: Json, folder: Path) -> Json:
    """A forward of everything for each question."""
    model, pictures = prepare(task)
    label, rows = common_label(task)

    def of(rows: Sequence[int]) -> Pictures:
        return Pictures(task, pictures.transform, rows)

    def ranking(layer: str, channel: int, some: Pictures, pool: str = "mean") -> Ranking:
        parts = [
            pooled(values[:, model.num_prefix_tokens :, channel], pool)
            for [values] in activations(model, [layer], batches_of(task, some))
        ]
        return best_of(torch.cat(parts), task["k"])

    ways = Ways(
        best=lambda layer, channel: ranking(layer, channel, pictures),
        labelled=lambda layer, channel: ranking(layer, channel, of(rows)),
        maps=lambda layer, _, rows: [*activations(model, [layer], batches_of(task, of(rows)))],
        other=lambda layer, channel: ranking(layer, channel, pictures, "max"),
    )
    what = {
        "answers": f"a forward of all pictures; median of {FEW}",
        "other_pooling": "a forward of all pictures",
        "label_filter": f"a forward of those labelled {label}",
        "maps": "a forward of the best",
    }
    return answers(task, ways, what, task["questions"][:FEW])


def index_npy(task: Json, folder: Path) -> Json:
    """All activations of all layers, in .npy files."""

    def make(layer: str, shape: tuple[int, ...]) -> Any:
        return np.lib.format.open_memmap(folder / f"{layer}.npy", "w+", np.float16, shape)

    return _index(task, folder, make, "float16 .npy files, one a layer")


def index_zarr(task: Json, folder: Path) -> Json:
    """The same through zarr-python."""

    def make(layer: str, shape: tuple[int, ...]) -> Any:
        path = str(folder / f"{layer}.zarr")
        return zarr.create_array(path, shape=shape, chunks=(1, *shape[1:]), dtype="float16")

    return _index(task, folder, make, "Zarr arrays of zarr-python, a chunk an image")


def _index(task: Json, folder: Path, make: Callable[..., Any], what: str) -> Json:
    model, pictures = prepare(task)
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens

    def write() -> None:
        shape = (len(pictures), tokens, task["channels"])
        arrays = [make(layer, shape) for layer in task["layers"]]
        start = 0
        for found in activations(model, task["layers"], batches_of(task, pictures)):
            for array, values in zip(arrays, found, strict=True):
                array[start : start + len(values)] = values.half().numpy()
            start += len(found[0])
        for array in arrays:
            getattr(array, "flush", lambda: None)()

    seconds, _ = timed(write)
    return {"index": {"seconds": seconds, "bytes": folder_bytes(folder), "what": what}}


def answer_npy(task: Json, folder: Path) -> Json:
    """From memory-mapped files."""
    return _answer(task, lambda layer: np.load(folder / f"{layer}.npy", mmap_mode="r"))


def answer_zarr(task: Json, folder: Path) -> Json:
    """Through zarr-python."""
    return _answer(task, lambda layer: zarr.open_array(str(folder / f"{layer}.zarr"), mode="r"))


def _answer(task: Json, open_layer: Callable[[str], Any]) -> Json:
    prefix = load_model(task).num_prefix_tokens
    k = task["k"]
    _, labelled = common_label(task)

    def maps_of(layer: str, channel: int, rows: Any = slice(None)) -> Any:
        array = open_layer(layer)
        # Of zarr-python, which reads no more chunks than it has to this way.
        some = getattr(array, "oindex", array)[rows, prefix:, channel]
        return np.asarray(some, np.float32)

    ways = Ways(
        best=lambda layer, channel: best_of(maps_of(layer, channel).mean(1), k),
        labelled=lambda layer, channel: best_of(maps_of(layer, channel, labelled).mean(1), k),
        maps=maps_of,
        other=lambda layer, channel: best_of(maps_of(layer, channel).max(1), k),
    )
    way = "the channel of all pictures is read and pooled"
    what = {
        "answers": f"{way}; files in the page cache where they fit",
        "other_pooling": way,
        "label_filter": "the channel of those pictures is read and pooled",
        "maps": "the channel of the best is read",
    }
    note = "activations are rounded to float16 before they are pooled"
    return {**answers(task, ways, what), "ranking_note": note}


WAYS = {
    "again": (index_nothing, answer_again),
    "npy": (index_npy, answer_npy),
    "zarr": (index_zarr, answer_zarr),
}

if __name__ == "__main__":
    way = Path(sys.argv[3]).name
    run(["numpy", "zarr"], *WAYS[way])
