"""Pictures of answers: a patch map over its image, and sheets of many.

picture = decode(image.jpeg)
overlay(picture, maps.values[0], top=float(maps.values.max()), grid=maps.grid)  # HWC uint8
cell = Cell(picture, maps.values[0], "1  fox", "9.41", maps.grid)
contact_sheet("blocks.5.mlp · channel 7", [cell])
"""

from vitscope.client.pictures.files import decode, png_bytes, save_png, sheet_png
from vitscope.client.pictures.overlay import heat, mask, overlay
from vitscope.client.pictures.sheet import Cell, Section, contact_sheet, gallery_sheet

__all__ = [
    "Cell",
    "Section",
    "contact_sheet",
    "decode",
    "gallery_sheet",
    "heat",
    "mask",
    "overlay",
    "png_bytes",
    "save_png",
    "sheet_png",
]
