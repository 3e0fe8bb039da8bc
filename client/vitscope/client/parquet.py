"""Tables as Parquet files, written whole or not at all; needs pyarrow, the extra `arrow`."""

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vitscope.client.errors import UsageError
from vitscope.client.files import partial_beside

Columns = Mapping[str, str]
"""Names and types, as pyarrow calls these: `int32`, `int64`, `halffloat`, `double`, `string`, …"""


def require_pyarrow() -> None:
    """Raise `ModuleNotFoundError` where pyarrow is not there, before anything is asked."""
    importlib.import_module("pyarrow.parquet")


def parquet_target(name: str) -> Path:
    """`name` as a Parquet file that can be written, or the reason why not."""
    path = Path(name)
    if path.suffix.lower() != ".parquet":
        raise UsageError(f"--out names a Parquet file; {name!r} must end in .parquet.")
    try:
        if not path.parent.is_dir():
            raise UsageError(f"The folder of {name} does not exist; make {path.parent} first.")
        if path.is_dir():
            raise UsageError(f"{name} is a folder; name a file for --out.")
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"Cannot write {name}: {error.strerror}.") from None
    return path


class ParquetTable:
    """A file that takes the place of `path` once the block ends well.

    with ParquetTable(path, {"row": "int64", "score": "halffloat"}, {"layer": name}) as table:
        table.write([rows, scores])  # one row group

    `metadata` goes into the schema as JSON under the key `vitscope`.
    """

    def __init__(self, path: Path, columns: Columns, metadata: Mapping[str, object]) -> None:
        import pyarrow
        from pyarrow import parquet

        self._arrow = pyarrow
        fields = [
            pyarrow.field(name, getattr(pyarrow, _MAKERS[kind])()) for name, kind in columns.items()
        ]
        self._schema = pyarrow.schema(
            fields, {"vitscope": json.dumps(metadata, ensure_ascii=False)}
        )
        self._path = path
        self._partial = partial_beside(path)
        # A dictionary of scores is longer than the scores.
        texts = [name for name, kind in columns.items() if kind == "string"]
        try:
            self._writer = parquet.ParquetWriter(
                self._partial, self._schema, compression="zstd", use_dictionary=texts
            )
        except OSError as error:
            raise UsageError(f"Cannot write {path}: {_reason(error)}.") from None

    def write(self, columns: Sequence[Any]) -> None:
        """Write one row group of a column each: NumPy arrays, or lists with None for nothing."""
        arrays = [
            self._arrow.array(values, type=field.type)
            for values, field in zip(columns, self._schema, strict=True)
        ]
        try:
            self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        except OSError as error:
            raise UsageError(f"Cannot write {self._path}: {_reason(error)}.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._partial.replace(self._path)
        except OSError as failure:
            if kind is None:
                raise UsageError(f"Cannot write {self._path}: {_reason(failure)}.") from None
        finally:
            self._partial.unlink(missing_ok=True)


_MAKERS = {
    "bool": "bool_",
    "int32": "int32",
    "int64": "int64",
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "string": "string",
}


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else "the file system refused"
