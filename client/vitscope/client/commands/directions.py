"""List the directions that a server has beside an index."""

import argparse

from vitscope.client.commands import _common
from vitscope.client.text import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    parser.add_argument("--layer", default="", help="of this layer only")
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with _common.connect(args) as client:
        found = client.directions(args.layer, index=args.index)
    if args.json:
        named = [
            {"layer": each.layer, "name": each.name, "count": each.count}
            for each in found.directions
        ]
        _common.print_json({"generation": found.generation, "directions": named})
    elif found.directions:
        rows = [(each.layer, each.name, each.count or "-") for each in found.directions]
        print(table(["layer", "name", "directions"], rows))
    else:
        print("No directions lie beside the index.")
    return 0
