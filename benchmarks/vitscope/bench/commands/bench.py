"""measure this machine: indexing, store, questions, serving, growth, and other tools beside"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXTRA = "bench"
MARGIN = 0.5
_AREAS = ("index", "store", "query", "serve", "growth", "peers")
"""As the suite has them, which is not loaded for --help."""


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
        type=float,
        default=MARGIN,
        metavar="M",
        help=f"by how much worse: {MARGIN} is half as long again (the default)",
    )


def _area(text: str) -> str:
    if text not in (*_AREAS, "all"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_AREAS)}, all")
    return text


def run(args: argparse.Namespace) -> int:
    """Measure and report, or compare."""
    from vitscope.bench import suite
    from vitscope.bench.changes import changes, missing, table

    if args.compare:
        before, after = map(_read, args.compare)
        print("\n".join(table(changes(before, after))))
        _warn_of_machines(before, after)
        return 0
    baseline = _read(args.check) if args.check else None
    from vitscope.bench.report import write_report

    body = suite.run_suite(
        suite.chosen(_AREAS if "all" in args.areas else args.areas),
        args.out,
        quick=args.quick,
        device=args.device,
        say=lambda line: print(f"\n{line}", file=sys.stderr, flush=True),
    )
    text = json.dumps(body, indent=1) + "\n"
    (args.out / "figures.json").write_text(text)
    if args.json:
        args.json.write_text(text)
    path = write_report(body, args.out)
    suite.forget(args.out)
    print(f"\nThe report is {path}.")
    if baseline is None:
        return 0
    slower = [each for each in changes(baseline, body) if each.beyond(args.margin)]
    lost = missing(baseline, body)
    if slower:
        print(f"Worse than in {args.check} by more than {args.margin:.0%}:")
        print("\n".join(table(slower)))
    for figure in lost:
        print(f"No longer measured: {figure.part}, {figure.what}: {figure.side}")
    return 1 if slower or lost else 0


def _read(path: Path) -> Mapping[str, Any]:
    from vitscope.bench.suite import BenchError

    try:
        body: Any = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        body = None
    if not isinstance(body, dict) or "parts" not in body:
        raise BenchError(f"{path} is no file of figures that `vitscope bench` writes.")
    return body


def _warn_of_machines(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for what in ("processor", "threads", "quick"):
        if before.get(what) != after.get(what):
            print(
                f"They differ in {what}: {before.get(what)} and {after.get(what)}.",
                file=sys.stderr,
            )
