"""Valid bytes and JSON made wrong, by chance that can be had again from a seed.

`VITSCOPE_FUZZ_SECONDS` says for how long tests do so, all together; `VITSCOPE_FUZZ_SEED` takes up
the seed that a failed run has printed.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

TESTS = 4
"""That share the time."""
SECONDS = float(os.environ.get("VITSCOPE_FUZZ_SECONDS", "12")) / TESTS
# The same examples every time where nobody looks on.
SEED = int(os.environ.get("VITSCOPE_FUZZ_SEED", "0" if os.environ.get("CI") else "-1"))
NUMBERS = (0, 1, 2, 3, 70, 127, 128, 2**15, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = 200


def chances() -> Iterator[random.Random]:
    """Sources of chance until the time is over, each of a seed that is printed."""
    first = SEED if SEED >= 0 else random.SystemRandom().randrange(2**32)
    end = time.monotonic() + SECONDS
    number = first
    while number == first or time.monotonic() < end:
        print(f"VITSCOPE_FUZZ_SEED={number}")
        yield random.Random(number)
        number += 1


def varint(number: int) -> bytes:
    """As protobuf writes numbers, of any size."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def field(chance: random.Random, depth: int = 0) -> bytes:
    """A field of protobuf's wire format, of any number and type, those that are not among them."""
    number = chance.choice([chance.randrange(1, 24), 0, 2**29 - 1])
    kind = chance.randrange(8)
    head = varint(number << 3 | kind)
    if kind == 0:
        return head + varint(chance.choice(NUMBERS))
    if kind in (1, 5):
        return head + chance.randbytes(8 if kind == 1 else 4)
    if kind == 3:
        return head + fields(chance, depth + 1) + varint(number << 3 | 4)
    if kind != 2:
        return head
    inside = chance.randbytes(chance.randrange(20))
    if chance.random() < 0.5:
        inside = fields(chance, depth + 1)
    if chance.random() < 0.2:
        # Shorter, longer, or as long as no message can be.
        return head + varint(chance.choice(NUMBERS)) + inside
    return head + varint(len(inside)) + inside


def fields(chance: random.Random, depth: int = 0) -> bytes:
    """Some fields, one in the other."""
    many = chance.randrange(4) if depth < 6 else 0
    return b"".join(field(chance, depth) for _ in range(many))


def nested(chance: random.Random) -> bytes:
    """Messages, or groups, in one another, deeper than a parser may follow."""
    number, depth = chance.randrange(1, 24), chance.randrange(DEEP)
    if chance.random() < 0.5:
        return varint(number << 3 | 3) * depth + varint(number << 3 | 4) * depth
    inside = b""
    for _ in range(depth):
        inside = varint(number << 3 | 2) + varint(len(inside)) + inside
    return inside


def mutated(chance: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with some damage: turned, cut, doubled, mixed with others'."""
    for _ in range(chance.choice([1, 1, 1, 2, 3, 8])):
        data = _damaged(chance, data, others)
    return data


def _damaged(chance: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    how = chance.randrange(8)
    if how == 0 and data:
        turned = bytearray(data)
        turned[min(a, len(data) - 1)] ^= 1 << chance.randrange(8)
        return bytes(turned)
    if how == 1:
        return data[:a]
    if how == 2:
        return data[:a] + data[b:]
    if how == 3:
        return data[:b] + data[a:]
    if how == 4:
        return data[:a] + chance.randbytes(chance.randrange(1, 9)) + data[b:]
    if how == 5:
        return data[:a] + varint(chance.choice(NUMBERS)) + data[min(len(data), a + 1) :]
    if how == 6 and others:
        other = chance.choice(others)
        return data[:a] + other[chance.randrange(len(other) + 1) :]
    return data[:a] + data[a:b] * chance.choice([0, 2, 50]) + data[b:]


def changed(chance: random.Random, body: Any) -> Any:
    """JSON with a value, or a few, in another's place, missing, doubled, or of another type."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        places = list(_places(body))
        if not places:
            break
        _change(chance, *chance.choice(places), places)
    return body


def _change(
    chance: random.Random, inside: Any, key: Any, places: Sequence[tuple[Any, Any]]
) -> None:
    how = chance.randrange(6)
    if how == 0:
        del inside[key]
    elif how == 1:
        other, there = chance.choice(places)
        inside[key] = copy.deepcopy(other[there])
    elif how == 2 and isinstance(inside, dict):
        inside[_value(chance, str)] = inside.pop(key)
    elif how == 3 and isinstance(inside, list):
        inside.insert(key, copy.deepcopy(inside[key]))
    elif how == 4 and isinstance(inside[key], int | float):
        inside[key] += chance.choice([-1, 1, 0.5, -inside[key], inside[key]])
    else:
        inside[key] = _value(chance, chance.choice([str, int, float, None, list, dict]))


def _value(chance: random.Random, kind: Any) -> Any:
    texts = ("", "x", "mean", "cls", "..", "../..", "/etc/passwd", "a/b", "\0", "é" * 300, "\ud800")
    if kind is str:
        return chance.choice(texts)
    if kind is int:
        return chance.choice([-1, True, -(2**63), 10**30, *NUMBERS])
    if kind is float:
        return chance.choice([0.0, -0.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")])
    if kind is None:
        return None
    some = [_value(chance, chance.choice([str, int, float, None])) for _ in range(3)]
    if kind is dict:
        return {chance.choice(texts): each for each in some}
    deep: list[Any] = some
    for _ in range(chance.choice([0, 0, 1, DEEP])):
        deep = [deep]
    return deep


def _places(body: Any) -> Iterator[tuple[Any, Any]]:
    """Where there is a value: what it is in, and its key or number."""
    items: Any = ()
    if isinstance(body, dict):
        items = list(body.items())
    elif isinstance(body, list):
        items = list(enumerate(body))
    for key, value in items:
        yield body, key
        yield from _places(value)
