"""What a server says of itself, on stderr."""

from __future__ import annotations

import logging


def set_up(level: int = logging.INFO) -> None:
    """Lines with time and level from now on."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    # FAISS tells how it probed the processor.
    logging.getLogger("faiss").setLevel(logging.WARNING)
