"""Words of messages."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """A number and what it counts: `1 image`, `2,000 images`."""
    return f"{number:,} {what}{'s' * (number != 1)}"
