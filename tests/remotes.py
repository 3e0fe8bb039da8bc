"""Small indexes to push, and looks behind vitscope's back at what lies in the bucket."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import obstore
from buckets import BUCKET
from obstore.store import S3Store
from runs import files_of
from synthetic import build

from vitscope.store.generation import open_generation
from vitscope.store.publish import publish
from vitscope.store.pull import pull
from vitscope.store.remote import PART
from vitscope.store.verify import verify

LARGE = "faiss/large.faiss"


def grow(index: Path, seed: int) -> str:
    """Publish another generation, some of whose files are those of the one before."""
    return build(index, rows=6, complete=True, seed=seed).generation


def add_large(index: Path) -> str:
    """Publish the same again with a file that is sent in parts; gives the generation's name."""
    generation = open_generation(index)
    staged = Path(shutil.copytree(generation.path, index / "building"))
    (staged / "manifest.json").unlink()
    (staged / LARGE).write_bytes(np.random.default_rng(0).bytes(PART + 17))
    return publish(index, staged, replace(generation.manifest, files={}))


def bucket(url: str) -> S3Store:
    """The place in the bucket, for looks and damage behind vitscope's back."""
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    options = {"allow_http": True}
    return S3Store(BUCKET, prefix=prefix, client_options=options)  # type: ignore[arg-type]


def objects(url: str) -> dict[str, bytes]:
    """All objects below a place, by path."""
    store = bucket(url)
    paths = [meta["path"] for part in obstore.list(store) for meta in part]
    return {path: bytes(obstore.get(store, path).bytes()) for path in paths}


def published(index: Path) -> dict[str, bytes]:
    """The files of the published generation, and its pointer."""
    name = open_generation(index).name
    kept = ("CURRENT", f"generations/{name}/")
    return {path: data for path, data in files_of(index).items() if path.startswith(kept)}


def check_pulled(url: str, out: Path, index: Path) -> None:
    """What is pulled is what `index` has published."""
    pull(url, out)
    assert published(out) == published(index)
    assert verify(out, deep=True).problems == ()
