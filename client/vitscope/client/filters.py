"""Which images take part in an answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from vitscope.client.errors import UsageError

MOST_ROWS = 100_000
"""As many as a server takes in a filter."""


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """Lets an image through if all that is given does; only valid images ever take part.

    red = ImageFilter(labels=["red-plain-disc", "red-striped-disc"])
    with_dogs = ImageFilter(box_labels=["dog"])
    chosen = ImageFilter(rows=range(100), has_box=True)
    """

    labels: Sequence[str] = ()
    """Images with one of these; empty for all."""
    rows: Collection[SupportsIndex] | None = None
    """Images of these rows, 100,000 at most, in any order; None for all."""
    has_box: bool | None = None
    """Images with a labelled box (True) or without one (False)."""
    box_labels: Sequence[str] = ()
    """Images with a box that has one of these; empty for all."""

    def __post_init__(self) -> None:
        for name in ("labels", "box_labels"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} of a filter is a list of labels, not a single text.")
        if not isinstance(self.rows, Collection | None):
            raise UsageError(f"rows of a filter is a list of rows, and not {self.rows!r}.")
        if self.rows is not None and not len(self.rows):
            raise UsageError("rows of a filter is empty, so that no image is left; leave it out.")
        if self.rows is not None and len(self.rows) > MOST_ROWS:
            raise UsageError(
                f"rows of a filter has {len(self.rows):,} entries; give at most {MOST_ROWS:,}, or "
                "choose by labels."
            )
