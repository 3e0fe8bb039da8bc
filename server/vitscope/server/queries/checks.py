"""What has to be true of a request before it is answered; each refusal names its field."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from vitscope.server.errors import InvalidArgumentError, NotFoundError, NotKeptHereError
from vitscope.store.errors import NotKeptError
from vitscope.store.generation import Generation
from vitscope.store.geometry import Rectangle
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.text import counted

_T = TypeVar("_T")

DEFAULT_K = 20
MAX_K = 10_000


def find_index(indexes: Mapping[str, _T], name: str, field: str = "index") -> _T:
    """The index called `name`; an empty name means the only one. `field` is where it is named."""
    if name in indexes:
        return indexes[name]
    if not name and len(indexes) == 1:
        return next(iter(indexes.values()))
    known = ", ".join(sorted(indexes))
    if not name:
        raise InvalidArgumentError(f"{field} is not given, and there are several: {known}.")
    raise NotFoundError(f"{field}: there is no index {name[:80]!r}; this server holds: {known}.")


def find_layer(generation: Generation, name: str, field: str = "layer") -> LayerRecord:
    """The layer called `name`; `field` is where the request has it."""
    if not name:
        raise InvalidArgumentError(f"{field} is empty; name one, such as blocks.0.mlp.")
    try:
        return generation.layer(name)
    except NotKeptError as error:
        raise NotFoundError(f"{field}: {error}") from None


def find_layers(generation: Generation, names: Sequence[str]) -> list[LayerRecord]:
    """The layers called so, each once, in the order of execution; all where none is named."""
    if not names:
        return list(generation.manifest.layers)
    for name in names:
        if not name:
            raise InvalidArgumentError(
                "layers has an empty name; name layers such as blocks.0.mlp, or none for all."
            )
    found = {find_layer(generation, name, "layers").name for name in names}
    return [layer for layer in generation.manifest.layers if layer.name in found]


def check_channel(layer: LayerRecord, channel: int, field: str = "channel") -> None:
    """Raise unless the layer has the channel."""
    if not 0 <= channel < layer.channels:
        raise NotFoundError(
            f"{field}: {layer.name} has no channel {channel}; "
            f"it has channels 0 to {layer.channels - 1}."
        )


def check_channels(layer: LayerRecord, channels: Sequence[int]) -> Sequence[int]:
    """The channels, if the layer has them; all where none is given."""
    if len(channels) > layer.channels:
        raise InvalidArgumentError(
            f"channels has {len(channels)} entries; {layer.name} has "
            f"{counted(layer.channels, 'channel')}, and none at all asks for all of them."
        )
    for channel in channels:
        check_channel(layer, channel, "channels")
    return channels or range(layer.channels)


def check_pooling(layer: LayerRecord, pooling: Pooling, field: str = "pooling") -> None:
    """Raise unless the layer has scores by the pooling."""
    if pooling not in layer.poolings:
        raise NotKeptHereError(
            f"{field}: {layer.name} has no {pooling} pooling; "
            f"it has {' and '.join(layer.poolings)}."
        )


def check_row(generation: Generation, row: int, field: str = "row") -> None:
    """Raise unless `row` is in the row list."""
    rows = generation.manifest.rows
    if not 0 <= row < rows:
        raise NotFoundError(f"{field}: there is no row {row}; the index has rows 0 to {rows - 1}.")


def check_valid(generation: Generation, row: int, field: str = "row") -> None:
    """Raise unless `row` is in the row list and holds a readable image."""
    check_row(generation, row, field)
    if not generation.rows.valid[row]:
        raise NotKeptHereError(
            f"{field}: row {row} is an invalid image ({generation.rows.record(row).reason})."
        )


def view_of(generation: Generation, row: int, field: str = "row") -> Rectangle:
    """What of its picture a valid row shows; raises where the index does not tell."""
    view = generation.rows.view(row)
    if view is None:
        raise NotKeptHereError(
            f"{field}: this index, of an older format, does not tell what of a picture the model "
            "saw; index anew."
        )
    return view


def check_k(
    k: int | None,
    most: int,
    what: str,
    *,
    field: str = "k",
    usual: int = DEFAULT_K,
    least: int = 1,
) -> int:
    """How many to give: `k` or as many as is usual, of `most` that there are."""
    most = min(most, MAX_K)
    if k is None:
        return min(usual, most)
    if k < least:
        raise InvalidArgumentError(f"{field} is {k}; it must be at least {least}.")
    if k > most:
        there = f"there {'is' if most == 1 else 'are'} {counted(most, what)}"
        reason = there if most < MAX_K else f"at most {MAX_K} are returned"
        raise InvalidArgumentError(f"{field} is {k}, but {reason}.")
    return k


def check_patch(layer: LayerRecord, y: int, x: int) -> None:
    """Raise unless the layer's grid has the patch."""
    tokens = layer.tokens
    if not (0 <= y < tokens.height and 0 <= x < tokens.width):
        raise NotFoundError(
            f"patch: {layer.name} has no patch {y}, {x}; its grid has "
            f"{tokens.height} x {tokens.width}."
        )


def check_rectangle(rectangle: Rectangle) -> Rectangle:
    """The rectangle, if it has an area."""
    x0, y0, x1, y1 = rectangle
    if not all(map(math.isfinite, rectangle)) or x0 >= x1 or y0 >= y1:
        raise InvalidArgumentError(
            f"rectangle is {x0:g}, {y0:g}, {x1:g}, {y1:g}; x1 must be more than x0 and y1 more "
            "than y0, in pixels of the source picture."
        )
    return rectangle


def check_labels(field: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raise unless all labels of images, or of boxes, are among the known ones."""
    there = set(known)
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name[:80], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "labels are those of the data set."
            what = "box" if field.endswith("box_labels") else "image"
            raise NotFoundError(f"{field}: no {what} has the label {name[:80]!r}; {hint}")
