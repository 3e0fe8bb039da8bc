"""How many images fit in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from vitscope.indexer.errors import IndexingError
from vitscope.indexer.model import LoadedModel

USUAL_BATCH = 32
"""On a processor larger batches are no faster, and leave its caches."""
_LARGEST_BATCH = 256
_SHARE = 0.7
"""Of a device's memory; allocators leave gaps, and a reduction works beside the model."""

_WORDS = "can't allocate memory", "could not create a primitive"
"""What torch's allocator and oneDNN say on the processor, in a plain RuntimeError."""


def ended_for_want_of_memory(error: Exception) -> bool:
    """Whether it was lack of memory that raised this."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or any(words in str(error) for words in _WORDS)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise `IndexingError` where memory ends in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ended_for_want_of_memory(error):
            raise
        raise IndexingError(
            "There is not enough memory; free some and run the same command again to go on, or "
            "begin anew with another --out and a smaller --batch-size, --unit-rows or --top-k."
        ) from error


def batch_for(model: LoadedModel, device: str, held: int) -> int:
    """How many images a forward on `device` should take, `held` bytes of it being taken besides.

    A matter of the model and the device alone, not of how busy it is: it decides about bits.
    """
    if not device.startswith("cuda"):
        return USUAL_BATCH

    def peak(images: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        pixels = torch.zeros(images, 3, *model.input_size, device=device, dtype=model.dtype)
        with torch.inference_mode():
            model.module(pixels)
        return int(torch.cuda.max_memory_allocated(device)) + held

    try:
        return largest_batch(peak, torch.cuda.get_device_properties(device).total_memory)
    except torch.OutOfMemoryError:
        return 1


def largest_batch(peak: Callable[[int], int], memory: int) -> int:
    """The largest power of two whose `peak`, in bytes, stays well within `memory`; at least 1.

    A peak is some bytes, and some more for each image: two measurements tell both.
    """
    few, many = peak(8), peak(16)
    each = max(1, (many - few) // 8)
    images = (memory * _SHARE - (few - 8 * each)) / each
    batch = 1
    while 2 * batch <= min(images, _LARGEST_BATCH):
        batch *= 2
    return batch
