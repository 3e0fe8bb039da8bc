"""vitscope, as people use it: `index`, then `open_local`, and a server over loopback beside."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
from vitscope.bench.adapters.common import (
    MEAN,
    Json,
    Ranking,
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
    """Ask what is in the folder."""
    path, k = folder / "index", task["k"]
    layer, channel = task["questions"][0]
    label, rows = common_label(task)

    def ranking(client: Client, layer: str, channel: int, **more: object) -> Ranking:
        found = client.top_images(layer, channel, k=k, **more)  # type: ignore[arg-type]
        return [[place[image.row], image.score] for image in found.images]

    def first() -> Client:
        client = stack.enter_context(open_local(path))
        client.top_images(layer, channel, k=k)
        return client

    with ExitStack() as stack:
        # Rows are of the sorted list; the task has an order of its own.
        paths = {picture: number for number, picture in enumerate(task["pictures"])}
        first_seconds, client = timed(first)
        generation = open_generation(path)
        table, recall = generation.rows, generation.manifest.recall_at_10
        place = [
            paths[str(Path(task["data"]) / table.key(row))] for row in range(len(task["pictures"]))
        ]
        other, _ = timed(lambda: ranking(client, layer, channel, pooling="max"))
        where = ImageFilter(labels=[label])
        labelled, found = timed(lambda: ranking(client, layer, channel, where=where))
        assert {row for row, _ in found} <= set(rows)
        maps, _ = timed(lambda: client.top_images(layer, channel, k=k, maps=True))
        hundredth, rankings = ask_all(task, lambda *asked: ranking(client, *asked))
        some = range(min(100, len(place)))
        client.similar_images(layer, 0, k=10)
        nearest, _ = timed(lambda: [client.similar_images(layer, row, k=10) for row in some])
        remote = stack.enter_context(Client(stack.enter_context(served(path))))
        ranking(remote, layer, channel)
        over_loopback, _ = ask_all(task, lambda *asked: ranking(remote, *asked))
    return {
        "answers": {
            "first_seconds": first_seconds,
            "hundredth_seconds": hundredth,
            "over_loopback_seconds": over_loopback,
            "what": "open_local, then one question after the other; a server over loopback besides",
        },
        "other_pooling": {"seconds": other, "what": "the same question about the other scores"},
        "label_filter": {"seconds": labelled, "what": "a filter of the question"},
        "maps": {"seconds": maps, "what": "the question with maps, which are kept for the best"},
        "nearest": {
            "query_seconds": nearest / len(some),
            "recall_at_10": recall[layer],
            "what": "similar_images by the scores of a layer",
        },
        "rankings": rankings,
        "ranking_pooling": MEAN,
        "ranking_note": "scores are rounded to float16 before they rank, the lower row first where "
        "that makes them equal",
    }


if __name__ == "__main__":
    run(["vitscope"], index, answer)
