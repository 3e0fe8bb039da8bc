"""pyarrow, where it is installed: only some sources need it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vitscope.indexer.errors import SourceError


def pyarrow(module: str = "") -> Any:
    """The package `pyarrow`, or a module of it; raises `SourceError` where it is missing."""
    try:
        return import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise SourceError(
            "Parquet lists and Hugging Face data sets need pyarrow; "
            "install it with `pip install 'vitscope[arrow]'`."
        ) from None


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
