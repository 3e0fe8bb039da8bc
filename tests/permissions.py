"""Folders and files that this process may not read or write, also where it is root's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def public_folder() -> Iterator[Path]:
    """An empty folder that everybody may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def powerless() -> Iterator[None]:
    """As a user whom permissions bind."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def locked(path: Path, mode: int = 0) -> Iterator[None]:
    """With no more than the permissions `mode` on `path`, as `powerless`."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with powerless():
            yield
    finally:
        path.chmod(before)


def give_away(folder: Path) -> Path:
    """Make `folder` and all in it the property of the user that `powerless` is; gives it back."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY)
    return folder
