"""A Hugging Face data set on disk, as `Dataset.save_to_disk` writes it.

Arrow stream files, memory-mapped and read at random; `state.json` names them in order, and
`dataset_info.json` says which column holds pictures and what the numbers of the labels mean.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.lazy import first_line, pyarrow
from vitscope.indexer.sources.rows import RowListBuilder, Source
from vitscope.indexer.sources.texts import utf8
from vitscope.store.text import counted

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True, slots=True, eq=False)
class ArrowDataset(Source):
    """The row of a picture is its number in the data set; its key, that number and its path."""

    _chunks: Sequence[Any]
    """Arrow arrays of the encoded pictures, one per record batch."""
    _edges: npt.NDArray[np.int64]
    """Chunk i holds the rows between edges i and i + 1."""

    def read(self, row: int) -> bytes:
        """The encoded picture; raises OSError where the data set holds none."""
        row = range(len(self.rows))[row]
        chunk = int(np.searchsorted(self._edges, row, side="right")) - 1
        data = self._chunks[chunk][row - int(self._edges[chunk])].as_py()
        if data is None:
            raise OSError(errno.ENODATA, "the data set holds no bytes of it")
        return bytes(data)


def open_arrow(root: Path, *, limit: int | None = None, split: str | None = None) -> ArrowDataset:
    """List the pictures of the data set at `root`; at most `limit` of them.

    A folder of several splits needs `split`. Raises `SourceError` where the folder is not what
    `save_to_disk` writes, is damaged, or has no column of pictures.
    """
    folder = _of_split(root, split)
    features = _mapping(_json(folder / INFO).get("features"))
    image = _image_column(folder, features)
    label, name_of = _label_column(folder, features)
    rows = RowListBuilder()
    chunks: list[Any] = []
    edges = [0]
    for batch in _batches(folder):
        if limit is not None and len(rows) >= limit:
            break
        part = batch.slice(0, None if limit is None else limit - len(rows))
        data, paths = _pictures(folder, part, image)
        labels = _column(folder, part, label).to_pylist() if label else [None] * len(data)
        _add(rows, data, paths, [name_of(each) for each in labels])
        chunks.append(data)
        edges.append(len(rows))
    if not len(rows):
        raise SourceError(f"The data set {folder} has no rows.")
    return ArrowDataset(rows.freeze(), (), chunks, np.array(edges, np.int64))


def _add(
    rows: RowListBuilder, data: Any, paths: Sequence[str | None], labels: Sequence[str | None]
) -> None:
    """List one record batch; only the lengths of pictures are looked at."""
    lengths = pyarrow("compute").binary_length(data).to_pylist()
    for length, path, label in zip(lengths, paths, labels, strict=True):
        # Paths may occur twice, since `datasets` keeps the file name only.
        number = f"{len(rows):08d}"
        rows.add(f"{number}/{utf8(path)}" if path else number, label, length or 0)


def _of_split(root: Path, split: str | None) -> Path:
    if not (root / SPLITS).is_file():
        own = _json(root / STATE).get("_split")
        if split not in (None, own):
            called = f"is the split {own!r}" if own else "is not divided into splits"
            raise SourceError(f"{root} {called}; leave --split out.")
        return root
    splits = _json(root / SPLITS).get("splits")
    names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    if split is None:
        raise SourceError(f"{root} has the splits {', '.join(names)}; choose one with --split.")
    if split not in names:
        raise SourceError(f"{root} has no split {split!r}; it has {', '.join(names)}.")
    return root / _plain(root, split)


def _batches(folder: Path) -> Iterator[Any]:
    state = _json(folder / STATE)
    if state.get("_indices_data_files"):
        raise SourceError(
            f"{folder} was saved with a selection of rows beside it, as old versions of "
            "`datasets` did; load and save it again with a newer one."
        )
    files = state.get("_data_files")
    for file in files if isinstance(files, list) else []:
        path = folder / _plain(folder, _mapping(file).get("filename"))
        yield from _read_stream(path).to_batches()


def _read_stream(path: Path) -> Any:
    """One data file as a memory-mapped Arrow table."""
    try:
        mapped = pyarrow().memory_map(str(path))
        table = pyarrow("ipc").open_stream(mapped).read_all()
        for field in table.schema:
            _field_names(field)
        # Arrow takes a file that was cut between two batches for a whole one.
        mapped.seek(max(0, mapped.size() - len(_END_OF_STREAM)))
        if mapped.read() != _END_OF_STREAM:
            raise ValueError("it is cut off")
    except (OSError, ValueError, pyarrow().ArrowException) as error:
        raise SourceError(
            f"{path} cannot be read as an Arrow file ({first_line(error)})."
        ) from None
    return table


def _field_names(field: Any) -> list[str]:
    """A column's name and those of its parts; raises UnicodeDecodeError where one is damaged."""
    parts = field.type if pyarrow("types").is_struct(field.type) else ()
    return [field.name, *(part.name for part in parts)]


def _column(folder: Path, batch: Any, name: str) -> Any:
    if batch.schema.names.count(name) != 1:
        count = batch.schema.names.count(name) or "no"
        raise SourceError(f"The data files of {folder} have {count} columns called {name!r}.")
    column = batch.column(name)
    try:
        # A damaged offset would be followed out of the file.
        column.validate(full=True)
    except pyarrow().ArrowException as error:
        raise SourceError(
            f"Column {name!r} of {folder} is damaged ({first_line(error)})."
        ) from None
    return column


def _pictures(folder: Path, batch: Any, name: str) -> tuple[Any, list[str | None]]:
    """The encoded pictures of a record batch as an Arrow array, and their paths."""
    column, types = _column(folder, batch, name), pyarrow("types")
    parts = {}
    if types.is_struct(column.type):
        # Flattening makes the parts of a missing picture missing, too.
        names = [field.name for field in column.type]
        parts = dict(zip(names, column.flatten(), strict=True))
    data, paths = parts.get("bytes"), parts.get("path")
    if data is None or not (types.is_binary(data.type) or types.is_large_binary(data.type)):
        raise SourceError(f"Column {name!r} of {folder} does not hold encoded pictures.")
    if paths is None or not (types.is_string(paths.type) or types.is_large_string(paths.type)):
        return data, [None] * len(data)
    return data, paths.to_pylist()


def _image_column(folder: Path, features: Mapping[str, Any]) -> str:
    names = [name for name, feature in features.items() if _kind(feature) == "Image"]
    if len(names) == 1:
        return names[0]
    if "image" in names:
        return "image"
    found = f"the columns {', '.join(names)} of pictures" if names else "no column of pictures"
    raise SourceError(
        f"The data set {folder} has {found}; vitscope takes the only column with the feature "
        "Image, or the one called `image`."
    )


def _label_column(
    folder: Path, features: Mapping[str, Any]
) -> tuple[str | None, Callable[[Any], str | None]]:
    """The column of class labels, if there is one, and what turns its values into names."""
    found = [name for name, feature in features.items() if _kind(feature) == "ClassLabel"]
    column = "label" if "label" in found else next(iter(found), None) if len(found) == 1 else None
    names = _mapping(features.get(column or "")).get("names")
    if column is None or not isinstance(names, list):
        return None, lambda value: None

    def name_of(value: Any) -> str | None:
        # `datasets` writes -1 for the withheld labels of a test split.
        if value is None or value == -1:
            return None
        if not isinstance(value, int) or not 0 <= value < len(names):
            raise SourceError(
                f"Column {column!r} of {folder} holds the label {value}, "
                f"but the data set names {counted(len(names), 'label')} only."
            )
        return utf8(str(names[value])) or None

    return column, name_of


def _kind(feature: Any) -> Any:
    return _mapping(feature).get("_type")


def _plain(folder: Path, name: Any) -> str:
    """A file name that leads nowhere else."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise SourceError(f"{folder} names the file {name!r}, which does not lie in it.")
    return name


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        raise SourceError(
            f"{path} is missing or damaged; vitscope reads what `Dataset.save_to_disk` writes."
        ) from None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
