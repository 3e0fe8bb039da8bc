"""What a disk refuses, as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitscope.indexer.errors import OutputError
from vitscope.store.errors import NotWrittenError


@contextmanager
def telling(out: Path) -> Iterator[None]:
    """Raise `OutputError` where something cannot be written in the folder `out`."""
    try:
        yield
    except (OSError, NotWrittenError) as error:
        raise OutputError(
            f"Writing to {out} failed ({_reason(out, error)}); mend that and run the same command "
            "again to go on."
        ) from error


def _reason(out: Path, error: Exception) -> str:
    if not isinstance(error, OSError) or not error.strerror:
        return str(error).rstrip(".")
    if not error.filename or (path := Path(error.filename)) == out:
        return error.strerror
    return f"{error.strerror}: {path.relative_to(out) if path.is_relative_to(out) else path}"
