"""Timing, and what every result file says of itself."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Json = dict[str, Any]
Row = Json
Samples = Mapping[str, Sequence[float]]
Prepare = Callable[[Path], Callable[[], None]]

_EXTRA = ("speed", "speed_MB_s", "processor_ms")


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds that one call takes."""
    start = time.perf_counter()
    call(*arguments)
    return (time.perf_counter() - start) * 1e3


def compared(what: str, samples: Samples, floor: str, **more: Any) -> Row:
    """One row: what every side took in interleaved rounds, and its ratio to the floor.

    Ratios are medians over rounds of time ÷ time of the floor in the same round, with quartiles.
    What the work is bounded by, as `figures.Work`, is given as `work`, and as `work_of` that of
    sides of which it is another.
    """
    sides = {}
    for name, taken in samples.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, samples[floor], strict=True)]
        low, middle, high = _quartiles(taken)
        sides[name] = {
            "ms": middle,
            "ms_quartiles": [low, high],
            "ms_best": min(taken),
            "ms_p99": sorted(taken)[min(len(taken) - 1, int(len(taken) * 0.99))],
            "ratio": statistics.median(ratios),
            "ratio_quartiles": _quartiles(ratios)[::2],
        }
    return {"what": what, "floor": floor, "rounds": len(samples[floor]), "sides": sides, **more}


def rates(
    what: str,
    folder: Path,
    rounds: int,
    sides: Mapping[str, Prepare],
    size: int,
    unwritten: Collection[str] = (),
) -> Row:
    """One row of writing `size` bytes, the first side being the floor; one round more warms up.

    A side makes ready to write to a path, which is not timed, and gives what writes.

    Also gives bytes per second ÷ the floor's in the same round, and the processor's time. What the
    last round wrote stays, in a folder or file of the side's number. Sides `unwritten` have not got
    it to the disk in the end.
    """
    wall: dict[str, list[float]] = {name: [] for name in sides}
    busy: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for place, (name, prepare) in enumerate(sides.items()):
            path = folder / str(place)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            write_once = prepare(path)
            os.sync()
            start = time.process_time()
            taken = timed(write_once)
            if number:
                wall[name].append(taken)
                busy[name].append((time.process_time() - start) * 1e3)
    floor = next(iter(sides))
    row = compared(what, wall, floor, bytes=size, work={"written": size})
    row["work_of"] = {name: {} for name in unwritten}
    for name, side in row["sides"].items():
        speeds = [base / mine for base, mine in zip(wall[floor], wall[name], strict=True)]
        side["speed"] = statistics.median(speeds)
        side["speed_quartiles"] = _quartiles(speeds)[::2]
        side["speed_of_medians"] = row["sides"][floor]["ms"] / side["ms"]
        side["speed_MB_s"] = size / side["ms"] / 1e3
        side["processor_ms"] = statistics.median(busy[name])
    return row


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(
        os.path.getsize(os.path.join(place, name))
        for place, _, names in os.walk(folder)
        for name in names
    )


def status(number: int, name: str, unit: int = 1 << 10) -> int:
    """A number from the status of a process, in bytes where it is a size; 0 where there is none."""
    try:
        text = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return 0
    _, found, rest = text.partition(f"\n{name}:")
    return int(rest.split(maxsplit=1)[0]) * unit if found else 0


def _quartiles(values: Sequence[float]) -> list[float]:
    return (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    )


def show(rows: Iterable[Row]) -> None:
    """Print rows of `compared` as a table."""
    for row in rows:
        print(f"\n{row['what']}  ({row['rounds']} rounds)")
        for name, side in row["sides"].items():
            low, high = side["ms_quartiles"]
            print(
                f"  {name:<45} {side['ms']:>9.3f} ms ({low:.3f} to {high:.3f},"
                f" best {side['ms_best']:.3f})"
                f"  x {side['ratio']:.2f}",
                *(f" {key} {side[key]:.2f}" for key in _EXTRA if key in side),
                flush=True,
            )


def write(path: Path, command: str, rows: Sequence[Row], packages: Sequence[str]) -> None:
    """Write a result file: hardware, versions, command, date and rows."""
    body = {**machine(packages), "command": command, "rows": list(rows)}
    path.write_text(json.dumps(body, indent=1) + "\n")


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Hardware, versions and date."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "date": date.today().isoformat(),
        "processor": processor,
        "threads": os.cpu_count(),
        "gpu": _gpu(),
        "load_average": os.getloadavg()[2],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
    }


def _gpu() -> str:
    """The card that this process has used; none where it has used none."""
    torch: Any = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    return str(torch.cuda.get_device_name()) if used else "none"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
