"""The same pictures laid out as every kind of source, for tests."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, slots=True)
class Item:
    """One picture and what is known of it."""

    name: str
    """Path below a folder, such as `fox/3.jpg`."""
    data: bytes
    label: str
    boxes: tuple[tuple[float, float, float, float], ...] = ()


def write_folder(root: Path, items: Iterable[Item]) -> Path:
    """ImageFolder layout."""
    for item in items:
        path = root / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.data)
    return root


def tar_bytes(
    files: Iterable[tuple[str | tarfile.TarInfo, bytes]], *, form: int = tarfile.PAX_FORMAT
) -> bytes:
    """An archive of files by name; a `TarInfo` in place of a name is written as it is."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def write_tars(folder: Path, items: Sequence[Item], shards: int) -> Path:
    """Shards of samples: the picture, its label as text or in JSON by turns, its boxes in JSON."""
    folder.mkdir(parents=True)
    size = -(-len(items) // shards)
    for shard in range(shards):
        files: list[tuple[str | tarfile.TarInfo, bytes]] = []
        for number, item in enumerate(items[shard * size : (shard + 1) * size]):
            stem = f"{shard:02d}{number:04d}"
            files.append((f"{stem}{Path(item.name).suffix}", item.data))
            body: dict[str, Any] = {"boxes": item.boxes}
            if number % 2:
                files.append((f"{stem}.cls", f"{item.label}\n".encode()))
            else:
                body["label"] = item.label
            files.append((f"{stem}.json", json.dumps(body).encode()))
        (folder / f"shard-{shard:06d}.tar").write_bytes(tar_bytes(files))
    return folder


def write_csv(path: Path, items: Iterable[Item]) -> Path:
    """A list beside the pictures."""
    lines = ["path,label,boxes"]
    for item in items:
        boxes = json.dumps(item.boxes).replace('"', '""')
        lines.append(f'{item.name},{item.label},"{boxes}"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A Parquet file of these columns."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(dict(columns)), path)
    return path


def dataset(items: Sequence[Item]) -> Any:
    """A Hugging Face data set with a picture and a class label, made by the real library."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    names = sorted({item.label for item in items})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": item.data, "path": item.name} for item in items],
            "label": [names.index(item.label) for item in items],
        },
        features=features,
    )
