"""Tiny indexing runs in this process, and what they leave on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options


def tiny(pictures: Path, out: Path, **changes: Any) -> Options:
    """A run of timm's test model on the pictures, four of them a forward and a unit."""
    options = Options(
        model="test_vit",
        data=pictures,
        out=out,
        weights=Weights(random=True),
        img_size=(32, 32),
        top_k=3,
        batch_size=4,
        unit_rows=4,
        threads=1,
    )
    return replace(options, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by path."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
