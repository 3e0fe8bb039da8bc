"""How much memory `vitscope index` takes, and when, by the number of pictures.

    python -m vitscope.bench.memory [--quick] [--json FILE] [options of `vitscope index` …]

Ten times the pictures should take hardly more: units are written as they end, and merged from the
disk. Memory is the resident set of the command and all processes it starts, pages shared by
several counted for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitscope.bench import arguments
from vitscope.bench.record import machine, status
from vitscope.indexer.scenes import write_scenes
from vitscope.indexer.scenes.model import MODEL_NAME

_PACKAGES = ("torch", "timm", "numpy", "tensorstore", "faiss-cpu")
_SAMPLE_SECONDS = 0.1
_MIB = 1 << 20


def main() -> int:
    """Index sets of growing size, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="500 and 2,000 pictures only")
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args, options = parser.parse_known_args()
    counts = (500, 2_000) if args.quick else (1_000, 2_000, 20_000)
    with tempfile.TemporaryDirectory() as folder:
        rows = [memory_row(Path(folder), count, options) for count in counts]
    for row in rows:
        phases = ", ".join(f"{name} {size / _MIB:,.0f}" for name, size in row["phases"].items())
        print(
            f"{row['images']:>7,} images {row['seconds']:>8.1f} s   peak of all processes "
            f"{row['tree_bytes'] / _MIB:,.0f} MiB in {row['phase']}, of the first "
            f"{row['first_bytes'] / _MIB:,.0f} MiB   ({phases})"
        )
    growth = rows[-1]["tree_bytes"] - rows[0]["tree_bytes"]
    each = growth / (counts[-1] - counts[0])
    print(f"{growth / _MIB:+,.0f} MiB from {counts[0]:,} to {counts[-1]:,}, {each:,.0f} bytes each")
    if args.json:
        quick = " --quick" if args.quick else ""
        command = " ".join(["python -m vitscope.bench.memory" + quick, *options])
        result = {**machine(_PACKAGES), "command": command, "bytes_per_image": each, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def memory_row(folder: Path, count: int, options: Sequence[str]) -> dict[str, Any]:
    """Index so many drawn scenes in a process of its own, and watch it."""
    write_scenes(folder / "scenes", count)
    out = folder / f"index{count}"
    command = [sys.executable, "-m", "vitscope.client", "index", "--model", MODEL_NAME]
    command += ["--data", str(folder / "scenes" / "images"), "--out", str(out), *options]
    start = time.monotonic()
    phases: dict[str, int] = {}
    first = processes = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            where, tree = phase(out), tree_of(process.pid)
            # A process that ended in between has no numbers left.
            total = sum(status(number, "VmRSS") for number in tree)
            phases[where] = max(phases.get(where, 0), total)
            first = max(first, status(process.pid, "VmHWM"))
            processes = max(processes, len(tree))
            time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    where = max(phases, key=phases.__getitem__)
    return {
        "images": count,
        "seconds": time.monotonic() - start,
        # Between two samples the first process may have stood higher.
        "tree_bytes": max(phases[where], first),
        "phase": where,
        "first_bytes": first,
        "processes": processes,
        "phases": phases,
    }


def phase(out: Path) -> str:
    """What the command is at, by the files it has made."""
    if (out / "CURRENT").exists():
        return "end"
    if any((out / "building" / "staged" / "arrays.zarr").glob("layers/*/top_rows_*")):
        return "merge"
    return "units" if (out / "building" / "units").exists() else "loading"


def tree_of(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            children.setdefault(parent_of(int(entry)), []).append(int(entry))
    found = [root]
    for number in found:
        found += children.get(number, [])
    return found


def parent_of(number: int) -> int:
    """The process that started this one; 0 where it has ended."""
    return status(number, "PPid", unit=1)


if __name__ == "__main__":
    raise SystemExit(main())
