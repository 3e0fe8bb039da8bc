"""Whole tables as Parquet files, row group by row group."""

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from vitscope.client import tables
from vitscope.client.client import Client
from vitscope.client.commands import _common, _export
from vitscope.client.commands.top_images import ranking, ranking_told
from vitscope.client.errors import UsageError
from vitscope.client.parquet import ParquetTable, parquet_target, require_pyarrow
from vitscope.client.progress import Progress
from vitscope.client.results import Image, Index

_NAMES_AT_ONCE = 20_000
_GROUP_BYTES = 128 << 20
_CALL_BYTES = 64 << 20
"""Scores that one call brings."""


def rows(args: argparse.Namespace) -> None:
    """The row list."""
    with _opened(args) as (client, index, path), _table(path, tables.ROWS, index, {}) as table:
        progress = Progress("images", index.rows)
        for some in _export.in_blocks(range(index.rows), _NAMES_AT_ONCE):
            images = _images(client, args, index, some)
            table.write(tables.image_rows(images).values)
            progress.advance(len(images))
        progress.finish()


def top_images(args: argparse.Namespace) -> None:
    """The top images of channels, a row for each."""
    columns = tables.TOP | (tables.DISTINCT if args.distinct else {})
    asked = ranking(args)
    with _opened(args) as (client, index, path):
        channels = _export.chosen_channels(index, args)
        told = {"layer": args.layer, **ranking_told(args)}
        with _table(path, columns, index, told) as table:
            progress = Progress("channels", len(channels))
            found: list[tables.Table] = []
            waiting = 0
            for some in _export.in_blocks(channels, _export.CHANNELS_AT_ONCE):
                for top in client.top_images_of_channels(args.layer, some, **asked):
                    _export.require_generation(index, top.generation)
                    found += [tables.table(top)] if top.images else []
                    waiting += len(top.images)
                    if waiting >= _NAMES_AT_ONCE:
                        table.write(tables.joined(found).values)
                        found, waiting = [], 0
                progress.advance(len(some))
            if found:
                table.write(tables.joined(found).values)
            progress.finish()


def statistics(args: argparse.Namespace) -> None:
    """Statistics of channels, a row for each."""
    with _opened(args) as (client, index, path):
        channels = _export.chosen_channels(index, args)
        found = client.channel_statistics(
            args.layer, channels, pooling=args.pooling, index=args.index
        )
        _export.require_generation(index, found.generation)
        whole = tables.table(found)
        told = {"layer": args.layer, "pooling": args.pooling}
        with _table(path, whole.columns, index, told) as table:
            table.write(whole.values)


def box_scores(args: argparse.Namespace) -> None:
    """How far channels look at labelled boxes, a row for each."""
    with _opened(args) as (client, index, path):
        channels = _export.chosen_channels(index, args)
        told = {"layer": args.layer, "box_labels": args.of, "filter": _common.filter_told(args)}
        with _table(path, tables.BOXES, index, told) as table:
            progress = Progress("channels", len(channels))
            where = _common.filter_from(args)
            for some in _export.in_blocks(channels, _export.CHANNELS_AT_ONCE):
                found = client.box_scores(
                    args.layer, some, box_labels=args.of, where=where, index=args.index
                )
                _export.require_generation(index, found.generation)
                table.write(tables.table(found).values)
                progress.advance(len(some))
            progress.finish()


def scores(args: argparse.Namespace) -> None:
    """The scores of all images: a row for each, with its key, its label and a column a channel."""
    with _opened(args) as (client, index, path):
        channels = _export.chosen_channels(index, args)
        columns = {"row": "int64", "key": "string", "label": "string"}
        columns |= tables.score_columns(channels)
        # Scores come channel by channel and are written image by image: meanwhile they lie here.
        with _spool(path) as spool:
            _fetch(client, args, index, channels, spool, path)
            told = {"layer": args.layer, "pooling": args.pooling}
            with _table(path, columns, index, told) as table:
                progress = Progress("images", index.rows)
                length = max(1, min(_NAMES_AT_ONCE, _GROUP_BYTES // (2 * len(channels))))
                for some in _export.in_blocks(range(index.rows), length):
                    images = _images(client, args, index, some)
                    names = [[image.key for image in images], [image.label for image in images]]
                    found = [
                        _read(spool, place * index.rows + some[0], len(some))
                        for place in range(len(channels))
                    ]
                    table.write([list(some), *names, *found])
                    progress.advance(len(some))
                progress.finish()


def _fetch(
    client: Client,
    args: argparse.Namespace,
    index: Index,
    channels: list[int],
    spool: IO[bytes],
    path: Path,
) -> None:
    """Write the scores of all channels into `spool`, one channel after the other."""
    progress = Progress("scores of channels", len(channels))
    for some in _export.in_blocks(channels, max(1, _CALL_BYTES // (2 * max(1, index.rows)))):
        length = 0
        for block in client.scores_stream(args.layer, some, pooling=args.pooling, index=args.index):
            _export.require_generation(index, block.generation)
            length += block.values.size
            with _telling(path):
                spool.write(block.values.tobytes())
                spool.flush()
            progress.advance(len(block.channels) if block.first_row == 0 else 0)
        if length != len(some) * index.rows:
            raise UsageError(
                f"The server sent {length:,} scores of {len(some):,} channels on {index.rows:,} "
                "images; export again."
            )
    progress.finish()


def _read(spool: IO[bytes], place: int, count: int) -> NDArray[np.float16]:
    """`count` scores from number `place` on: (count,)."""
    spool.seek(2 * place)
    return np.frombuffer(spool.read(2 * count), np.float16)


@contextmanager
def _spool(path: Path) -> Iterator[IO[bytes]]:
    """A file without a name in the folder of the table, where there is room for it."""
    with ExitStack() as stack:
        with _telling(path):
            spool = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
        yield spool


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"Cannot write beside {path}: {error.strerror}.") from None


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[tuple[Client, Index, Path]]:
    """The client, its index, and the file to write."""
    require_pyarrow()
    path = parquet_target(args.out)
    with _common.connect(args) as client:
        yield client, client.index(args.index), path
    _common.report_written(path)


def _table(
    path: Path, columns: Mapping[str, str], index: Index, told: Mapping[str, object]
) -> ParquetTable:
    return ParquetTable(path, columns, {**_export.described(index), **told})


def _images(
    client: Client, args: argparse.Namespace, index: Index, some: Sequence[int]
) -> list[Image]:
    images = client.images(some, pictures=False, index=args.index)
    _export.require_generation(index, images[0].generation)
    return images
