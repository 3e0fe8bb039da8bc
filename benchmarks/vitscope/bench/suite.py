"""All benchmarks one after the other, each in a process of its own; what was done is kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vitscope
from vitscope.bench.record import machine

PACKAGES = (
    "vitscope",
    "torch",
    "timm",
    "numpy",
    "numba",
    "tensorstore",
    "zarr",
    "faiss-cpu",
    "faiss-gpu",
    "grpcio",
    "pillow",
)
PARTS, VENVS = "parts", "venvs"


class BenchError(Exception):
    """A benchmark could not be run, or what it was given cannot be used."""

    exit_code = 3


@dataclass(frozen=True)
class Benchmark:
    """A module `vitscope.bench.NAME` that takes --json, and what else it is given."""

    name: str
    area: str
    full: Sequence[str] = ()
    quick: Sequence[str] = ("--quick",)
    on_device: bool = False
    """Takes --device."""
    kept: bool = False
    """Takes --venvs, a folder that stays for the next time."""
    judges: bool = False
    """Ends with 1, and a result, where it missed a target."""


SUITE = (
    Benchmark("limits", "limits", on_device=True),
    Benchmark("forward", "index", on_device=True),
    Benchmark("indexing", "index", on_device=True),
    Benchmark("decoders", "index", quick=("--limit", "24"), on_device=True),
    Benchmark("store", "store"),
    Benchmark("answers", "query"),
    Benchmark("questions", "query"),
    Benchmark("scale", "query"),
    Benchmark("throughput", "serve"),
    Benchmark("overload", "serve", ("--minutes", "2"), ("--quick", "--minutes", "1"), judges=True),
    Benchmark("growth", "growth", on_device=True),
    Benchmark("peers", "peers", kept=True),
)
AREAS = ("index", "store", "query", "serve", "growth", "peers")


def chosen(areas: Collection[str]) -> list[Benchmark]:
    """Those of some areas, and the machine's limits, by which all are judged."""
    return [each for each in SUITE if each.area in areas or each.area == "limits"]


def run_suite(
    some: Sequence[Benchmark], folder: Path, *, quick: bool, device: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """What all of them found. A run that was cut short goes on where it was, with the same code.

    Raises `BenchError` where one fails.
    """
    parts = folder / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    code = stamp()
    begun = time.monotonic()
    for number, benchmark in enumerate(some, 1):
        command = arguments_of(benchmark, quick=quick, device=device)
        path = parts / f"{benchmark.name}.json"
        head = f"[{number}/{len(some)}] {benchmark.name}"
        if (before := _kept(path, command, code)) is not None:
            say(f"{head}: kept from the run that was cut short")
            found[benchmark.name] = before
            continue
        say(f"{head}, after {time.monotonic() - begun:,.0f} s: {benchmark.area}")
        start = time.monotonic()
        kept: list[str | Path] = ["--venvs", folder / VENVS] if benchmark.kept else []
        _run(benchmark, [*command, *kept], path)
        body = json.loads(path.read_text())
        # Of the whole command, preparations too.
        body["seconds"] = time.monotonic() - start
        body |= {"asked": command, "code": code}
        path.write_text(json.dumps(body))
        found[benchmark.name] = body
    words = ["vitscope bench", *_areas_of(some), *["--quick"] * quick]
    words += [f"--device {device}"] if device != "cpu" else []
    body = {**machine(PACKAGES), "command": " ".join(words), "quick": quick, "device": device}
    body |= {"gpu": found["limits"]["gpu"], "parts": found}
    body["seconds"] = sum(part["seconds"] for part in found.values())
    return body


def forget(folder: Path) -> None:
    """Begin anew the next time."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def arguments_of(benchmark: Benchmark, *, quick: bool, device: str) -> list[str]:
    """What its module is given."""
    found = [*(benchmark.quick if quick else benchmark.full)]
    return [*found, "--device", device] if benchmark.on_device else found


def _areas_of(some: Sequence[Benchmark]) -> list[str]:
    areas = {each.area for each in some}
    return [area for area in AREAS if area in areas] if areas < {*AREAS, "limits"} else ["all"]


def stamp() -> str:
    """Of all code that is measured, and what it runs on."""
    digest = hashlib.sha256(json.dumps(machine(PACKAGES)["versions"]).encode())
    for root in sorted(vitscope.__path__):
        for file in sorted(Path(root).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _kept(path: Path, command: Sequence[str], code: str) -> Mapping[str, Any] | None:
    try:
        body: Mapping[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    same = body.get("asked") == list(command) and body.get("code") == code
    return body if same else None


def _run(benchmark: Benchmark, command: Sequence[str | Path], path: Path) -> None:
    path.unlink(missing_ok=True)
    module = f"vitscope.bench.{benchmark.name}"
    done = subprocess.run([sys.executable, "-m", module, *command, "--json", path], check=False)
    if done.returncode not in ((0, 1) if benchmark.judges else (0,)) or not path.exists():
        # What some write as they go is no result.
        path.unlink(missing_ok=True)
        raise BenchError(
            f"The benchmark {benchmark.name} ended with {done.returncode} and without a result; "
            f"see what it said above, and run it alone with: python -m {module}"
        )
