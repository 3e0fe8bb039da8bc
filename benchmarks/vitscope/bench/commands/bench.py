"""measure this machine: indexing, store, questions, serving, growth, and other tools beside"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

EXTRA = "bench"
MARGIN = 0.5
_AREAS = ("index", "store", "query", "serve", "growth", "peers")
"""As the suite has them, which is not loaded for --help."""
_ROOM = {"growth": 4.0, "peers": 8.0}
"""Gigabytes: indexes of growing size; the tools' environments, and every activation in files."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "A report with plots and the figures as JSON go to the folder --out. A run that was cut "
        "short goes on where it was when it is started again with the same arguments."
    )
    parser.add_argument(
        "areas",
        nargs="*",
        type=_area,
        default=["all"],
        metavar="AREA",
        help=f"what to measure: {', '.join(_AREAS)}, or all (the default)",
    )
    parser.add_argument("--quick", action="store_true", help="all in less than 20 minutes")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("vitscope-bench"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="F", help="a copy of the figures")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("OLD", "NEW"),
        help="measure nothing; tell what changed between two files of figures",
    )
    parser.add_argument(
        "--check",
        type=Path,
        metavar="BASELINE",
        help="fail where a ratio is worse than in these figures by more than --margin",
    )
    parser.add_argument(
        "--margin",
        type=_margin,
        default=MARGIN,
        metavar="M",
        help=f"by how much worse: {MARGIN} is half as long again (the default)",
    )


def _area(text: str) -> str:
    if text not in (*_AREAS, "all"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_AREAS)}, all")
    return text


def _margin(text: str) -> float:
    try:
        margin = float(text)
    except ValueError:
        margin = -1.0
    if not 0 <= margin < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return margin


def run(args: argparse.Namespace) -> int:
    """Measure and report, or compare."""
    from vitscope.bench import suite

    if args.compare:
        if args.check:
            raise suite.BenchError("--compare measures nothing that could be held to --check.")
        before, after = map(_read, args.compare)
        _compare(before, after)
        return 0
    areas = _AREAS if "all" in args.areas else args.areas
    chosen = suite.chosen(areas)
    baseline = _read(args.check) if args.check else None
    if baseline is not None and not baseline["parts"].keys() & {
        each.name for each in chosen if each.area in areas
    }:
        raise suite.BenchError(f"{args.check} has no figures of {', '.join(areas)}.")
    import matplotlib  # noqa: F401  # Missed before hours of work, not after.
    import zarr  # noqa: F401

    from vitscope.bench.report import write_report
    from vitscope.indexer.job import usable_device

    usable_device(args.device)
    copy = args.json or args.out / "figures.json"
    for folder in (args.out, copy.parent):
        _make(folder)
    _warn_of_room(args.out, areas)
    body = suite.run_suite(
        chosen,
        args.out,
        quick=args.quick,
        device=args.device,
        say=lambda line: print(f"\n{line}", file=sys.stderr, flush=True),
    )
    text = json.dumps(body, indent=1) + "\n"
    for path in {args.out / "figures.json", copy}:
        path.write_text(text)
    report = write_report(body, args.out)
    suite.forget(args.out)
    print(f"\nThe report is {report}.")
    return 0 if baseline is None else _judge(baseline, body, args.check, args.margin)


def _warn_of_room(out: Path, areas: Collection[str]) -> None:
    needed = sum(_ROOM.get(area, 0.0) for area in areas)
    disks = {os.stat(folder).st_dev: folder for folder in (Path(tempfile.gettempdir()), out)}
    for folder in disks.values():
        if (free := shutil.disk_usage(folder).free / 1e9) < needed:
            print(
                f"{folder} has {free:.1f} GB free, and about {needed:.0f} may be needed there. If "
                "it ends for want of room, make some and start again: what was measured is kept.",
                file=sys.stderr,
            )


def _compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    from vitscope.bench.changes import changes, missing, table

    _warn_of_differences(before, after)
    print("\n".join(table(changes(before, after))))
    for which, one, other in (("first", before, after), ("second", after, before)):
        lost = [f"{each.part:<11} {each.what}: {each.side}" for each in missing(one, other)]
        lost += [f"{part:<11} all of it" for part in one["parts"].keys() - other["parts"].keys()]
        if lost:
            print("\n  ".join([f"\nOnly in the {which}:", *lost]))


def _judge(before: Mapping[str, Any], after: Mapping[str, Any], path: Path, margin: float) -> int:
    from vitscope.bench.changes import changes, missing, table, targets_missed

    _warn_of_differences(before, after)
    found = [change for change in changes(before, after) if change.judged]
    worse = [change for change in found if change.beyond(margin)]
    lost, missed = missing(before, after), targets_missed(after)
    if worse:
        print(f"Worse than in {path} by more than {margin:.0%}:")
        print("\n".join(table(worse)))
    for figure in lost:
        print(f"No longer measured: {figure.part}, {figure.what}: {figure.side}")
    for what in missed:
        print(f"A target was missed: {what}")
    if not found:
        print(f"Nothing that was measured can be held against {path}: no ratio is in both.")
    else:
        print(f"{len(found)} ratios were held against {path}; {len(worse)} are worse.")
    return 1 if worse or lost or missed or not found else 0


def _make(folder: Path) -> None:
    from vitscope.bench.suite import BenchError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder} cannot be made ({error.strerror}).") from None


def _read(path: Path) -> Mapping[str, Any]:
    from vitscope.bench.figures import figures_of
    from vitscope.bench.suite import BenchError

    try:
        body: Any = json.loads(path.read_text())
        figures_of(body)
    except OSError as error:
        raise BenchError(
            f"{path} cannot be read ({error.strerror}); "
            "`vitscope bench AREA … --json FILE` writes one."
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BenchError(f"{path} is no file of figures that `vitscope bench` writes.") from None
    checked: Mapping[str, Any] = body
    return checked


def _warn_of_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for what in ("processor", "threads", "device", "gpu", "quick"):
        if before.get(what) != after.get(what):
            print(
                f"They differ in {what}: {before.get(what)} and {after.get(what)}.",
                file=sys.stderr,
            )
