"""What the index did not keep of its own pictures, from the live model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from vitscope.server.errors import InvalidArgumentError, NotKeptHereError
from vitscope.server.going import check_caller
from vitscope.server.queries.model import Activation, Decoded, Halves, LiveModel
from vitscope.store.generation import Generation

MAX_ROWS = 256
"""Pictures that one request may have run again."""

Wanted = tuple[str, int, int]
"""A map, by layer, channel and row."""


class Recomputed:
    """Maps of several images, computed when first asked for, all of an image in one forward."""

    def __init__(
        self,
        generation: Generation,
        live: LiveModel,
        wanted: Sequence[Wanted],
        fields: Mapping[int, str],
    ) -> None:
        """Raises `InvalidArgumentError` where they are of too many images.

        `fields` says where the request has a row.
        """
        rows = list(dict.fromkeys(row for _, _, row in wanted))
        if len(rows) > MAX_ROWS:
            raise InvalidArgumentError(
                f"maps: {len(rows)} rows have maps that were not kept, and the live model computes "
                f"those of at most {MAX_ROWS} at a time; ask for fewer rows."
            )
        self._generation = generation
        self._live = live
        self._fields = fields
        size = live.batch_size
        self._batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        self._batch_of = {row: place // size for place, row in enumerate(rows)}
        self._wanted: list[list[Wanted]] = [[] for _ in self._batches]
        for each in dict.fromkeys(wanted):
            self._wanted[self._batch_of[each[2]]].append(each)
        self._found: dict[Wanted, Halves] = {}

    def batch(self, row: int) -> int:
        """In which of its forwards the image of `row` is, from 0."""
        return self._batch_of[row]

    def map(self, wanted: Wanted) -> Halves:
        """The map (H, W), as float16."""
        if wanted not in self._found:
            self._compute(self._batch_of[wanted[2]])
        return self._found[wanted]

    def _compute(self, batch: int) -> None:
        check_caller()
        rows = self._batches[batch]
        pictures = [
            picture_of(self._generation, self._live, row, self._fields[row]) for row in rows
        ]
        by_layer: dict[str, list[Wanted]] = {}
        for each in self._wanted[batch]:
            by_layer.setdefault(each[0], []).append(each)
        place = {row: number for number, row in enumerate(rows)}
        take = {name: partial(self._take, mine, place) for name, mine in by_layer.items()}
        self._live.run(pictures, take)

    def _take(self, mine: list[Wanted], place: dict[int, int], activation: Activation) -> None:
        pictures = np.array([place[row] for _, _, row in mine], np.int64)
        channels = np.array([channel for _, channel, _ in mine], np.int64)
        tokens = self._generation.layer(mine[0][0]).tokens
        maps = activation.pairs(pictures, channels)[:, len(tokens.prefix) :]
        shaped = maps.reshape(-1, tokens.height, tokens.width)
        self._found.update(zip(mine, shaped, strict=True))


def activations_of(
    generation: Generation, live: LiveModel, row: int, layers: Sequence[str]
) -> dict[str, Halves]:
    """All activations (C, T) of an image, of several layers in one forward."""
    found: dict[str, Halves] = {}

    def keep(name: str) -> Callable[[Activation], None]:
        return lambda activation: found.update({name: activation.whole(0)})

    live.run([picture_of(generation, live, row)], {name: keep(name) for name in layers})
    return found


def picture_of(generation: Generation, live: LiveModel, row: int, field: str = "row") -> Decoded:
    """The picture of a valid row; raises where it is not the one that was indexed any more."""
    try:
        picture = live.decode(live.read(row))
    except OSError as error:
        raise NotKeptHereError(
            f"{field}: the picture of row {row} cannot be read again "
            f"({error.strerror or 'damaged'}); restore it where the server was told to "
            "find it (--data)."
        ) from None
    if picture.sha256 != generation.rows.record(row).sha256 or picture.reason:
        raise NotKeptHereError(
            f"{field}: the picture of row {row} is not the one that was indexed any more; restore "
            "it where the server was told to find it (--data)."
        )
    return picture
