"""list the models of timm that can be indexed, with their layers and what an image costs"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vitscope.indexer.commands._options import size

if TYPE_CHECKING:
    from vitscope.indexer.survey import Surveyed

EXTRA = "indexer"
_TOP_K = 32
_PROBED = 100_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add(
        "pattern",
        nargs="?",
        default="*",
        metavar="PATTERN",
        help="part of a name, or a pattern such as 'swin*_tiny*' (default: all models)",
    )
    add("--families", action="store_true", help="only the families that vitscope is made for")
    add("--img-size", type=size, metavar="N|HxW", help="another size of the input in pixels")
    add(
        "--probe",
        action="store_true",
        help="also probe random weights, as `vitscope index` probes real ones; takes seconds for "
        "each model",
    )
    add(
        "--probe-up-to",
        type=int,
        default=_PROBED,
        metavar="N",
        help=f"but only of models of at most N parameters (default {_PROBED:,})",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--json", action="store_true", help="print everything as JSON, a model a line"
    )
    form.add_argument("--markdown", action="store_true", help="print the page docs/models.md")


def run(args: argparse.Namespace) -> int:
    """Look at every model, and print what was seen."""
    from vitscope.indexer.errors import ModelError
    from vitscope.indexer.options import check_img_size
    from vitscope.indexer.survey import names

    check_img_size(args.img_size)
    found = names(args.pattern, families=args.families)
    if not found:
        which = " of these families" if args.families else ""
        raise ModelError(f"timm has no model{which} that matches {args.pattern!r}.")
    surveyed = _survey(found, args)
    if args.markdown:
        from vitscope.indexer.modelpage import page

        print(page(list(surveyed), _TOP_K), end="")
    elif args.json:
        for each in surveyed:
            print(json.dumps(_as_json(each)), flush=True)
    else:
        return _print_table(surveyed, probed=args.probe)
    return 0


def _survey(names: Sequence[str], args: argparse.Namespace) -> Iterator[Surveyed]:
    from vitscope.indexer.survey import survey
    from vitscope.store.progress import Progress

    progress = Progress("models", len(names)) if args.markdown or args.probe else None
    largest = args.probe_up_to if args.probe else 0
    for name in names:
        yield survey(name, img_size=args.img_size, probe_up_to=largest)
        if progress:
            progress.advance(1)
    if progress:
        progress.finish()


def _print_table(surveyed: Iterator[Surveyed], *, probed: bool) -> int:
    """Print a line for each, refusals to standard error; the exit status of a lone refusal."""
    from vitscope.indexer.cost import cost
    from vitscope.indexer.errors import ModelError
    from vitscope.indexer.modelpage import grids, prefixes, widths

    row = "{:<40} {:>7}  {:>9}  {:>6}  {:<22}  {:<26}  {:<12} {:>7} {:>7} {:>7}"
    heads = ("layers", "channels", "grids", "prefix", "top KB", "all MB", "once MB")
    refused, left_out, any_taken = [], [], False
    for each in surveyed:
        if each.refused:
            refused.append(each.refused)
            continue
        left_out += [f"{each.name}: {block}" for block in each.left_out]
        if not any_taken:
            print(row.format("model", "M param", "input", *heads).rstrip())
            any_taken = True
        bytes_ = cost(each.layers, _TOP_K)
        print(
            row.format(
                each.name,
                f"{each.parameters / 1e6:,.1f}",
                f"{each.input_size[0]}x{each.input_size[1]}",
                len(each.layers),
                widths(each),
                grids(each),
                prefixes(each),
                f"{bytes_.image / 1e3:,.0f}",
                f"{bytes_.image_all / 1e6:,.1f}",
                f"{bytes_.once / 1e6:,.0f}",
            ).rstrip(),
            flush=True,
        )
    if any_taken:
        print(
            f"top, all: bytes an image under each retention, without its picture; once: maps of "
            f"the top {_TOP_K} images of every channel, and correlations."
        )
        if not probed:
            print("Shapes alone were looked at; --probe asks models themselves, as an index does.")
    for sentence in (*left_out, *refused):
        print(sentence, file=sys.stderr)
    return 0 if any_taken else ModelError.exit_code


def _as_json(each: Surveyed) -> dict[str, Any]:
    from dataclasses import asdict

    from vitscope.indexer.cost import cost

    body = asdict(each)
    for layer in body["layers"]:
        del layer["call"]
    return {**body, "bytes": asdict(cost(each.layers, _TOP_K))}
