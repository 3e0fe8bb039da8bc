"""describe an index: model, rows, layers, sizes, unreadable images"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscope.store.text import counted

if TYPE_CHECKING:
    from vitscope.store.generation import Generation

EXTRA = "store"
_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="INDEX", help="folder of the index")
    parser.add_argument(
        "--json", action="store_true", help="print everything, all invalid rows too, as JSON"
    )


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    from vitscope.store.generation import open_generation

    generation = open_generation(args.path)
    print(json.dumps(_as_json(generation)) if args.json else _as_text(generation))
    return 0


def _as_json(generation: Generation) -> dict[str, Any]:
    body = asdict(generation.manifest)
    files = body.pop("files")
    size = sum(record["bytes"] for record in files.values())
    invalid = [asdict(generation.rows.record(row)) for row in _invalid(generation)]
    return {
        "generation": generation.name,
        **body,
        "files": len(files),
        "bytes": size,
        "invalid": invalid,
    }


def _as_text(generation: Generation) -> str:
    manifest = generation.manifest
    model = manifest.model
    height, width = model.input_size
    size = sum(record.bytes for record in manifest.files.values())
    threads = counted(manifest.threads, "thread") if manifest.threads else "no threads"
    wide = max(len(layer.name) for layer in manifest.layers)
    lines = [
        f"generation  {generation.name}",
        f"model       {model.name}, {model.weights_source} weights {model.weights_sha256[:16]}",
        f"input       {height} x {width} pixels by {model.decoder}, {model.dtype}, "
        f"batches of {manifest.batch_size}",
        f"units       {counted(manifest.unit_rows, 'image')}, {threads} fixed, "
        f"pictures of {counted(manifest.thumbnail_size, 'pixel')}",
        f"rows        {manifest.rows:,}, {manifest.valid_rows:,} of them valid",
        f"size        {counted(len(manifest.files), 'file')}, {counted(size, 'byte')}",
        *([f"saturated   {counted(manifest.saturated, 'score')}"] if manifest.saturated else []),
        "",
        f"{'layer':<{wide}} {'channels':>8} {'prefix':<19} {'grid':>7}  {'poolings':<13} maps kept",
    ]
    for layer in manifest.layers:
        tokens = layer.tokens
        prefix = "+".join(tokens.prefix) or "none"
        lines.append(
            f"{layer.name:<{wide}} {layer.channels:>8} {prefix:<19} "
            f"{f'{tokens.height}x{tokens.width}':>7}  {','.join(layer.poolings):<13} "
            f"{'all' if layer.dense else f'top {layer.top_k} of each channel and pooling'}"
            f"{', prefix tokens of all' if layer.dense_prefix else ''}"
        )
    return "\n".join([*lines, *_invalid_lines(generation)])


def _invalid_lines(generation: Generation) -> list[str]:
    invalid = _invalid(generation)
    lines = [f"  {generation.rows.record(row)}" for row in invalid[:_LISTED]]
    if len(invalid) > _LISTED:
        lines.append(f"  and {len(invalid) - _LISTED:,} more; --json lists them all")
    return ["", f"invalid images: {len(invalid):,}", *lines] if lines else []


def _invalid(generation: Generation) -> list[int]:
    return [int(row) for row in (~generation.rows.valid).nonzero()[0]]
