"""ImageNet's own boxes: PASCAL VOC annotations, one XML file a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar
from xml.etree import ElementTree

from vitscope.indexer.errors import SourceError
from vitscope.indexer.sources.boxlist import BoxListBuilder, Frame, RowBoxes, make_box
from vitscope.indexer.sources.files import refuse_folder
from vitscope.indexer.sources.notices import Notices
from vitscope.indexer.sources.rows import Source
from vitscope.store.boxes import Box

_XML_BYTES = 4 << 20

AnySource = TypeVar("AnySource", bound=Source)


def with_xml_boxes(source: AnySource, folder: Path) -> AnySource:
    """`source` with the boxes of the annotations below `folder`, matched by file name stem.

    A picture with an annotation has its boxes and no others; the rest stay as they are. Raises
    `SourceError` where no annotation belongs to a picture, or one cannot be read.
    """
    annotations = _annotations(folder)
    boxes = BoxListBuilder()
    notices = Notices()
    matched = 0
    for row, key in enumerate(source.rows.keys):
        path = annotations.get(_stem(key))
        matched += path is not None
        boxes.add(read_annotation(folder / path, notices) if path else source.rows.boxes[row])
    if not matched:
        raise SourceError(
            f"No annotation in {folder} belongs to a picture: the first picture is "
            f"{source.rows.keys[0]}, the first annotation {next(iter(annotations.values()))}."
        )
    rows = replace(source.rows, boxes=boxes.freeze())
    return replace(source, rows=rows, notices=(*source.notices, *notices.sentences()))


def read_annotation(path: Path, notices: Notices) -> RowBoxes:
    """The boxes of one XML file, as they were drawn; raises `SourceError` where it is damaged."""
    try:
        with path.open("rb") as file:
            data = file.read(_XML_BYTES + 1)
        # Entities can make a few bytes into gigabytes, and an annotation needs none.
        if len(data) > _XML_BYTES or b"<!" in data:
            raise ValueError("it is too long or declares a document type")
        root = ElementTree.fromstring(data)
        boxes = [box for each in root.iter("object") if (box := _box(each, path, notices))]
        return RowBoxes(tuple(boxes), _frame(root))
    except OSError as error:
        fault: object = error.strerror
    except (ElementTree.ParseError, ValueError) as error:
        fault = error
    raise SourceError(f"The annotation {path} cannot be read ({fault}).")


def _box(element: ElementTree.Element, path: Path, notices: Notices) -> Box | None:
    around = element.find("bndbox")
    if around is None:
        raise ValueError("an object has no bndbox")
    x = sorted((_number(around, "xmin"), _number(around, "xmax")))
    y = sorted((_number(around, "ymin"), _number(around, "ymax")))
    if x[0] == x[1] or y[0] == y[1]:
        notices.count("boxes that are empty", f"in {path}")
        return None
    label = (element.findtext("name") or "").strip()
    return make_box(label or None, (x[0], y[0], x[1], y[1]))


def _frame(root: ElementTree.Element) -> Frame | None:
    """Annotators saw ImageNet's pictures at another size than they have."""
    size = root.find("size")
    if size is None:
        return None
    width, height = int(_number(size, "width")), int(_number(size, "height"))
    return (width, height) if 0 < width < 1 << 31 and 0 < height < 1 << 31 else None


def _number(element: ElementTree.Element, name: str) -> float:
    text = element.findtext(name)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is {text!r} instead of a number")
    return number


def _annotations(folder: Path) -> dict[str, str]:
    """Paths of all annotations below `folder`, by file name stem."""
    if not folder.is_dir():
        raise SourceError(f"There is no folder of annotations {folder}.")
    found: dict[str, str] = {}
    for path in sorted(_xml_files(folder)):
        other = found.setdefault(_stem(path), path)
        if other != path:
            raise SourceError(
                f"{folder} has two annotations called {_stem(path)}, {other} and {path}."
            )
    if not found:
        raise SourceError(f"{folder} holds no annotation; vitscope looks for files ending in .xml.")
    return found


def _xml_files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder, onerror=refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(place).relative_to(folder)
        yield from (
            (below / name).as_posix()
            for name in files
            if name.lower().endswith(".xml") and not name.startswith(".")
        )


def _stem(path: str) -> str:
    return PurePosixPath(path).stem
