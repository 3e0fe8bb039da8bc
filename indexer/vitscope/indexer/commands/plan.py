"""tell what an indexing run will take, from a short probe of it: bytes, memory and time"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscope.indexer.commands._options import add_run_arguments, options_from
from vitscope.store.text import counted

if TYPE_CHECKING:
    from vitscope.indexer.estimate import Estimate

EXTRA = "indexer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("vitscope-index"),
        metavar="INDEX",
        help="where the index would be made; its disk is tried (default ./vitscope-index)",
    )
    add("--json", action="store_true", help="print one object")
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Probe the run and print the estimate."""
    from vitscope.indexer.estimate import estimate

    found = estimate(options_from(args, args.out))
    print(json.dumps(_as_json(found)) if args.json else _as_text(found, args.workers or 1))
    return 0


def _as_json(found: Estimate) -> dict[str, Any]:
    plan = found.job.plan
    return {
        "model": plan.model.name,
        "input_size": plan.model.input_size,
        "device": found.job.device,
        "layers": [layer.name for layer in plan.layers],
        "left_out": [asdict(block) for block in found.job.left_out],
        "images": found.images,
        "units": found.units,
        "unit_rows": plan.unit_rows,
        "batch_size": plan.batch_size,
        "bytes": found.bytes,
        "bytes_per_image": found.bytes_image,
        "bytes_once": found.bytes_once,
        "memory_bytes": found.memory,
        "device_memory_bytes": found.device_memory,
        "seconds": found.seconds,
        "images_per_second": found.images_per_second,
        "disk_bytes_per_second": found.disk_bytes_per_second,
        "probed_images": found.probed,
    }


def _as_text(found: Estimate, workers: int) -> str:
    plan = found.job.plan
    height, width = plan.model.input_size
    device = f" and {_bytes(found.device_memory)} on {found.job.device}"
    lines = [
        f"model    {plan.model.name}, {height} x {width} pixels, "
        f"{counted(len(plan.layers), 'layer')}, on {found.job.device}",
        f"images   {found.images:,}, in {counted(found.units, 'unit')} of {plan.unit_rows:,}",
        f"disk     {_bytes(found.bytes)}: {_bytes(found.bytes_image)} an image, and "
        f"{_bytes(found.bytes_once)} of top maps and correlations; "
        f"{_duration(found.bytes / found.disk_bytes_per_second)} of writing at "
        f"{_bytes(found.disk_bytes_per_second)}/s, beside the rest",
        f"memory   {_bytes(found.memory)}{device if found.device_memory else ''}"
        f"{f', in each of {workers} processes' if workers > 1 else ''}",
        f"time     {_duration(found.seconds)} at {found.images_per_second:,.1f} images/s, and the "
        "merge at the end",
        f"(from {counted(found.probed, 'image')} decoded, run and reduced just now"
        f"{'; a process that shares its cores with others is slower' if workers > 1 else ''})",
    ]
    return "\n".join([*map(str, found.job.left_out), *lines])


def _bytes(number: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.{int(number < 10 and unit != 'bytes')}f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 172_800 else f"{seconds / 86_400:,.1f} days"
