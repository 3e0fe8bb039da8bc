"""What a decoder on a GPU reads otherwise than libjpeg does, or reads where libjpeg refuses.

Markers and tables are those of ITU-T T.81 (JPEG), annexes B and C.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL.JpegImagePlugin import JpegImageFile

_START_OF_SCAN, _HUFFMAN = 0xDA, 0xC4
_ALONE = (0x01, *range(0xD0, 0xD8))
"""Markers without a segment."""
_LENGTHS = 16
_LAST_CATEGORY = 15
"""Of differences of DC coefficients, at 12 bits a sample."""


def is_whole(data: bytes) -> bool:
    """Whether the end mark is there: a file that was cut may be filled up."""
    return data.rstrip(b"\0").endswith(b"\xff\xd9")


def is_luminance_first(image: JpegImageFile) -> bool:
    """Whether three components are Y, Cb and Cr, by the rules of libjpeg."""
    if len(image.layer) != 3 or "jfif" in image.info:
        return True
    if "adobe" in image.info:
        return image.info.get("adobe_transform") != 0
    return bytes(component[0] for component in image.layer) != b"RGB"


def has_sound_tables(data: bytes) -> bool:
    """Whether Huffman tables before the first scan are such as libjpeg takes."""
    return all(_is_sound(payload) for marker, payload in _segments(data) if marker == _HUFFMAN)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and their payloads, up to the first scan."""
    place = 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        # Bytes of padding may stand before a marker.
        if data[place] != 0xFF or marker in (0xFF, *_ALONE):
            place += 1 if marker == 0xFF or data[place] != 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            return
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        yield marker, data[place + 4 : end]
        place = max(end, place + 4)


def _is_sound(payload: bytes) -> bool:
    """One or more tables of a segment: codes of each length fit, and DC categories exist."""
    while payload:
        (kind, number), counts = divmod(payload[0], 16), payload[1 : 1 + _LENGTHS]
        if kind > 1 or number > 3:
            return False
        symbols = payload[1 + _LENGTHS : 1 + _LENGTHS + sum(counts)]
        room = 1
        for count in counts:
            room = 2 * room - count
            # The code of ones alone is none.
            if room < 1:
                return False
        if len(symbols) < sum(counts) or len(counts) < _LENGTHS:
            return False
        if kind == 0 and max(symbols, default=0) > _LAST_CATEGORY:
            return False
        payload = payload[1 + _LENGTHS + len(symbols) :]
    return True
