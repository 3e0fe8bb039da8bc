"""The values that requests are made of: what a field on the wire cannot carry is found here."""

import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitscope.client.errors import UsageError
from vitscope.client.filters import ImageFilter
from vitscope.v1 import index_pb2, query_pb2

_T = TypeVar("_T")

POOLINGS: dict[str, index_pb2.Pooling.ValueType] = {
    "mean": index_pb2.POOLING_MEAN,
    "max": index_pb2.POOLING_MAX,
    "cls": index_pb2.POOLING_CLS,
}
ORDERS = {"top": query_pb2.ORDER_TOP, "bottom": query_pb2.ORDER_BOTTOM}
BOX_MEASURES = {
    "contrast": query_pb2.BOX_MEASURE_CONTRAST,
    "inside": query_pb2.BOX_MEASURE_INSIDE,
    "auc": query_pb2.BOX_MEASURE_AUC,
}
ENCODINGS = {
    "float16": query_pb2.MAP_ENCODING_FLOAT16,
    "uint8": query_pb2.MAP_ENCODING_UINT8,
}
DIRECTION_MEASURES = {
    "projection": query_pb2.DIRECTION_MEASURE_PROJECTION,
    "cosine": query_pb2.DIRECTION_MEASURE_COSINE,
}
CHANGES = {
    "effect": query_pb2.CHANGE_MEASURE_EFFECT,
    "difference": query_pb2.CHANGE_MEASURE_DIFFERENCE,
    "correlation": query_pb2.CHANGE_MEASURE_CORRELATION,
}

Selector = tuple[str, SupportsIndex, SupportsIndex]
"""(layer, channel, row)"""
Direction = Mapping[int, float] | NDArray[Any] | str
"""Weights by channel, a weight for every channel (C,), or the name of one that the server has."""
ChannelSelector = tuple[str, SupportsIndex]
"""(layer, channel)"""


def pooling_value(name: str) -> index_pb2.Pooling.ValueType:
    """The enum value of a pooling's name."""
    try:
        return POOLINGS[name]
    except KeyError:
        choices = ", ".join(POOLINGS)
        raise UsageError(f"Pooling {name!r} is not known; choose one of {choices}.") from None


def order_value(name: str) -> query_pb2.Order.ValueType:
    """The enum value of an order's name."""
    if name not in ORDERS:
        raise UsageError(f"Order {name!r} is not known; choose top or bottom.")
    return ORDERS[name]


def image_filter(where: ImageFilter | None) -> query_pb2.ImageFilter | None:
    """None where all images take part."""
    if where is None:
        return None
    if not isinstance(where, ImageFilter):
        raise UsageError(f"where {where!r} is no filter; write ImageFilter(labels=[…]).")
    if not isinstance(where.has_box, bool | None):
        raise UsageError(f"has_box {where.has_box!r} cannot be; give True, False or None.")
    return query_pb2.ImageFilter(
        labels=as_labels("labels", where.labels),
        rows=as_rows(() if where.rows is None else where.rows),
        has_box=where.has_box,
        box_labels=as_labels("box_labels", where.box_labels),
    )


def as_place(patch: tuple[SupportsIndex, SupportsIndex]) -> query_pb2.PatchPlace:
    y, x = (as_whole("patch", each, bits=32) for each in as_parts("patch", patch, "y, x"))
    return query_pb2.PatchPlace(y=y, x=x)


def as_band(band: tuple[float, float]) -> query_pb2.QuantileBand:
    low, high = as_numbers("band", band, "low, high")
    return query_pb2.QuantileBand(low=low, high=high)


def as_encoding(name: str) -> query_pb2.MapEncoding.ValueType:
    if name not in ENCODINGS:
        known = " or ".join(ENCODINGS)
        raise UsageError(f"Encoding {name!r} is not known; choose {known}.")
    return ENCODINGS[name]


def as_direction(direction: Direction) -> query_pb2.Direction:
    """The direction as a request carries it: weights as float32."""
    if isinstance(direction, str):
        return query_pb2.Direction(name=as_text("direction", direction))
    if isinstance(direction, Mapping):
        weights = query_pb2.ChannelWeights(
            channels=[as_whole("channel", channel, bits=32) for channel in direction],
            weights=_floats(list(direction.values())).tolist(),
        )
        return query_pb2.Direction(weights=weights)
    vector = _floats(direction)
    if vector.ndim != 1:
        raise UsageError(
            f"A direction has one axis, the layer's channels; this one has {vector.ndim}."
        )
    return query_pb2.Direction(vector=vector.astype("<f4").tobytes())


def _floats(weights: Any) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(weights, np.float32)
    except (TypeError, ValueError):
        raise UsageError("The weights of a direction are numbers.") from None


def as_count(k: SupportsIndex | None) -> int | None:
    return None if k is None else as_whole("k", k, bits=32)


def as_labels(name: str, labels: Iterable[str]) -> list[str]:
    if isinstance(labels, str):
        raise UsageError(f"{name} is a list of labels, not a single text; write [{labels!r}].")
    return [as_text("label", label) for label in as_list(name, labels)]


def as_layers(layers: Iterable[str]) -> list[str]:
    if isinstance(layers, str):
        raise UsageError(f"layers is a list of names, not a single text; write [{layers!r}].")
    return [as_text("layer", layer) for layer in as_list("layers", layers)]


def as_rows(rows: Iterable[SupportsIndex]) -> list[int]:
    return [as_whole("row", row, bits=64) for row in as_list("rows", rows)]


def as_list(name: str, values: Iterable[_T]) -> list[_T]:
    """Whatever holds several values; a text holds none but itself."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UsageError(f"{name} {values!r} is no list; write several between brackets: […].")
    return list(values)


def as_channels(channels: Iterable[SupportsIndex] | None) -> list[int]:
    """None at all for all channels of the layer."""
    if channels is None:
        return []
    if isinstance(channels, str) or not isinstance(channels, Iterable):
        raise UsageError(f"channels {channels!r} is no list of whole numbers; write [7, 9].")
    found = [as_whole("channel", channel, bits=32) for channel in channels]
    if not found:
        raise UsageError("channels is empty; name at least one, or leave it out for all.")
    return found


def as_whole(name: str, value: SupportsIndex, *, bits: int) -> int:
    """`value` as an int that its field on the wire can carry; what it means is the server's."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} {value!r} is no whole number.") from None
    limit = 1 << (bits - 1)
    if not -limit <= number < limit:
        raise UsageError(f"{name} {number} is out of range: it does not fit in {bits} bits.")
    return number


def as_parts(name: str, value: Any, names: str) -> tuple[Any, ...]:
    """The parts of a tuple that has one for each of `names`."""
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(found) != names.count(",") + 1:
        raise UsageError(f"{name} {value!r} cannot be; write it as ({names}).")
    return found


def as_numbers(name: str, value: Any, names: str) -> list[float]:
    """Likewise, of numbers."""
    try:
        return [float(each) for each in as_parts(name, value, names)]
    except (TypeError, ValueError):
        raise UsageError(f"{name} {value!r} cannot be; ({names}) are numbers.") from None


def as_text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} {value!r} is no text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} {value!r} is not text that UTF-8 can carry.") from None
    return value


def picture_bytes(picture: bytes | os.PathLike[str]) -> bytes:
    """Bytes of a picture file, or what is in the file; raises `UsageError`."""
    if isinstance(picture, bytes):
        return picture
    if not isinstance(picture, str | os.PathLike):
        raise UsageError("A picture is the bytes of its file, or the path of one.")
    path = Path(picture)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the picture {path}: {error.strerror}.") from None
