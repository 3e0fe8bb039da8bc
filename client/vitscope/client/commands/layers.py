"""List the indexes of a server and their layers."""

import argparse
from dataclasses import asdict

from vitscope.client.commands import _common
from vitscope.client.results import Index
from vitscope.client.text import printable, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _common.add_server(parser)
    _common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with _common.connect(args) as client:
        names = [args.index] if args.index else [index.name for index in client.indexes()]
        indexes = [client.index(name) for name in names]
    if args.json:
        _common.print_json({"indexes": [asdict(index) for index in indexes]})
    else:
        print("\n\n".join(map(description, indexes)) or "The server holds no index.")
    return 0


def description(index: Index) -> str:
    """One index as text: what it was made from, then a table of its layers."""
    model = index.model
    lines = [
        f"index {index.name}, generation {index.generation}",
        f"model {model.name}, {model.weights_source} weights {model.weights_sha256[:12]}, "
        f"input {model.input_height} x {model.input_width} px, {model.dtype}",
        f"{index.rows:,} images, {index.rows - index.valid_rows:,} of them unreadable",
    ]
    rows = [
        (
            layer.depth,
            layer.name,
            layer.channels,
            f"{layer.tokens.height} x {layer.tokens.width}",
            f"{layer.tokens.cell_height:.4g} x {layer.tokens.cell_width:.4g}",
            " ".join(layer.tokens.prefix) or "-",
            " ".join(layer.poolings),
            layer.maps_per_channel,
        )
        for layer in index.layers
    ]
    headings = ["depth", "layer", "channels", "patches", "px per patch", "prefix"]
    headings += ["poolings", "maps per channel"]
    return "\n".join([*map(printable, lines), table(headings, rows)])
