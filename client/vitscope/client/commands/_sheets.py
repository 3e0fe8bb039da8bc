"""Sheets as files; imported only when a picture is asked for, since Pillow is."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vitscope.client.commands._common import report_written
from vitscope.client.errors import UsageError
from vitscope.client.pictures import Section, gallery_sheet, save_png
from vitscope.client.results import TopImages

MOST_DRAWN = 1_000
"""Images on a sheet that anyone can look at."""


def few(answers: Iterable[TopImages]) -> list[TopImages]:
    """All answers, if they fit on a sheet; no more of them are asked for where they do not."""
    tops, images = [], 0
    for top in answers:
        tops.append(top)
        images += len(top.images)
        require_few(images)
    return tops


def require_few(images: int) -> None:
    """Raise `UsageError` for more than anyone can look at, before they are asked for."""
    if images > MOST_DRAWN:
        raise UsageError(
            f"--png draws at most {MOST_DRAWN:,} images; ask for fewer with -k, or for fewer "
            "channels."
        )


def save(target: Path, sections: Sequence[Section]) -> None:
    """Draw the sections under each other into a PNG file and say so."""
    save_png(gallery_sheet(sections), target)
    report_written(target)
