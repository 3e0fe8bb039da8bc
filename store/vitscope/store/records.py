"""Frozen dataclasses from JSON: with all of their fields and no others, each of the type it says.

Python checks none of this, and what is wrong would show far from here, if at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")

_MOST = 2**63 - 1


def record_from(kind: type[_T], body: object) -> _T:
    """A dataclass from a parsed JSON object; raises `ValueError` and `OverflowError`.

    Fields are strings, booleans, counts (no less than 0), finite floats, literals, tuples, mappings
    by string, and dataclasses.
    """
    types: Mapping[str, Any] = _types(kind)  # type: ignore[arg-type]
    if not isinstance(body, dict) or body.keys() != types.keys():
        raise ValueError(f"no {kind.__name__} has these fields")
    return kind(**{name: _value(types[name], value) for name, value in body.items()})


@cache
def _types(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _value(kind: Any, value: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return record_from(kind, value)
    outer, inner = get_origin(kind), get_args(kind)
    if outer is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return tuple(_value(*pair) for pair in zip(kinds, value, strict=True))
    if outer is Mapping and isinstance(value, dict):
        return {_value(str, name): _value(inner[1], each) for name, each in value.items()}
    # JSON's true would pass for a number.
    sound = (
        (outer is Literal and type(value) is str and value in inner)
        or (kind is bool and type(value) is bool)
        # Half of a surrogate pair is none of Unicode's characters, and cannot be sent.
        or (kind is str and type(value) is str and value.encode() is not None)
        or (kind is int and type(value) is int and 0 <= value <= _MOST)
        or (kind is float and type(value) in (int, float) and math.isfinite(value))
    )
    if not sound:
        raise ValueError(f"{str(value)[:40]!r} is no {kind}")
    return value
