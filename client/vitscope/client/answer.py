"""What all results have in common: short to print, a table, a page in a notebook, copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from vitscope.client.text import brief

if TYPE_CHECKING:
    import pandas

    from vitscope.client.client import Client


class Brief:
    """Printed without its arrays, pictures and long tuples, of which only the size is told.

    Of long text the middle is left out.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        told = (f"{name}={_brief(getattr(self, name))}" for name in names_of(self))
        return f"{type(self).__name__}({', '.join(told)})"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the pictures of an answer come from."""

    # It has the token.
    connect: Callable[[], Client] = field(repr=False)
    index: str
    other: str = ""
    """The second of two indexes that were compared."""


class Answer(Brief):
    """What a client answers: a value with a table, which a notebook shows with its pictures."""

    # No field of the dataclasses below: nothing that compares or pickles answers sees it. A pickle
    # travels, where it must neither carry a token nor have who opens it dial a server.
    __slots__ = ("_source",)
    _source: Source

    def __copy__(self) -> Self:
        """A copy within this process, which knows as well where its pictures come from."""
        return _from_where(self, replace(self))  # type: ignore[type-var]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Likewise, of arrays of its own."""
        told = {name: copy.deepcopy(getattr(self, name), memo) for name in names_of(self)}
        return _from_where(self, type(self)(**told))

    def to_pandas(self) -> pandas.DataFrame:
        """A pandas DataFrame with a row for each entry.

        frame = client.top_images("blocks.5.mlp", 7).to_pandas()
        frame.attrs["layer"]  # what is the same for all rows

        Columns have the names and types of `vitscope export table`, where that has them, but
        float32 for float16; of several answers `tables.to_pandas` makes one frame. Raises
        `UsageError` where pandas is missing.
        """
        from vitscope.client import tables

        return tables.to_pandas([self])

    def _repr_html_(self) -> str:
        """What a notebook shows: the sheet of `--png`, if there is one, over the table."""
        from vitscope.client import notebook

        return notebook.page(self)


A = TypeVar("A", bound=Answer)


def with_source(answer: A, source: Source) -> A:
    """The same answer, and one within it, told where their pictures come from."""
    object.__setattr__(answer, "_source", source)
    for name in names_of(answer):
        if isinstance(part := getattr(answer, name), Answer):
            with_source(part, source)
    return answer


def source_of(answer: Answer) -> Source | None:
    """None for an answer that no client of this process gave, such as one from a pickle."""
    source: Source | None = getattr(answer, "_source", None)
    return source


def _from_where(answer: A, made: A) -> A:
    """`made` of an answer, told where that one's own pictures come from."""
    source = source_of(answer)
    if source is not None:
        object.__setattr__(made, "_source", source)
    return made


def names_of(value: Any) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in fields(value)]


def _brief(value: object) -> str:
    match value:
        case str():
            return repr(brief(value))
        case np.ndarray():
            return f"<{value.dtype} {value.shape}>"
        case bytes():
            return f"<{len(value):,} bytes>"
        case (first, *_) if hasattr(first, "__dataclass_fields__"):
            return f"<{len(value)} {type(first).__name__}>"
    return repr(value)
