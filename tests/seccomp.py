"""Makes system calls of this process fail, with EIO as on a dying disk where nothing else is said.

A seccomp filter is the kernel's own: it holds for Python and for the threads of C++ libraries
alike, and cannot be taken off again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple


class _Numbers(NamedTuple):
    """What the kernel calls things on one kind of processor."""

    audit: int
    seccomp: int
    always: dict[str, int]
    """Calls that fail whatever their arguments are."""
    writes: tuple[int, ...]
    """write and its kin, which fail on all but the standard streams."""
    openat: int


_MACHINES = {
    "x86_64": _Numbers(
        0xC000003E,
        317,
        {
            "fsync": 74,
            "fdatasync": 75,
            "ftruncate": 77,
            "flock": 73,
            "rename": 82,
            "renameat": 264,
            "renameat2": 316,
        },
        (1, 18, 20, 296, 328),
        257,
    ),
    "aarch64": _Numbers(
        0xC00000B7,
        277,
        {
            "fsync": 82,
            "fdatasync": 83,
            "ftruncate": 46,
            "flock": 32,
            "renameat": 38,
            "renameat2": 276,
        },
        (64, 66, 68, 70, 287),
        56,
    ),
}

KINDS = {
    "all": ("fsync", "fdatasync", "ftruncate", "rename", "write", "create"),
    "sync": ("fsync", "fdatasync"),
    "write": ("write",),
    "rename": ("rename",),
    "create": ("create",),
}
"""Which calls fail together. `create` is the opening of a file that may be made by it."""

# linux/filter.h: load a word, jump if equal, greater or a bit is set, return.
_LOAD, _EQUAL, _GREATER, _BITS, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW = 0x7FFF0000
_FAIL = 0x00050000
"""With the error's number in the low half."""
_NR, _ARCH, _FIRST, _THIRD = 0, 4, 16, 32
"""Offsets in struct seccomp_data; the low halves of arguments, on little-endian machines."""

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

Instruction = tuple[int, int, int, int]


def program(kind: str, error: int = errno.EIO) -> list[Instruction]:
    """The filter for one of `KINDS`, or for one call, that gives the number `error`.

    Raises `KeyError` on a processor that is not known here.
    """
    fail = (_RETURN, 0, 0, _FAIL | error)
    numbers = _MACHINES[platform.machine()]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, numbers.audit),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for call in KINDS.get(kind, (kind,)):
        if call == "write":
            for number in numbers.writes:
                code += [*_if(number, _FIRST, _GREATER, 2), fail]
        elif call == "create":
            code += [*_if(numbers.openat, _THIRD, _BITS, os.O_CREAT), fail]
        else:
            for name, number in numbers.always.items():
                if name.startswith(call):
                    code += [(_LOAD, 0, 0, _NR), (_EQUAL, 0, 1, number), fail]
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _if(number: int, argument: int, test: int, value: int) -> list[Instruction]:
    """Go on with the next instruction where an argument of the call passes a test, else skip it."""
    return [
        (_LOAD, 0, 0, _NR),
        (_EQUAL, 0, 3, number),
        (_LOAD, 0, 0, argument),
        (test, 0, 1, value),
    ]


def install(code: Sequence[Instruction]) -> None:
    """Put a filter on all threads of this process, for good; raises `OSError`."""
    packed = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
    body = ctypes.create_string_buffer(packed, len(packed))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    made = Program(len(code), ctypes.addressof(body))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    number = _MACHINES[platform.machine()].seccomp
    call = libc.syscall
    call.restype = ctypes.c_long
    if call(number, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(made)):
        raise OSError(ctypes.get_errno(), "seccomp")


def obstacle() -> str:
    """Why no filter can be installed here; empty where it can."""
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return f"no seccomp numbers for {platform.system()} on {platform.machine()}"
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no seccomp here: {done.stderr.strip()[-200:]}"


def _try() -> None:
    """Exit with 0 where a filter does what it says."""
    install(program("sync"))
    try:
        os.fsync(os.open("/", os.O_RDONLY))
    except OSError as error:
        raise SystemExit(error.errno != errno.EIO) from None
    raise SystemExit("fsync went on working")


if __name__ == "__main__":
    _try()
