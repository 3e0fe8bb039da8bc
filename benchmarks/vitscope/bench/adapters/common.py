"""What all adapters share: the task, the model, pictures, clocks, and what a tool's user writes.

An adapter is run twice, `TASK OUT FOLDER`: it indexes into the folder, and starts itself again as a
fresh process that answers from what is there. OUT is JSON with the keys that `peers` reads:

    index           seconds, bytes
    answers         first_seconds, hundredth_seconds
    other_pooling   seconds
    label_filter    seconds
    maps            seconds
    similar         build_seconds, bytes: of what finds similar pictures, where it is apart
    nearest         query_seconds, recall_at_10
    rankings        {"layer|channel": [[row, score], …]}
    ranking_pooling what was pooled
    ranking_note    why they are not those of plain hooks; empty_note: why places are empty
    cannot          {one of the keys above: why}

each of the first with `what`, one sentence on how it is done.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

Json = dict[str, Any]
Ranking = list[list[float]]
T = TypeVar("T")

MEAN = "mean over patch tokens"
LAST = 10
"""Questions of which the last answer is the median."""
MANY = 500
"""Pictures for which starting processes that decode them pays."""


def load_model(task: Json) -> Any:
    """timm's model with the weights of the task's file, float32, in evaluation mode."""
    import timm

    # timm's way to a local file, which resamples position embeddings to the size asked for.
    model = timm.create_model(
        task["model"],
        pretrained=True,
        pretrained_cfg_overlay={"file": task["weights"]},
        **task["model_kwargs"],
    )
    return model.float().eval()


def transform_of(model: Any) -> Callable[[Any], Any]:
    """timm's evaluation transform at the size that the model was built for."""
    import timm.data as data_of

    data: Any = data_of
    config = data.resolve_data_config({}, model=model)
    config["input_size"] = (3, *model.patch_embed.img_size)
    transform: Callable[[Any], Any] = data.create_transform(**config, is_training=False)
    return transform


class Pictures:
    """The pictures as (tensor, number of its label): all of them, or the rows given."""

    def __init__(
        self, task: Json, transform: Callable[[Any], Any], rows: Sequence[int] | None = None
    ) -> None:
        self.rows = list(range(len(task["pictures"]))) if rows is None else list(rows)
        names = sorted(set(task["labels"]))
        self.labels = [names.index(task["labels"][row]) for row in self.rows]
        self.paths = [task["pictures"][row] for row in self.rows]
        self.transform = transform
        self.name = f"{len(self.rows)}-pictures"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as picture:
            return self.transform(picture.convert("RGB")), self.labels[index]


def batches_of(task: Json, pictures: Pictures) -> Any:
    """Batches of (tensors, labels), in order; many pictures are decoded by processes beside."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader
    workers = task["threads"] if len(pictures) >= MANY else 0
    return loader(pictures, batch_size=task["batch_size"], num_workers=workers)


def common_label(task: Json) -> tuple[str, list[int]]:
    """The most common label, and the rows that have it."""
    [(label, _)] = Counter[str](task["labels"]).most_common(1)
    return label, [row for row, other in enumerate(task["labels"]) if other == label]


def best_of(scores: Any, k: int) -> Ranking:
    """The best k of scores (N,), best first, lower rows first among equals."""
    import numpy as np

    values = np.asarray(scores)
    order = np.argsort(-values, kind="stable")[:k]
    return [[int(row), float(values[row])] for row in order]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """How many seconds some work takes, and what it gives."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def pooled(patches: Any, pool: str) -> Any:
    """Scores (B, C) of activations of patches (B, P, C) of a batch, by `mean` or `max`."""
    return patches.mean(1) if pool == "mean" else patches.amax(1)


def table_of(layers: Sequence[str], batches: Iterable[Sequence[Any]], pool: str) -> dict[str, Any]:
    """Scores (N, C) of every layer; batches have activations of patches (B, P, C) of each."""
    import torch

    parts = [[pooled(patches, pool) for patches in batch] for batch in batches]
    whole = zip(*parts, strict=True)
    return {layer: torch.cat(some) for layer, some in zip(layers, whole, strict=True)}


@dataclass(frozen=True)
class Ways:
    """How a tool answers what all are asked, (layer, channel, …)."""

    best: Callable[[str, int], Ranking]
    labelled: Callable[[str, int], Any]
    """The best of the most common label."""
    maps: Callable[[str, int, Sequence[int]], Any]
    """Of pictures, by their rows."""
    other: Callable[[str, int], Any]
    """The best by their maximum."""
    prepare: Callable[[], object] = lambda: None
    """What is not timed, before maps and other poolings are asked for."""


def answers(
    task: Json, ways: Ways, what: Mapping[str, str], asked: Sequence[Any] | None = None
) -> Json:
    """Ask a tool everything, or `asked` alone for rankings; `what` it does for each, by its key."""
    layer, channel = task["questions"][0]
    _settle()
    first, best = timed(lambda: ways.best(layer, channel))
    hundredth, rankings = ask_all(asked or task["questions"], ways.best)
    labelled, _ = timed(lambda: ways.labelled(layer, channel))
    ways.prepare()
    _settle()
    rows = [int(row) for row, _ in best if row >= 0]
    maps, _ = timed(lambda: ways.maps(layer, channel, rows))
    other, _ = timed(lambda: ways.other(layer, channel))
    seconds: Json = {
        "answers": {"first_seconds": first, "hundredth_seconds": hundredth},
        "other_pooling": {"seconds": other},
        "label_filter": {"seconds": labelled},
        "maps": {"seconds": maps},
    }
    return {
        **{key: {**seconds[key], "what": each} for key, each in what.items()},
        "rankings": dict(list(rankings.items())[: task["compared"]]),
        "ranking_pooling": MEAN,
    }


def _settle() -> None:
    """Or a collection of all that was imported, 0.2 s, would fall into some answer."""
    gc.collect()
    gc.freeze()


def answers_of_tables(
    task: Json,
    opened: Callable[[str], Any],
    make: Callable[[], Any],
    what: Mapping[str, str],
) -> Json:
    """Of a tool whose user keeps `opened(layer)`, scores (N, C), and sorts their columns.

    For the rest `make()` gives the tool: its `pictures`, and `patches(layers, pictures)`, which are
    activations (B, P, C) of each, a batch after the other.
    """
    _, labelled = common_label(task)
    k = task["k"]
    made: list[Any] = []

    def maps(layer: str, channel: int, rows: Sequence[int]) -> list[Any]:
        [tool] = made
        some = Pictures(task, tool.pictures.transform, rows)
        return [found[0][:, :, channel] for found in tool.patches([layer], some)]

    def by_maximum(layer: str, channel: int) -> Ranking:
        [tool] = made
        found = table_of([layer], tool.patches([layer], tool.pictures), "max")
        return best_of(found[layer][:, channel], k)

    ways = Ways(
        best=lambda layer, channel: best_of(opened(layer)[:, channel], k),
        labelled=lambda layer, channel: best_of(opened(layer)[labelled, channel], k),
        maps=maps,
        other=by_maximum,
        prepare=lambda: made.append(make()),
    )
    return answers(task, ways, what)


def ask_all(
    questions: Sequence[Any], ask: Callable[[str, int], Ranking]
) -> tuple[float, dict[str, Ranking]]:
    """Seconds of an answer after many others, the median of the last ten; all rankings."""
    rankings: dict[str, Ranking] = {}
    spent = []
    for layer, channel in questions:
        taken, best = timed(partial(ask, layer, channel))
        spent.append(taken)
        rankings[f"{layer}|{channel}"] = best
    return statistics.median(spent[-LAST:]), rankings


def run(
    tools: Sequence[str],
    index: Callable[[Json, Path], Json],
    answer: Callable[[Json, Path], Json],
) -> None:
    """Index in this process, answer in a fresh one, and write OUT."""
    module = sys.modules["__main__"].__spec__.name  # type: ignore[union-attr]
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answer", action="store_true", help="the second process; set by itself")
    args = parser.parse_args()
    task: Json = json.loads(args.task.read_text())
    _share_cores(task["threads"])
    if args.answer:
        result = answer(task, args.folder)
    else:
        versions = {name: importlib.metadata.version(name) for name in (*tools, "torch", "timm")}
        result = {"versions": versions, **index(task, args.folder)}
        with tempfile.TemporaryDirectory() as place:
            second = Path(place) / "answers.json"
            command = [sys.executable, "-m", module, args.task, second, args.folder, "--answer"]
            if code := subprocess.run(command, check=False).returncode:
                raise SystemExit(code)
            answered = json.loads(second.read_text())
        cannot = {**result.get("cannot", {}), **answered.get("cannot", {})}
        result = {**result, **answered, "cannot": cannot}
    args.out.write_text(json.dumps(result))


def _share_cores(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
