"""Tiny indexing runs, as options and as a command, and what they leave on the disk."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pictures import BAD, write_pictures

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options


def tiny(pictures: Path, out: Path, **changes: Any) -> Options:
    """A run of timm's test model on the pictures, four of them a forward and a unit."""
    options = Options(
        device="cpu",
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


def write_mixed(folder: Path, rows: int) -> None:
    """Pictures and bad files, `rows` together."""
    write_pictures(folder, rows - len(BAD))
    for name, data in BAD.items():
        (folder / name).write_bytes(data)


def keeping(pictures: Path, out: Path) -> Options:
    """`tiny`, with everything kept that can be, of one layer each."""
    return tiny(pictures, out, retain_all=("blocks.1.mlp",), retain_prefix=("blocks.0.mlp",))


def keeping_line(pictures: Path, out: Path, *more: str) -> list[str]:
    """The same, as a command."""
    return f"index --model test_vit --random-weights --img-size 32 --top-k 3 --batch-size 4 \
--unit-rows 4 --threads 1 --retain-all blocks.1.mlp --retain-prefix blocks.0.mlp \
--data {pictures} --out {out} {' '.join(more)}".split()


def open_files(process: int) -> list[str]:
    """What a process has open; nothing where it is gone."""
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(entry))
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by path."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
