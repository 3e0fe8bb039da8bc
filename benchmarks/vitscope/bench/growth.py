"""How cost grows: with the pictures that are indexed, and with the rows that are asked.

    python -m vitscope.bench.growth [--quick] [--json FILE]

Real runs of `vitscope index` over drawn scenes give seconds, memory, disk and what a question takes
afterwards, by the number of pictures; stores with drawn scores give disk, memory and questions by
the number of rows, up to as many as ImageNet has. Each cost c(n) is fitted as a n^b by least
squares of the logarithms; b is the exponent. Seconds of a run have a part that does not grow, of
starting and loading, which makes exponents of small numbers the smaller.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitscope.bench import forward, memory, scale
from vitscope.bench.record import Row, size_of, timed, write
from vitscope.indexer.job import prepare
from vitscope.indexer.options import Options
from vitscope.indexer.scenes.model import MODEL_NAME
from vitscope.server.queries.filters import ImageFilter
from vitscope.server.queries.images import Question, top_images
from vitscope.store import layout
from vitscope.store.generation import Generation, open_generation

PACKAGES = ("vitscope", "torch", "timm", "numpy", "tensorstore", "faiss-cpu")
PICTURES = (1_000, 2_000, 5_000, 10_000, 20_000)
ROWS = (10_000, 40_000, 160_000, 640_000, 1_280_000)
LAYER = "blocks.3.mlp"
COSTS = {
    "seconds": "s",
    "memory": "bytes",
    "disk": "bytes",
    "kept answer": "ms",
    "ranking of all": "ms",
}
"""What is told of each size, and its unit."""


def main() -> int:
    """Run all sizes, print tables and exponents, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="three smaller sizes of each")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    pictures, rows = ((250, 500, 1_000), ROWS[:3]) if args.quick else (PICTURES, ROWS)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        points = [of_pictures(Path(name), count) for count in pictures]
        found.append({"what": "pictures, indexed for real", "points": points})
        points = [of_rows(Path(name) / f"rows{count}", count) for count in rows]
        found.append({"what": "rows, of a drawn store", "points": points})
    for row in found:
        row["exponents"] = exponents(row["points"])
        show(row)
    if args.json:
        write(
            args.json, "python -m vitscope.bench.growth" + " --quick" * args.quick, found, PACKAGES
        )
    return 0


def of_pictures(folder: Path, count: int) -> Row:
    """Costs of an index of so many pictures."""
    found = memory.memory_row(folder, count, ())
    index = folder / f"index{count}"
    generation = open_generation(index)
    kept, whole = asked(generation, LAYER, 512)
    disk = size_of(index)
    scenes = folder / "scenes" / "images"
    job = prepare(Options(model=MODEL_NAME, data=scenes, out=folder / "none", limit=1))
    return {
        "n": count,
        "work": {
            "seconds": {"float32": count * forward.operations_of(job), "written": disk},
            "ranking of all": {"moved": count * 2},
        },
        "seconds": found["seconds"],
        "memory": found["tree_bytes"],
        "disk": disk,
        "kept answer": kept,
        "ranking of all": whole,
    }


def of_rows(folder: Path, count: int) -> Row:
    """Costs of a store with so many rows."""
    generation = Generation(folder / layout.GENERATIONS / scale.make(folder, count))
    kept, whole = asked(generation, scale.LAYER.name, scale.LAYER.channels)
    return {
        "n": count,
        "work": {"ranking of all": {"moved": count * 2}},
        "memory": resident_after(folder),
        "disk": size_of(folder),
        "kept answer": kept,
        "ranking of all": whole,
    }


def asked(generation: Generation, layer: str, channels: int) -> tuple[float, float]:
    """Milliseconds of the best kept images of a channel, and of a ranking of all but one image."""
    some = range(0, channels, max(1, channels // 32))
    rows = tuple(range(1, min(generation.manifest.rows, 100_000)))
    found = []
    for question in (Question(k=20), Question(k=20, asked=ImageFilter(rows=rows))):
        top_images(generation, layer, 0, question)
        found.append(
            statistics.median(timed(top_images, generation, layer, c, question) for c in some)
        )
    return found[0], found[1]


def resident_after(index: Path) -> int:
    """Bytes that a process holds which has opened the index and ranked some channels of it."""
    code = (
        "import sys; from pathlib import Path; from vitscope.bench import growth, scale;"
        "from vitscope.store.generation import Generation; [g] = Path(sys.argv[1]).iterdir();"
        "growth.asked(Generation(g), scale.LAYER.name, scale.LAYER.channels);"
        "from vitscope.bench.memory import status; import os; print(status(os.getpid(), 'VmHWM'))"
    )
    command = [sys.executable, "-c", code, str(index / layout.GENERATIONS)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def exponents(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """b of a n^b for every cost: least squares of logarithms."""
    sizes = np.log([point["n"] for point in points])
    return {
        cost: float(np.polyfit(sizes, np.log([point[cost] for point in points]), 1)[0])
        for cost in COSTS
        if cost in points[0]
    }


def show(row: Row) -> None:
    """Print a table."""
    costs = [cost for cost in COSTS if cost in row["points"][0]]
    print(f"\n{row['what']}")
    print(f"  {'n':>10}", *(f"{cost + ', ' + COSTS[cost]:>20}" for cost in costs))
    for point in row["points"]:
        print(f"  {point['n']:>10,}", *(f"{point[cost]:>20,.2f}" for cost in costs))
    print(
        f"  {'exponent':>10}", *(f"{row['exponents'][cost]:>20.2f}" for cost in costs), flush=True
    )


if __name__ == "__main__":
    raise SystemExit(main())
