"""What a notebook shows of an answer: its sheet, as `--png` draws it, over its table."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, TypeVar

from vitscope.client import results, sheets, tables
from vitscope.client.answer import Answer, Source, source_of
from vitscope.client.errors import NotKeptError, VitscopeError
from vitscope.client.pictures import Section, gallery_sheet, sheet_png
from vitscope.client.text import brief, printable

if TYPE_CHECKING:
    from vitscope.client.client import Client

MOST_DRAWN = 60
"""Pictures on a page, and rows of a table: that there are more is said."""
MOST_COLUMNS = 16
"""Of a table; scores may be of thousands of channels."""

PICTURED = (
    results.TopImages
    | results.TopPatches
    | results.SimilarImages
    | results.SimilarPatches
    | results.TopImagesAlong
    | results.TopImagesByBox
    | results.ChangedImages
    | results.PatchMap
    | results.PatchMaps
    | results.AnalyzedImage
)
"""Answers whose pictures are fetched when they are shown."""

T = TypeVar("T")


def page(answer: Answer) -> str:
    """The answer as HTML; where no picture can be had, a sentence says why."""
    parts = [*_pictures(answer), *_table(answer)]
    if isinstance(answer, results.AnalyzedImage):
        parts += [line for near in answer.neighbours[-1:] for line in _table(near)]
    return "\n".join(["<div>", *parts, "</div>"])


def _pictures(answer: Answer) -> list[str]:
    try:
        if isinstance(answer, results.Image):
            return [_image([sheets.image_section(answer)])]
        if not isinstance(answer, PICTURED):
            return []
        source = source_of(answer)
        if source is None:
            return [_said("No pictures: this answer does not know which server it came from.")]
        # Of its own: the client that asked may be closed, or belong to an event loop that waits.
        with source.connect() as client:
            drawing = _Drawing(client, source)
            sections = drawing.sections(answer)
    except VitscopeError as error:
        return [_said(f"No pictures: {error}")]
    return [_image(sections) if sections else "", *map(_said, drawing.remarks)]


class _Drawing:
    """One answer on its way to a sheet."""

    def __init__(self, client: Client, source: Source) -> None:
        self._client = client
        self._source = source
        self.remarks: list[str] = []
        """Sentences on what is left out."""

    def sections(self, answer: Answer) -> list[Section]:
        """None for an answer of nothing."""
        client, index = self._client, self._source.index
        match answer:
            case results.TopImages(images=(_, *_)):
                return [self._top_images(replace(answer, images=self._first(answer.images)))]
            case results.TopPatches(patches=(_, *_)):
                top = replace(answer, patches=self._first(answer.patches))
                return [sheets.top_patches_section(client, index, top)]
            case results.TopImagesByBox(images=(_, *_)):
                by_box = replace(answer, images=self._first(answer.images))
                return [sheets.by_box_section(client, index, by_box)]
            case results.TopImagesAlong(images=(_, *_)):
                along = replace(answer, images=self._first(answer.images))
                return [sheets.along_section(client, index, along, "a direction")]
            case results.SimilarImages():
                images = replace(answer, images=self._first(answer.images, MOST_DRAWN - 1))
                return [sheets.similar_images_section(client, index, images)]
            case results.SimilarPatches():
                patches = replace(answer, patches=self._first(answer.patches, MOST_DRAWN - 1))
                return [sheets.similar_patches_section(client, index, patches)]
            case results.ChangedImages(images=(_, *_)):
                changed = replace(answer, images=self._first(answer.images, MOST_DRAWN // 2))
                other = self._source.other
                return [sheets.changed_images_section(client, index, other, changed, "")]
            case results.PatchMap():
                return [sheets.patch_map_section(client, index, answer)]
            case results.PatchMaps() if len(answer.rows):
                return [sheets.patch_maps_section(client, index, self._first_maps(answer))]
            case results.AnalyzedImage():
                return self._analyzed(answer)
        return []

    def _first(self, entries: tuple[T, ...], most: int = MOST_DRAWN) -> tuple[T, ...]:
        self._tell(len(entries), most)
        return entries[:most]

    def _first_maps(self, maps: results.PatchMaps) -> results.PatchMaps:
        self._tell(len(maps.rows), MOST_DRAWN)
        rows, channels = maps.rows[:MOST_DRAWN], maps.channels[:MOST_DRAWN]
        return replace(maps, rows=rows, channels=channels, values=maps.values[:MOST_DRAWN])

    def _tell(self, count: int, most: int) -> None:
        if count > most:
            self.remarks.append(f"The first {most} of {count:,} are drawn.")

    def _top_images(self, top: results.TopImages) -> Section:
        """With the maps of all, or of those that came along."""
        client, index = self._client, self._source.index
        if top.maps is None:
            rows = [image.row for image in top.images]
            try:
                top = replace(top, maps=sheets.maps_of(client, index, top, rows))
            except NotKeptError:
                self.remarks.append(
                    "Not all maps of these images are kept; ask with maps=True for those that are."
                )
        section = sheets.top_images_section(client, index, top, "")
        return replace(section, maps=top.maps is not None)

    def _analyzed(self, own: results.AnalyzedImage) -> list[Section]:
        """The own picture, and its neighbours in the deepest layer as far as there is room."""
        client, index = self._client, self._source.index
        own = replace(own, maps=self._first(own.maps))
        found = [sheets.analyzed_section(client, index, own, "score")]
        room = MOST_DRAWN - 1 - len(found[0].cells)
        for near in own.neighbours[-1:] if room > 0 else ():
            near = replace(near, images=near.images[:room])
            found.append(sheets.neighbours_section(client, index, own, near))
        return found


def _image(sections: Sequence[Section]) -> str:
    data = base64.b64encode(sheet_png(gallery_sheet(sections))).decode()
    titles = (f"{brief(each.title)}, {len(each.cells)} pictures" for each in sections)
    alt = _text("; ".join(titles))
    return f'<img alt="{alt}" style="max-width: 100%" src="data:image/png;base64,{data}">'


def _table(answer: Answer) -> list[str]:
    """Its table under a line of what is the same for all rows."""
    whole = tables.table(answer)
    columns = list(zip(whole.columns.items(), whole.values, strict=True))[:MOST_COLUMNS]
    shown = [[_cell(value, kind) for value in values[:MOST_DRAWN]] for (_, kind), values in columns]
    told = (f"{name} {brief(_plain(value))}" for name, value in tables.constants(answer).items())
    heads = "".join(f"<th{_side(kind)}>{_text(name)}</th>" for (name, kind), _ in columns)
    caption = _text(" · ".join([type(answer).__name__, *told]))
    lines = [
        '<table style="font-size: small">',
        f'<caption style="text-align: left; white-space: nowrap">{caption}</caption>',
        f"<thead><tr>{heads}</tr></thead>",
        "<tbody>",
        *(f"<tr>{''.join(cells)}</tr>" for cells in zip(*shown, strict=True)),
        "</tbody>",
        "</table>",
    ]
    left = []
    if whole.rows > MOST_DRAWN:
        left.append(f"{MOST_DRAWN} of {whole.rows:,} rows")
    if len(whole.columns) > MOST_COLUMNS:
        left.append(f"{MOST_COLUMNS} of {len(whole.columns):,} columns")
    if left:
        lines.append(_said(f"The first {' and '.join(left)}; to_pandas() has all."))
    return lines


def _cell(value: object, kind: str) -> str:
    """Of long text the middle is left out; a pointer that rests on it is shown the whole."""
    whole = _plain(value)
    shown = brief(whole)
    title = f' title="{_text(whole)}"' if shown != whole else ""
    return f"<td{_side(kind)}{title}>{_text(shown)}</td>"


def _side(kind: str) -> str:
    """Text to the left, numbers to the right."""
    return f' style="text-align: {"left" if kind == "string" else "right"}"'


def _plain(value: object) -> str:
    if value is None:
        return "–"
    number = value.item() if hasattr(value, "item") else value
    return f"{number:.5g}" if isinstance(number, float) else str(number)


def _said(sentence: str) -> str:
    return f"<p>{_text(sentence)}</p>"


def _text(text: str) -> str:
    """Names come from anywhere: nothing in them is HTML, nor steers anything."""
    return escape(printable(text))
