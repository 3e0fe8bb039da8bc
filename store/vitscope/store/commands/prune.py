"""remove generations of an index older than the published one"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

EXTRA = "store"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--keep", type=_count, default=0, metavar="N", help="older generations to keep (default 0)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exit code 0, also where a generation that is being read had to stay."""
    from vitscope.store.prune import prune

    result = prune(args.path, keep=args.keep, dry_run=args.dry_run)
    if args.json:
        print(json.dumps({**asdict(result), "dry_run": args.dry_run}))
        return 0
    for name in result.in_use:
        print(f"Generation {name} is in use and stays; prune again once its reader is done.")
    for name in result.removed:
        print(f"Generation {name} {'would be' if args.dry_run else 'is'} removed.")
    freed = f"{result.freed_bytes:,} bytes {'would be' if args.dry_run else 'are'} freed"
    print(f"Generation {result.generation} is the published one; {freed}.")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of generations, 0 or more")
    return int(text)
