"""How cost grows: with the pictures that are indexed, and with the rows that are asked.

    python -m vitscope.bench.growth [--quick] [--device DEVICE] [--json FILE]

Real runs of `vitscope index` over drawn scenes give seconds, memory, disk and what a question takes
afterwards, by the number of pictures; stores with drawn scores give disk, memory and questions by
the number of rows, up to as many as ImageNet has (fewer with --quick). Each cost c(n) is fitted as
a n^b by least squares of the logarithms; b is the exponent. Seconds of a run have a part that does
not grow, of starting and loading, which makes exponents of small numbers the smaller.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitscope.bench import arguments, asking, forward, memory, scale
from vitscope.bench.record import Row, size_of, write
from vitscope.indexer.job import prepare
from vitscope.indexer.options import Options
from vitscope.indexer.scenes.model import MODEL_NAME

PACKAGES = ("vitscope", "torch", "timm", "numpy", "tensorstore", "faiss-cpu")
PICTURES = (1_000, 2_000, 5_000, 10_000, 20_000)
ROWS = (10_000, 40_000, 160_000, 640_000, 1_280_000)
LAYER = "blocks.3.mlp"
COSTS = {
    "seconds": "s",
    "memory": "MB",
    "disk": "MB",
    "kept answer": "ms",
    "ranking of all": "ms",
}
"""What is told of each size, and its unit. Memory is that of all processes that index, and of rows
that of the one that asks."""


def main() -> int:
    """Run all sizes, print tables and exponents, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="three smaller sizes of each")
    parser.add_argument(
        "--device", type=arguments.device, default="cpu", help="that indexes, cpu or cuda"
    )
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    pictures, rows = ((250, 500, 1_000), ROWS[:3]) if args.quick else (PICTURES, ROWS)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        points = [of_pictures(Path(name), count, args.device) for count in pictures]
        found.append({"what": "pictures, indexed for real", "points": points})
        points = [of_rows(Path(name) / f"rows{count}", count) for count in rows]
        found.append({"what": "rows, of a drawn store", "points": points})
    for row in found:
        row["exponents"] = exponents(row["points"])
        show(row)
    if args.json:
        command = "python -m vitscope.bench.growth" + " --quick" * args.quick
        write(args.json, f"{command} --device {args.device}", found, PACKAGES)
    return 0


def of_pictures(folder: Path, count: int, device: str) -> Row:
    """Costs of an index of so many pictures."""
    found = memory.memory_row(folder, count, ("--device", device))
    index = folder / f"index{count}"
    costs = read_by_another(index, LAYER)
    disk = size_of(index)
    scenes = folder / "scenes" / "images"
    job = prepare(
        Options(model=MODEL_NAME, data=scenes, out=folder / "none", limit=1, device=device)
    )
    return {
        "n": count,
        "work": {
            "seconds": {"float32": count * forward.operations_of(job), "written": disk},
            "ranking of all": {"moved": count * 2},
        },
        "seconds": found["seconds"],
        "memory": found["tree_bytes"] / 1e6,
        "disk": disk / 1e6,
        "kept answer": costs.kept_ms,
        "ranking of all": costs.ranking_ms,
    }


def of_rows(folder: Path, count: int) -> Row:
    """Costs of a store with so many rows."""
    scale.make(folder, count)
    costs = read_by_another(folder, scale.LAYER.name)
    return {
        "n": count,
        "work": {"ranking of all": {"moved": count * 2}},
        "memory": costs.bytes / 1e6,
        "disk": size_of(folder) / 1e6,
        "kept answer": costs.kept_ms,
        "ranking of all": costs.ranking_ms,
    }


def read_by_another(index: Path, layer: str) -> asking.Costs:
    """What a fresh process needs that opens the index and asks it."""
    command = [sys.executable, "-m", asking.__name__, str(index), layer]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return asking.Costs(**json.loads(told))


def exponents(points: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """b of a n^b for every cost: least squares of logarithms."""
    sizes = np.log([point["n"] for point in points])
    return {
        # Nothing below the fourth digit is measured, nor the sign of a zero.
        cost: round(float(np.polyfit(sizes, np.log([point[cost] for point in points]), 1)[0]), 3)
        + 0.0
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
