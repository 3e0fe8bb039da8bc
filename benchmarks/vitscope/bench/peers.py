"""vitscope beside other tools on the same model, pictures and questions, all run for real.

    python -m vitscope.bench.peers [--quick] [--data DIR --model NAME --checkpoint FILE]
        [--tool NAME …] [--venvs DIR] [--json FILE]

The question: the best 20 pictures of any channel of any feed-forward layer. Each tool is installed
from the package registry into an environment of its own, which sees this one's PyTorch, and is run
by an adapter as its documentation has it; two processes, of which the first indexes and the second
answers from what the first left. Three ways without a tool stand beside them: the model again for
every question, and all activations in .npy files or through zarr-python. Tools that keep nothing
index in no time and answer by a forward.

Without --data, drawn scenes, and timm's ViT-Ti/16 with random weights, which are the same for all.
Rankings are compared with those of plain hooks where a tool pools, or can be told to pool, the
mean over patch tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import timm
import torch
from safetensors.torch import save_file

from vitscope.bench import arguments
from vitscope.bench.agreement import agreement, means, operations
from vitscope.bench.record import Json, Row, write
from vitscope.bench.tools import OURS, TOOLS, result_of
from vitscope.indexer.scenes import write_scenes

PACKAGES = ("vitscope", "torch", "timm", "numpy", "zarr", "tensorstore", "faiss-cpu")
MODEL = "vit_tiny_patch16_224"
K, QUESTIONS = 20, 100
COMPARED = 20
"""Of the questions, whose rankings are held against plain hooks."""
TOLD = {
    "index": "index",
    "answers": "answers",
    "other_pooling": "another pooling",
    "label_filter": "label filter",
    "maps": "maps",
    "similar": "similar images, built",
    "nearest": "asked",
}


def main() -> int:
    """Run every tool, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="120 pictures")
    parser.add_argument("--data", type=Path, help="a folder of pictures, one folder a label")
    parser.add_argument("--limit", type=int, help="the first so many of them")
    parser.add_argument("--model", default=MODEL, help="a model of timm")
    parser.add_argument("--img-size", type=int, help="side of its input")
    parser.add_argument("--checkpoint", type=Path, help="its weights; random without")
    parser.add_argument(
        "--tool",
        action="append",
        choices=[each.name for each in TOOLS],
        help="this one beside vitscope; may be given several times (all)",
    )
    parser.add_argument(
        "--venvs", type=Path, help="where environments stay for the next time (nowhere)"
    )
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    if problem := wrong(args):
        parser.error(problem)
    some = [each for each in TOOLS if not args.tool or each.name in (*args.tool, OURS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = task_of(args, folder)
        (folder / "task.json").write_text(json.dumps(task))
        found: dict[str, Json] = {}
        for tool in some:
            print(f"{tool.name} …", flush=True)
            found[tool.name] = result_of(tool, args.venvs or folder / "venvs", folder)
            told = found[tool.name].get("index", {}).get("seconds")
            print(f"  {found[tool.name].get('error') or f'indexed in {told} s'}", flush=True)
        rows = list(table(task, found, operations(task)))
        notes = [*explanations(found), *agreement(found, means(task))]
    show(rows, notes, list(found))
    if args.json:
        write(args.json, command(args), rows, PACKAGES)
        body = json.loads(args.json.read_text())
        about = {key: task[key] for key in ("model", "model_kwargs", "batch_size", "threads")}
        body |= {"tools": list(found), "notes": notes, "task": about}
        body["results"] = {
            name: {key: value for key, value in each.items() if key != "rankings"}
            for name, each in found.items()
        }
        args.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0


def wrong(args: argparse.Namespace) -> str:
    """What of the arguments cannot be used; nothing where all can."""
    if args.limit is not None and args.limit < K:
        return f"--limit must be at least {K}, which are asked for"
    if args.checkpoint and not args.checkpoint.is_file():
        return f"--checkpoint {args.checkpoint} is no file"
    if args.data and len(pictures_in(args.data)) < K:
        return (
            f"--data {args.data} must hold at least {K} JPEG or PNG pictures, which are asked for"
        )
    if not timm.is_model(args.model):
        return f"--model {args.model} is no model of timm"
    with torch.device("meta"):
        names = [name for name, _ in timm.create_model(args.model).named_modules()]
    if not any(name.endswith(".mlp.act") for name in names):
        return f"--model {args.model} has no layers blocks.N.mlp.act, by which tools are told where"
    return ""


def pictures_in(folder: Path) -> list[Path]:
    """JPEGs and PNGs below a folder."""
    suffixes = {".jpg", ".jpeg", ".png"}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def command(args: argparse.Namespace) -> str:
    """The command line with names for paths."""
    words = ["python -m vitscope.bench.peers", *["--quick"] * args.quick, f"--model {args.model}"]
    words += [f"--data {args.data.name}"] if args.data else []
    words += [f"--limit {args.limit}"] if args.limit else []
    words += [f"--img-size {args.img_size}"] if args.img_size else []
    words += [f"--checkpoint {args.checkpoint.name}"] if args.checkpoint else []
    return " ".join(words)


def task_of(args: argparse.Namespace, folder: Path) -> Json:
    """What every tool is given."""
    limit = args.limit or (120 if args.quick else 1_000)
    data = folder / "pictures"
    labelled_pictures(args.data, data, limit)
    pictures = sorted(path for path in data.rglob("*") if path.is_file())
    kwargs: dict[str, Any] = {"num_classes": 0}
    if args.img_size:
        kwargs["img_size"] = args.img_size
    weights = args.checkpoint
    model: Any = timm.create_model(args.model, **kwargs)
    if weights is None:
        torch.manual_seed(0)
        # With its head: some tools take no model without one.
        whole = timm.create_model(args.model)
        weights = folder / "weights.safetensors"
        save_file(whole.state_dict(), weights)
    layers = [
        name.removesuffix(".act") for name, _ in model.named_modules() if name.endswith(".act")
    ]
    channels = model.get_submodule(layers[0]).fc1.out_features
    draw = random.Random(0)
    return {
        "data": str(data),
        "pictures": list(map(str, pictures)),
        "labels": [path.parent.name for path in pictures],
        "model": args.model,
        "model_kwargs": kwargs,
        "weights": str(weights),
        "layers": layers,
        "channels": channels,
        "k": K,
        "questions": draw.sample([*product(layers, range(channels))], QUESTIONS),
        "compared": COMPARED,
        "batch_size": 16,
        "threads": len(os.sched_getaffinity(0)),
    }


def labelled_pictures(source: Path | None, target: Path, limit: int) -> None:
    """Links to so many pictures in folders of their labels."""
    if source is None:
        source = target.with_name("scenes")
        write_scenes(source, limit)
        source = source / "images"
    for number, path in enumerate(pictures_in(source)[:limit]):
        # ImageNet's files begin with a synset; its first letters are a coarse class.
        label = path.parent.name if path.parent != source else path.name[:3]
        (target / label).mkdir(parents=True, exist_ok=True)
        (target / label / f"{number:05d}-{path.name}").symlink_to(path.resolve())


def table(task: Json, found: Mapping[str, Json], forward: float) -> Iterator[Row]:
    """One row for each thing that is compared; `forward` are the operations of one picture."""
    count = len(task["pictures"])

    def values(key: str, part: str, scale: float = 1.0) -> dict[str, float]:
        return {
            name: each[key][part] * scale
            for name, each in found.items()
            if part in each.get(key, {}) and each[key][part] is not None
        }

    seconds = values("index", "seconds")
    speeds = {name: count / each for name, each in seconds.items() if each}
    yield {
        "what": "indexing",
        "unit": "images/s",
        "better": "more",
        "values": speeds,
        "work": {"float32": forward},
    }
    for what, key, part, unit, scale in (
        ("on disk", "index", "bytes", "MB", 1e-6),
        ("first answer", "answers", "first_seconds", "ms", 1e3),
        ("hundredth answer", "answers", "hundredth_seconds", "ms", 1e3),
        ("hundredth, from a server", "answers", "over_loopback_seconds", "ms", 1e3),
        ("another pooling", "other_pooling", "seconds", "ms", 1e3),
        ("with a label filter", "label_filter", "seconds", "ms", 1e3),
        ("maps of the best 20", "maps", "seconds", "ms", 1e3),
        ("10 similar images", "nearest", "query_seconds", "ms", 1e3),
        ("their index, built", "similar", "build_seconds", "s", 1),
    ):
        row = values(key, part, scale)
        work = {"trips": 1} if "from a server" in what else {}
        yield {"what": what, "unit": unit, "better": "less", "values": row, "work": work}
    recall = values("nearest", "recall_at_10", 100)
    yield {"what": "of which right", "unit": "%", "better": "more", "values": recall}


def explanations(found: Mapping[str, Json]) -> Iterator[str]:
    """What each tool does, and cannot."""
    for name, each in found.items():
        if "error" in each:
            yield f"**{name}** {each['error'].rstrip('.')}."
            continue
        version = each["versions"].get(name)
        yield f"**{name}**{f' {version}' if version else ''}: " + "; ".join(
            f"{what}: {each[key]['what']}" for key, what in TOLD.items() if key in each
        )
        for key, why in each.get("cannot", {}).items():
            yield f"**{name}** cannot do {key.replace('_', ' ')}: {why}."


def show(rows: Sequence[Row], notes: Sequence[str], names: Sequence[str]) -> None:
    """Print the table."""
    print("\n" + " " * 34 + " ".join(f"{name:>14}" for name in names))
    for row in rows:
        cells = (row["values"].get(name) for name in names)
        words = (f"{'–' if value is None else f'{value:,.3g}':>14}" for value in cells)
        print(f"{row['what'] + ', ' + row['unit']:<34}" + " ".join(words))
    print("\n".join(["", *notes]), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
