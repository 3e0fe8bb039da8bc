"""Arguments that are found wrong before anything is measured."""

from __future__ import annotations

import argparse
from pathlib import Path


def result(text: str) -> Path:
    """A file that can be written in the end; raises what argparse tells its user."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {path.parent} to write {path.name} to"
        )
    return path


def device(text: str) -> str:
    """A device of this machine; raises what argparse tells its user."""
    from vitscope.indexer.errors import IndexingError
    from vitscope.indexer.job import usable_device

    try:
        return usable_device(text)
    except IndexingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
