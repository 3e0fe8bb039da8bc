"""What it costs to open an index and to ask it, for a process that does nothing else.

    python -m vitscope.bench.asking INDEX LAYER

Prints JSON. Nothing that only an indexer needs is loaded.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from vitscope.bench.record import status, timed
from vitscope.server.queries.images import Question, top_images
from vitscope.store.generation import Generation, open_generation

CHANNELS = 32
K = 20


@dataclass(frozen=True)
class Costs:
    """Of questions about one layer."""

    kept_ms: float
    """The best images of a channel, which are kept."""
    ranking_ms: float
    """One more than are kept: a ranking of all rows."""
    bytes: int
    """The most that the process held."""


def costs_of(generation: Generation, name: str) -> Costs:
    """Medians over channels, each asked once."""
    layer = generation.layer(name)
    some = range(1, layer.channels, max(1, layer.channels // CHANNELS))

    def median(k: int) -> float:
        question = Question(k=k)
        top_images(generation, name, 0, question)
        return statistics.median(timed(top_images, generation, name, c, question) for c in some)

    return Costs(median(K), median(layer.top_k + 1), status(os.getpid(), "VmHWM"))


if __name__ == "__main__":
    print(json.dumps(asdict(costs_of(open_generation(Path(sys.argv[1])), sys.argv[2]))))
