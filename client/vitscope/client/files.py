"""Files that the commands write."""

import os
from pathlib import Path

from vitscope.client.errors import UsageError


def partial_beside(path: Path) -> Path:
    """Where this process writes what becomes `path` when it is whole."""
    return path.with_name(f".vitscope.{os.getpid()}.partial")


def is_partial(path: Path) -> bool:
    """Whether a process wrote it that may have been killed."""
    return path.match(".vitscope.*.partial")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all, over what was there."""
    partial = partial_beside(path)
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)


def png_target(name: str) -> Path:
    """`name` as a PNG file that can be written, or the reason why not."""
    path = Path(name)
    if path.suffix.lower() != ".png":
        raise UsageError(f"--png writes PNG files; {name!r} must end in .png.")
    try:
        if not path.parent.is_dir():
            raise UsageError(f"The folder of {name} does not exist; make {path.parent} first.")
        if path.is_dir():
            raise UsageError(f"{name} is a folder; name a file for --png.")
    except OSError as error:  # such as a name that is too long
        raise UsageError(f"Cannot write {name}: {error.strerror}.") from None
    return path


def folder_target(name: str) -> Path:
    """`name` as a folder to write into, made where it is missing."""
    path = Path(name)
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{name} is not a folder; name one for --out.") from None
    except OSError as error:
        raise UsageError(f"Cannot make the folder {name}: {error.strerror}.") from None
    return path
