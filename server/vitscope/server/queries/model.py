"""What queries ask of the server's live model; `vitscope.server.live` has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitscope.store.geometry import Rectangle
from vitscope.store.manifest import Pooling

Halves = npt.NDArray[np.float16]
Numbers = npt.NDArray[np.int64]


class Decoded(Protocol):
    """A picture as the index's decoder reads it, or the reason why there is none."""

    @property
    def reason(self) -> str:
        """Why it is no picture; empty where it is one."""

    @property
    def sha256(self) -> str:
        """Digest of the bytes, in lower-case hexadecimal."""

    @property
    def thumbnail(self) -> bytes:
        """The picture as the model sees it, as a JPEG."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the source picture in pixels."""

    @property
    def view(self) -> Rectangle | None:
        """What of the source picture the model's input shows."""


class Activation(Protocol):
    """What one layer holds on the B pictures of a forward, while it is at it; T tokens."""

    def scores(self, pooling: Pooling) -> Halves:
        """Scores (B, C), rounded as those of an index."""

    def pairs(self, pictures: Numbers, channels: Numbers) -> Halves:
        """Activations (M, T) of M pairs of a picture (M,) and a channel (M,)."""

    def whole(self, picture: int) -> Halves:
        """All activations (C, T) of a picture."""


Take = Mapping[str, Callable[[Activation], None]]
"""By layer, what is to be done with its activations in a forward."""


class LiveModel(Protocol):
    """The model of an index, ready to be run again; safe to call from many threads."""

    @property
    def has_pictures(self) -> bool:
        """Whether the pictures of the index can be read."""

    @property
    def batch_size(self) -> int:
        """Pictures of one forward, at most."""

    def read(self, row: int) -> bytes:
        """The encoded picture of a row; raises OSError where it cannot be read."""

    def decode(self, data: bytes) -> Decoded:
        """Bytes of a picture file as the index's decoder reads them."""

    def run(self, pictures: Sequence[Any], take: Take) -> None:
        """One forward of pictures that were decoded, valid ones."""
