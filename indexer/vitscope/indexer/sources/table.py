"""A list of pictures as a CSV or Parquet file, with labels and boxes where it has any.

Columns: `path`, relative to the list's folder or absolute; `key`, what the picture is called in the
index where that is not its path; `label`; one box in `x0`, `y0`, `x1`, `y1`, or any number in
`boxes` as JSON.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.boxlist import (
    NO_BOXES,
    RowBoxes,
    boxes_from,
    boxes_from_json,
    label_from,
    make_box,
)
from vitscope.indexer.sources.files import file_size, read_file
from vitscope.indexer.sources.lazy import first_line, pyarrow
from vitscope.indexer.sources.rows import RowListBuilder, Source
from vitscope.indexer.sources.texts import Texts, TextsBuilder
from vitscope.store.text import counted

_CORNERS = ("x0", "y0", "x1", "y1")
_COLUMNS = ("path", "key", "label", *_CORNERS, "boxes")
_PARQUET_ROWS = 4096

_Line = tuple[int, Mapping[str, Any]]
"""Number of a line, or of a row of Parquet, and the cells that matter."""


@dataclass(frozen=True, slots=True, eq=False)
class ListedFiles(Source):
    """Rows are in the order of the list; a key is a path as the list has it, or its own."""

    folder: Path
    paths: Texts
    """(N,) as the list has them."""

    def read(self, row: int) -> bytes:
        """The bytes of an image file; raises OSError where it cannot be read."""
        return read_file(self.folder / self.paths[row])


class _CellError(ValueError):
    """A cell that cannot be taken, by column."""

    def __init__(self, column: str, fault: object) -> None:
        super().__init__(f"column {column}: {fault}")


def open_table(path: Path, *, limit: int | None = None) -> ListedFiles:
    """Read the list at `path`, at most `limit` rows of it; the pictures are not opened.

    A path whose file is missing keeps its row. Raises `SourceError`, with line and column, for
    anything in the list that cannot be taken as it stands.
    """
    parquet = path.suffix.lower() == ".parquet"
    word = "row" if parquet else "line"
    rows, paths = RowListBuilder(), TextsBuilder()
    keyed = False
    numbers = array("q")
    for number, cells in _parquet_lines(path) if parquet else _csv_lines(path):
        if limit is not None and len(rows) >= limit:
            break
        try:
            file = _text("path", cells["path"])
            key = _text("key", cells["key"]) if cells.get("key") else file
            rows.add(key, _label(cells), file_size(path.parent / file), _boxes(cells))
        except _CellError as error:
            raise SourceError(f"{path}, {word} {number}, {error}.") from None
        paths.add(file)
        keyed |= key != file
        numbers.append(number)
    if repeated := next(rows.repeated(), None):
        row, first = repeated
        what = "key" if keyed else "path"
        raise SourceError(
            f"{path}, {word} {numbers[row]}, column {what}: it is the {what} of {word} "
            f"{numbers[first]} again; give several boxes of a picture in one column `boxes`."
        )
    if not len(rows):
        raise SourceError(f"{path} lists no pictures.")
    listed = rows.freeze()
    return ListedFiles(listed, (), path.parent, paths.freeze() if keyed else listed.keys)


def _text(column: str, cell: Any) -> str:
    if not isinstance(cell, str) or not cell:
        raise _CellError(column, "there is none")
    try:
        cell.encode()
    except UnicodeEncodeError:
        raise _CellError(column, "it is not UTF-8") from None
    return cell


def _label(cells: Mapping[str, Any]) -> str | None:
    try:
        return label_from(cells.get("label"))
    except ValueError as error:
        raise _CellError("label", error) from None


def _boxes(cells: Mapping[str, Any]) -> RowBoxes:
    if "boxes" in cells:
        cell = cells["boxes"]
        try:
            if cell is None or cell == "":
                return NO_BOXES
            return boxes_from_json(cell) if isinstance(cell, str) else boxes_from(cell)
        except ValueError as error:
            raise _CellError("boxes", error) from None
    given = {name: cells[name] for name in _CORNERS if cells.get(name) not in (None, "")}
    if not given:
        return NO_BOXES
    for name in _CORNERS:
        if name not in given:
            raise _CellError(name, "there is none, but the row has other corners of a box")
    corners = [_number(name, given[name]) for name in _CORNERS]
    try:
        return RowBoxes((make_box(_label(cells), corners),))
    except ValueError as error:
        raise _CellError("x0 to y1", error) from None


def _number(column: str, cell: Any) -> float:
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        raise _CellError(column, f"{str(cell)[:40]!r} is not a number") from None


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse a header that does not say what is what."""
    for name in _COLUMNS:
        if names.count(name) > 1:
            raise SourceError(f"{path} has the column {name} more than once.")
    if "path" not in names:
        shown = ", ".join(names[:20]) or "none"
        raise SourceError(f"{path} has no column `path`; its columns are {shown}.")
    corners = [name for name in _CORNERS if name in names]
    if corners and "boxes" in names:
        raise SourceError(f"{path} has boxes both in the column boxes and in {corners[0]}.")
    if corners and len(corners) < len(_CORNERS):
        missing = next(name for name in _CORNERS if name not in names)
        raise SourceError(f"{path} has a column {corners[0]} but no column {missing}.")


def _csv_lines(path: Path) -> Iterator[_Line]:
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_columns(path, header)
            for cells in reader:
                # A quoted cell may span lines: this is the last one of the row.
                number = reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise SourceError(
                        f"{path}, line {number}: it has {counted(len(cells), 'cell')} under "
                        f"{counted(len(header), 'column')}."
                    )
                pairs = zip(header, cells, strict=True)
                yield number, {name: cell for name, cell in pairs if name in _COLUMNS}
    except OSError as error:
        raise SourceError(f"The list {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise SourceError(f"{path} is not UTF-8 text, somewhere behind line {number}.") from None
    except csv.Error as error:
        raise SourceError(f"{path}, line {number + 1}: it is not CSV ({error}).") from None


def _parquet_lines(path: Path) -> Iterator[_Line]:
    number = 0
    try:
        file = pyarrow("parquet").ParquetFile(path, memory_map=True)
        _check_columns(path, file.schema_arrow.names)
        columns = [name for name in file.schema_arrow.names if name in _COLUMNS]
        for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
            for cells in batch.to_pylist():
                number += 1
                yield number, cells
    except (OSError, ValueError, KeyError, pyarrow().ArrowException) as error:
        raise SourceError(f"{path} cannot be read as Parquet ({first_line(error)}).") from None
