"""What is passed over while a list is frozen: counted, and said in a sentence each."""

from __future__ import annotations


class Notices:
    """Counts faults of a kind and keeps the first of each, however many rows there are."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def say(self, sentence: str) -> None:
        """Add a sentence of its own."""
        self._said.append(sentence)

    def count(self, what: str, example: str) -> None:
        """Count one more `what`, such as "boxes that are empty"."""
        self._counts[what] = self._counts.get(what, 0) + 1
        self._first.setdefault(what, example)

    def sentences(self) -> tuple[str, ...]:
        """All there is to say."""
        counted = (
            f"Left out ({count:,}): {what}, the first {self._first[what]}."
            for what, count in self._counts.items()
        )
        return (*self._said, *counted)
