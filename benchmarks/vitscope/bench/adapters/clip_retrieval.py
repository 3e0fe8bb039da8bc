"""clip-retrieval with autofaiss: one vector a picture, and the nearest of them.

It embeds by CLIP alone, so the vectors are made here: the mean over the patches of the model's
last layer, of length 1, in the folders that its own `inference` writes. `clip_index` builds,
`load_index` opens. It has no notion of a layer or a channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from clip_retrieval.clip_back import load_index
from clip_retrieval.clip_index import clip_index

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    batches_of,
    folder_bytes,
    load_model,
    run,
    timed,
    transform_of,
)

QUERIES = 100
_LACKS = ("index", "answers", "other_pooling", "label_filter", "maps")
_WHY = "it has one vector a picture, and no layers, channels or patches"


@torch.no_grad()
def embedded(task: Json) -> Any:
    """Unit vectors (N, C)."""
    model = load_model(task)
    pictures = Pictures(task, transform_of(model))
    parts = [
        model.forward_features(batch)[:, model.num_prefix_tokens :].mean(1)
        for batch, _ in batches_of(task, pictures)
    ]
    found = torch.cat(parts)
    return (found / found.norm(dim=1, keepdim=True)).numpy()


def index(task: Json, folder: Path) -> Json:
    """Build the index over vectors that are there."""
    vectors = embedded(task)
    place = folder / "embeddings"
    for name in ("img_emb", "metadata"):
        (place / name).mkdir(parents=True)
    np.save(place / "img_emb" / "img_emb_0.npy", vectors)
    table = pd.DataFrame({"image_path": task["pictures"], "label": task["labels"]})
    table.to_parquet(place / "metadata" / "metadata_0.parquet")
    (folder / "index").mkdir()
    build, _ = timed(
        lambda: clip_index(str(place), str(folder / "index"), nb_cores=task["threads"])
    )
    return {
        "similar": {
            "build_seconds": build,
            "bytes": folder_bytes(folder / "index"),
            "what": "its index over the mean over patches of the model's last layer; making the "
            "vectors, a forward of all pictures, does not count",
        },
        "cannot": dict.fromkeys(_LACKS, _WHY),
    }


def answer(task: Json, folder: Path) -> Json:
    """Ask for the ten nearest to some of the pictures."""
    vectors = np.load(folder / "embeddings" / "img_emb" / "img_emb_0.npy")
    opened = load_index(str(folder / "index" / "image.index"), enable_faiss_memory_mapping=False)
    some = vectors[:QUERIES]
    opened.search(some[:1], 10)
    seconds, found = timed(
        lambda: [opened.search(query[None], 10)[1][0].tolist() for query in some]
    )
    wanted = np.argsort(-(some @ vectors.T), axis=1, kind="stable")[:, :10]
    hits = [len(set(mine) & set(best)) for mine, best in zip(found, wanted.tolist(), strict=True)]
    return {
        "nearest": {
            "query_seconds": seconds / len(some),
            "recall_at_10": float(np.mean(hits)) / 10,
            "what": "the index is searched, in its process",
        },
    }


if __name__ == "__main__":
    run(["clip-retrieval", "autofaiss"], index, answer)
