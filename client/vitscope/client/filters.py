"""Which images take part in an answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

from vitscope.client.errors import UsageError


@dataclass(frozen=True, slots=True)
class ImageFilter:
    """Lets an image through if all that is given does; only valid images ever take part.

    foxes = ImageFilter(labels=["kit_fox", "red_fox"])
    with_dogs = ImageFilter(box_labels=["dog"])
    chosen = ImageFilter(rows=range(100), has_box=True)
    """

    labels: Sequence[str] = ()
    """Images with one of these; empty for all."""
    rows: Collection[SupportsIndex] | None = None
    """Images of these rows, in any order; None for all."""
    has_box: bool | None = None
    """Images with a labelled box (True) or without one (False)."""
    box_labels: Sequence[str] = ()
    """Images with a box that has one of these; empty for all."""

    def __post_init__(self) -> None:
        for name in ("labels", "box_labels"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} of a filter is a list of labels, not a single text.")
        if self.rows is not None and not len(self.rows):
            raise UsageError("rows of a filter is empty, so that no image is left; leave it out.")
