"""How the live model is asked for; light, since most servers have none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vitscope.server.errors import StartError


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """Texts are as typed: VALUE where there is one index, else NAME=VALUE."""

    checkpoints: Sequence[str] = ()
    """Files of weights; without one, weights come from where the index had them."""
    data: Sequence[str] = ()
    """The pictures that were indexed."""
    splits: Sequence[str] = ()
    """Which split, where they are a Hugging Face data set of several."""
    device: str = ""
    """`cpu`, `cuda`, `cuda:1`; empty takes CUDA where there is one."""
    threads: int | None = None
    """Of a forward on the CPU; None takes as many as the index was made with."""


def by_index(flag: str, given: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """What `flag` says of each index; raises `StartError` where it is not clear of which."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            if len(names) > 1:
                known = ", ".join(sorted(names))
                raise StartError(
                    f"{flag} {text} does not say of which index it is; write NAME={text}, with "
                    f"NAME one of {known}."
                )
            name, value = next(iter(names)), text
        if name in found:
            raise StartError(f"{flag} is given twice for the index {name!r}; give it once.")
        found[name] = value
    return found
