"""Describe images and fetch their thumbnails."""

import argparse
from pathlib import Path

from vitscope.client.commands import _common
from vitscope.client.files import folder_target, write_atomically
from vitscope.client.results import Image
from vitscope.client.text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    parser.add_argument(
        "--row",
        metavar="R",
        type=int,
        action="append",
        required=True,
        help="an image's row in the index; may be given many times",
    )
    parser.add_argument("--out", metavar="DIR", help="write the thumbnails here as row_R.jpg")
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with _common.connect(args) as client:
        images = client.images(args.row, index=args.index)
    folder = None if args.out is None else folder_target(args.out)
    files = [None if folder is None else _save(image, folder) for image in images]
    if args.json:
        described = [_described(*pair) for pair in zip(images, files, strict=True)]
        _common.print_json({"generation": images[0].generation, "images": described})
    else:
        _print_table(images, files)
    return 0


def _save(image: Image, folder: Path) -> Path | None:
    """The thumbnail's file, named by its row alone; None where no thumbnail is stored."""
    if not image.jpeg:
        return None
    path = folder / f"row_{image.row:06d}.jpg"
    write_atomically(path, image.jpeg)
    return path


def _described(image: Image, file: Path | None) -> dict[str, object]:
    return {
        "row": image.row,
        "key": image.key,
        "label": image.label,
        "valid": image.valid,
        "invalid_reason": image.invalid_reason,
        "width": image.width,
        "height": image.height,
        "view": image.view,
        "file": None if file is None else str(file),
    }


def _print_table(images: list[Image], files: list[Path | None]) -> None:
    rows = [
        (
            image.row,
            image.label or "-",
            image.key,
            "ok" if image.valid else f"unreadable: {image.invalid_reason}",
            file or "-",
        )
        for image, file in zip(images, files, strict=True)
    ]
    print(table(["row", "label", "key", "state", "file"], rows))
