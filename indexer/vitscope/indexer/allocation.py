"""Where large memory comes from, and what the C library does with it when it is freed."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch

# As in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_MOST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Keep what a forward frees for the next one, where the C library is glibc.

    It gives large blocks back to the system otherwise, which has to clear every page of them again:
    13 % of a forward of ViT-Small/16 and 24 % of Swin-Tiny, at 32 images on 2 cores.
    """
    with suppress(OSError, AttributeError):
        change = ctypes.CDLL(None).mallopt
        change(_TRIM_THRESHOLD, _MOST)
        change(_MMAP_MAX, 0)


def halves(shape: Sequence[int], device: str | torch.device) -> torch.Tensor:
    """A float16 tensor to be written in random places; what it holds before is of no use.

    On the processor in pages of 2 MB where Linux has them: to find and clear a gigabyte of small
    ones takes 0.4 to 3 seconds, and to find one that is not in the processor's tables as long as to
    write a map.
    """
    size = math.prod(shape) * torch.float16.itemsize
    if torch.device(device).type != "cpu" or not size:
        return torch.empty(*shape, dtype=torch.float16, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float16).view(*shape)
