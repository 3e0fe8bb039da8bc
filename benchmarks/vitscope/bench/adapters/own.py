"""vitscope, as people use it: `index`, then `open_local`, and a server over loopback beside."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
from vitscope.bench.adapters.common import (
    Json,
    Ranking,
    Ways,
    answers,
    ask_all,
    common_label,
    folder_bytes,
    run,
    timed,
)
from vitscope.bench.servers import served
from vitscope.client import Client, ImageFilter, open_local
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index as run_index
from vitscope.store.generation import open_generation


def index(task: Json, folder: Path) -> Json:
    """Index all layers; the model is loaded, checked and warmed up within that."""
    size = task["model_kwargs"].get("img_size")
    options = Options(
        model=task["model"],
        data=Path(task["data"]),
        out=folder / "index",
        weights=Weights(Path(task["weights"])),
        img_size=(size, size) if size else None,
        batch_size=task["batch_size"],
        threads=task["threads"],
        device="cpu",
        thumbnail_size=0,
    )
    seconds, _ = timed(lambda: run_index(options))
    return {
        "index": {
            "seconds": seconds,
            "bytes": folder_bytes(folder / "index"),
            "what": "scores of every picture for every channel under all poolings, the maps of the "
            "best, statistics, search structures; loading and checking the model counts",
        }
    }


def answer(task: Json, folder: Path) -> Json:
    """Ask what is in the folder, in this process and then by a server."""
    path, k = folder / "index", task["k"]
    label, labelled = common_label(task)
    with ExitStack() as stack:
        opened: list[Client] = []

        def best(layer: str, channel: int, **more: Any) -> Ranking:
            if not opened:
                opened.append(stack.enter_context(open_local(path)))
            found = opened[0].top_images(layer, channel, k=k, **more)
            return [[image.row, image.score] for image in found.images]

        where = ImageFilter(labels=[label])
        ways = Ways(
            best,
            labelled=partial(best, where=where),
            maps=lambda layer, channel, _: opened[0].top_images(layer, channel, k=k, maps=True),
            other=partial(best, pooling="max"),
        )
        what = {
            "answers": "open_local, then one question after the other; a server over loopback "
            "besides",
            "other_pooling": "the same question about the other scores",
            "label_filter": "a filter of the question",
            "maps": "the question with maps, which are kept for the best",
        }
        found = answers(task, ways, what)
        places = places_of(task, path)
        for ranking in found["rankings"].values():
            ranking[:] = [[places[int(row)], score] for row, score in ranking]
        some = best(*task["questions"][0], where=where)
        assert {places[int(row)] for row, _ in some} <= set(labelled)
        found["nearest"] = nearest(opened[0], task, path)
        opened[:] = [stack.enter_context(Client(stack.enter_context(served(path))))]
        best(*task["questions"][0])
        found["answers"]["over_loopback_seconds"], _ = ask_all(task["questions"], best)
    return {
        **found,
        "ranking_note": "scores are rounded to float16 before they rank, the lower row first where "
        "that makes them equal",
    }


def places_of(task: Json, path: Path) -> list[int]:
    """Of every row, which is of the sorted list, in the task's list."""
    numbers = {picture: number for number, picture in enumerate(task["pictures"])}
    rows = open_generation(path).rows
    return [numbers[str(Path(task["data"]) / rows.key(row))] for row in range(len(numbers))]


def nearest(client: Client, task: Json, path: Path) -> Json:
    """Ten similar pictures of some, one after the other."""
    layer, _ = task["questions"][0]
    some = range(min(100, len(task["pictures"])))
    client.similar_images(layer, 0, k=10)
    seconds, _ = timed(lambda: [client.similar_images(layer, row, k=10) for row in some])
    return {
        "query_seconds": seconds / len(some),
        "recall_at_10": open_generation(path).manifest.recall_at_10[layer],
        "what": "similar_images by the scores of a layer",
    }


if __name__ == "__main__":
    run(["vitscope"], index, answer)
