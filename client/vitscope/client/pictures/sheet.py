"""Contact sheets: pictures beside their overlays, under one title and one scale of heat."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitscope.client.entries import PatchGrid
from vitscope.client.pictures.overlay import overlay
from vitscope.client.text import drawable, shortened

INK, QUIET, RULE, BLANK, PAPER = "#1c1c1e", "#6b6b70", "#dcdce0", "#ededf0", "#ffffff"
MARGIN = 36
CELL_GAP_X, CELL_GAP_Y = 28, 24
PAIR_GAP = 4  # between a picture and its overlay
LINE = 22  # a line of a caption
BAR_WIDTH, BAR_HEIGHT = 200, 12
MIN_WIDTH = 720  # room for a title over few cells
FULL_WIDTH = 2000  # what a sheet fills where its columns are not given
SMALLEST_TILE, LARGEST_TILE = 160, 320  # of a picture's shorter and longer side, in pixels
AREA = 1_250_000  # of all pictures of a sheet, in pixels; beyond it they shrink to SMALLEST_TILE


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One image of a sheet."""

    picture: NDArray[np.uint8] | None
    """HWC uint8 RGB; None where no thumbnail is stored."""
    patch_map: NDArray[np.float16] | None
    """(h, w) activations; None where no map is kept."""
    heading: str
    """First line of the caption, such as the rank and the label."""
    detail: str
    """Second line, such as the score and the row."""
    grid: PatchGrid | None = None
    """Where the patches lie in the model's input; evenly over the picture where not given."""
    mark: tuple[int, int] | None = None
    """A patch of `grid`, from the top and from the left, to frame in the picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Section:
    """What one contact sheet shows; a gallery stacks several."""

    title: str
    cells: Sequence[Cell]
    note: str = ""
    """A quiet line under the title."""
    columns: int | None = None
    """Cells side by side; as many as fit a sheet of ordinary width where not given."""
    maps: bool = True
    """False for answers that have no patch maps: no overlays and no scale."""
    own_scales: bool = False
    """True for maps of many channels: the hottest colour of each is its own hottest activation."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where things lie on a sheet, in pixels."""

    tile: tuple[int, int]  # width, height of one picture
    columns: int
    rows: int
    paired: bool
    header: int
    largest: int  # longer side of a picture

    @property
    def cell_width(self) -> int:
        return self.tile[0] * (2 if self.paired else 1) + (PAIR_GAP if self.paired else 0)

    @property
    def cell_height(self) -> int:
        return self.tile[1] + 8 + 2 * LINE

    @property
    def width(self) -> int:
        cells = self.columns * (self.cell_width + CELL_GAP_X) - CELL_GAP_X
        return 2 * MARGIN + max(cells, MIN_WIDTH - 2 * MARGIN)

    @property
    def height(self) -> int:
        cells = max(0, self.rows * (self.cell_height + CELL_GAP_Y) - CELL_GAP_Y)
        return 2 * MARGIN + self.header + cells

    def corner(self, position: int) -> tuple[int, int]:
        """Upper left corner of a cell."""
        row, column = divmod(position, self.columns)
        return (
            MARGIN + column * (self.cell_width + CELL_GAP_X),
            MARGIN + self.header + row * (self.cell_height + CELL_GAP_Y),
        )


def contact_sheet(
    title: str,
    cells: Sequence[Cell],
    columns: int | None = None,
    *,
    note: str = "",
    maps: bool = True,
) -> Image.Image:
    """Each cell's picture beside its overlay, in reading order.

    The hottest activation of all the cells is the hottest colour of every overlay; the scale
    under the title says which it is. `note`, `columns` and `maps` are as in `Section`.
    """
    return gallery_sheet([Section(title, cells, note, columns, maps)])


def gallery_sheet(sections: Sequence[Section]) -> Image.Image:
    """Contact sheets one under the other, each with its own scale."""
    largest = _largest_tile(sections)
    sheets = [_drawn(section, largest) for section in sections]
    width = max(sheet.width for sheet in sheets)
    gallery = Image.new("RGB", (width, sum(sheet.height for sheet in sheets)), PAPER)
    draw, top = ImageDraw.Draw(gallery), 0
    for sheet in sheets:
        gallery.paste(sheet, (0, top))
        if top:
            draw.line((MARGIN, top, width - MARGIN, top), RULE)
        top += sheet.height
    return gallery


def _largest_tile(sections: Sequence[Section]) -> int:
    """Longer side of a picture, so that many of them still make a file of moderate size."""
    pictures = sum(len(section.cells) * (2 if section.maps else 1) for section in sections)
    return min(LARGEST_TILE, max(SMALLEST_TILE, math.isqrt(AREA // max(1, pictures))))


def _drawn(section: Section, largest: int) -> Image.Image:
    grid = _grid(section, largest)
    top = _hottest(section.cells)
    sheet = Image.new("RGB", (grid.width, grid.height), PAPER)
    _draw_header(sheet, section, top)
    for position, cell in enumerate(section.cells):
        hottest = _hottest([cell]) if section.own_scales else top
        _draw_cell(sheet, cell, grid, grid.corner(position), hottest)
    return sheet


def _grid(section: Section, largest: int) -> _Grid:
    tile = _tile(section.cells, largest)
    step = tile[0] * (2 if section.maps else 1) + CELL_GAP_X
    columns = section.columns or _even(len(section.cells), (FULL_WIDTH - 2 * MARGIN) // step)
    columns = max(1, min(columns, len(section.cells)))
    header = 36 + (22 if section.note else 0) + (28 if section.maps else 0) + 14
    rows = math.ceil(len(section.cells) / columns)
    return _Grid(tile, columns, rows, section.maps, header, largest)


def _even(cells: int, most: int) -> int:
    """Columns that fill the rows of a sheet evenly, at most `most`: 4 for 8 cells where 5 fit."""
    rows = math.ceil(cells / max(1, most))
    return math.ceil(cells / max(1, rows))


def _tile(cells: Sequence[Cell], largest: int) -> tuple[int, int]:
    """Width and height that hold every picture of the sheet, as shown."""
    sizes = [_shown_size(cell.picture, largest) for cell in cells if cell.picture is not None]
    if not sizes:
        return SMALLEST_TILE, SMALLEST_TILE
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _shown_size(picture: NDArray[np.uint8], largest: int) -> tuple[int, int]:
    """Width and height: small pictures whole times larger, large ones shrunk."""
    height, width = picture.shape[:2]
    factor: float = max(1, math.ceil(SMALLEST_TILE / min(height, width)))
    factor = min(factor, largest / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _hottest(cells: Sequence[Cell]) -> float:
    """The largest finite activation of the sheet; 0 where there is none above it."""
    maps = [cell.patch_map for cell in cells if cell.patch_map is not None]
    finite = [float(values.max()) for one in maps if (values := one[np.isfinite(one)]).size]
    return max([0.0, *finite])


def _draw_header(sheet: Image.Image, section: Section, top: float) -> None:
    draw, y = ImageDraw.Draw(sheet), MARGIN
    width = sheet.width - 2 * MARGIN
    _write(draw, (MARGIN, y), section.title, 26, INK, width)
    y += 36
    if section.note:
        _write(draw, (MARGIN, y), section.note, 15, QUIET, width)
        y += 22
    if section.maps:
        _draw_scale(sheet, draw, y + 6, top, own=section.own_scales)


def _draw_scale(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, top: float, *, own: bool
) -> None:
    """The heat colours as the overlays mix them, over a middle grey, from 0 to `top`.

    Or to the highest of each map, where each has its own scale.
    """
    if top <= 0:
        _write(draw, (MARGIN, y - 3), "no activation above 0: every overlay is cold", 14, QUIET)
        return
    grey = np.full((BAR_HEIGHT, BAR_WIDTH, 3), 128, np.uint8)
    ramp = np.linspace(0.0, 1.0, BAR_WIDTH, dtype=np.float32)[None].repeat(BAR_HEIGHT, axis=0)
    x = MARGIN + _width("0", 14) + 8
    _write(draw, (MARGIN, y - 3), "0", 14, INK)
    sheet.paste(Image.fromarray(overlay(grey, ramp, top=1.0)), (x, y))
    x += BAR_WIDTH + 8
    end, how = ("highest", "each on its own scale") if own else (f"{top:.4g}", "on one scale")
    _write(draw, (x, y - 3), end, 14, INK)
    x += _width(end, 14) + 18
    room = sheet.width - MARGIN - x
    _write(draw, (x, y - 3), f"activation {how}; 0 and less is cold", 14, QUIET, room)


def _draw_cell(
    sheet: Image.Image, cell: Cell, grid: _Grid, corner: tuple[int, int], top: float
) -> None:
    draw, (x, y) = ImageDraw.Draw(sheet), corner
    shown = None if cell.picture is None else _resized(cell.picture, grid.largest)
    if shown is None:
        _draw_blank(draw, corner, grid.tile, "no thumbnail")
        # The overlay then lies on plain grey.
        shown = np.full((grid.tile[1], grid.tile[0], 3), 160, np.uint8)
    else:
        framed = _framed(shown, cell.mark, cell.grid) if cell.mark and cell.grid else shown
        _paste(sheet, framed, corner, grid.tile)
    if grid.paired:
        beside = (x + grid.tile[0] + PAIR_GAP, y)
        if cell.patch_map is None:
            _draw_blank(draw, beside, grid.tile, "no map kept")
        else:
            _paste(
                sheet, overlay(shown, cell.patch_map, top=top, grid=cell.grid), beside, grid.tile
            )
    detail = cell.detail
    if grid.paired and cell.patch_map is None:
        detail += " · no map kept"
    y += grid.tile[1] + 8
    _write(draw, (x, y), cell.heading, 17, INK, grid.cell_width)
    _write(draw, (x, y + LINE), detail, 14, QUIET, grid.cell_width)


def _resized(picture: NDArray[np.uint8], largest: int) -> NDArray[np.uint8]:
    size = _shown_size(picture, largest)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _framed(
    pixels: NDArray[np.uint8], patch: tuple[int, int], grid: PatchGrid
) -> NDArray[np.uint8]:
    """A picture with a frame around a patch, light with a dark rim: seen on any of them."""
    height, width = pixels.shape[:2]
    down, across = height / grid.input_height, width / grid.input_width
    y, x = patch
    upper, left = grid.top + y * grid.cell_height, grid.left + x * grid.cell_width
    right, lower = left + grid.cell_width, upper + grid.cell_height
    x0, x1 = round(left * across), round(right * across)
    y0, y1 = round(upper * down), round(lower * down)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for rim, colour, thick in ((2, INK, 1), (1, PAPER, 2)):
        edges = (x0 - rim, y0 - rim, x1 + rim, y1 + rim)
        draw.rectangle(edges, outline=colour, width=thick)
    return np.asarray(picture)


def _paste(
    sheet: Image.Image,
    pixels: NDArray[np.uint8],
    corner: tuple[int, int],
    tile: tuple[int, int],
) -> None:
    """Put `pixels` in the middle of a tile."""
    height, width = pixels.shape[:2]
    place = corner[0] + (tile[0] - width) // 2, corner[1] + (tile[1] - height) // 2
    sheet.paste(Image.fromarray(pixels), place)


def _draw_blank(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: tuple[int, int], word: str
) -> None:
    (x, y), (width, height) = corner, tile
    draw.rectangle((x, y, x + width - 1, y + height - 1), BLANK)
    draw.text((x + width / 2, y + height / 2), word, QUIET, _font(14), anchor="mm")


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    colour: str,
    width: float = math.inf,
) -> None:
    """One line of text, shortened in the middle to `width` pixels."""
    line = shortened(drawable(text), lambda part: _width(part, size) <= width)
    draw.text(place, _spaced(line, size), colour, _font(size))


def _width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(_spaced(text, size)))


def _spaced(text: str, size: int) -> str:
    """Below 17 pixels the font's space is too narrow to be seen as one."""
    return text if size >= 17 else text.replace(" ", "  ")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
