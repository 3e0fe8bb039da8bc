"""What exports of all kinds rest on: one generation throughout, channels and rows in blocks."""

import argparse
from collections.abc import Iterator, Sequence

from vitscope.client.errors import NotFoundError, UsageError
from vitscope.client.results import Index

CHANNELS_AT_ONCE = 64
"""Of a question about many channels: each call has the client's timeout to itself."""


def chosen_channels(index: Index, args: argparse.Namespace) -> list[int]:
    """The channels that are asked for, each once; all of the layer where none is named."""
    count = next((each.channels for each in index.layers if each.name == args.layer), None)
    if count is None:
        raise NotFoundError(f"The index has no layer {args.layer!r}; `vitscope layers` lists them.")
    if args.channels is None:
        return list(range(count))
    for channel in args.channels:
        if not 0 <= channel < count:
            raise NotFoundError(
                f"{args.layer} has no channel {channel}; it has channels 0 to {count - 1}."
            )
    return list(dict.fromkeys(args.channels))


def in_blocks(values: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    """The values in blocks of `length`, the last one shorter."""
    return (values[start : start + length] for start in range(0, len(values), length))


def require_generation(index: Index, generation: str) -> None:
    """Raise where a reply is of another generation than the export began with."""
    if generation != index.generation:
        raise UsageError(
            f"The index was published anew during the export ({generation} after "
            f"{index.generation}); export again."
        )


def described(index: Index) -> dict[str, object]:
    """What every export tells of the index it was made from."""
    return {
        "index": index.name,
        "generation": index.generation,
        "model": index.model.name,
        "weights_sha256": index.model.weights_sha256,
    }
