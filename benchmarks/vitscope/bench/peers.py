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
Rankings are compared with plain hooks and NumPy where a tool pools, or can be told to pool, the
mean over patch tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from vitscope.bench import adapters, arguments
from vitscope.bench.adapters import common, naive
from vitscope.bench.record import Row, write
from vitscope.indexer.scenes import write_scenes

PACKAGES = ("vitscope", "torch", "timm", "numpy", "zarr", "tensorstore", "faiss-cpu")
MODEL = "vit_tiny_patch16_224"
K, QUESTIONS = 20, 100
Scores = npt.NDArray[np.float32]
"""Of one channel, (N,)."""
OURS = "vitscope"
PATIENCE = 3600.0
"""Seconds for an installation, or for all that a tool does."""
CLOSE = 2e-3
"""By how much scores may be apart, relative to the greatest: float16 and bfloat16 are kept."""


@dataclass(frozen=True)
class Tool:
    """Something that can be asked."""

    name: str
    module: str
    """Of the adapter."""
    installs: Sequence[Sequence[str]] = ()
    """What pip is given, one time after the other, in an environment of its own; nothing for this
    one's."""


TOOLS = (
    Tool(OURS, "own"),
    Tool("model again", "naive"),
    Tool("dense .npy", "naive"),
    Tool("dense Zarr", "naive"),
    Tool("semanticlens", "semanticlens", [["semanticlens==0.2.1"]]),
    Tool("zennit-crp", "zennit_crp", [["zennit-crp==0.6.0"]]),
    Tool("captum", "captum", [["captum==0.9.0"]]),
    Tool("vit-prisma", "vit_prisma", [["vit-prisma==0.1.4"]]),
    Tool(
        "thingsvision",
        "thingsvision",
        [
            # It asks for a torchvision of years ago; TensorFlow it wants to be imported at all.
            [
                "--no-deps",
                "thingsvision==2.7.3",
                "torchtyping",
                "typeguard<3",
                "h5py",
                "scipy<1.15",
            ],
            ["tensorflow-cpu==2.15.1", "numpy==1.26.4"],
        ],
    ),
    Tool(
        "clip-retrieval",
        "clip_retrieval",
        # One of those that it needs imports `pkg_resources`, which newer ones have no more.
        [["clip-retrieval==2.45.0", "autofaiss==2.18.0"], ["setuptools<70"]],
    ),
)
TOLD = {
    "index": "index",
    "answers": "answers",
    "other_pooling": "another pooling",
    "label_filter": "label filter",
    "maps": "maps",
    "similar": "similar images, built",
    "nearest": "asked",
}
FOLDERS = {"model again": "again", "dense .npy": "npy", "dense Zarr": "zarr"}


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
        found: dict[str, common.Json] = {}
        for tool in some:
            print(f"{tool.name} …", flush=True)
            found[tool.name] = result_of(tool, args.venvs or folder / "venvs", folder)
            told = found[tool.name].get("index", {}).get("seconds")
            print(f"  {found[tool.name].get('error') or f'indexed in {told} s'}", flush=True)
        truth, operations = oracle(task)
    rows = list(table(task, found, operations))
    notes = [*explanations(found), *agreement(found, truth)]
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


def task_of(args: argparse.Namespace, folder: Path) -> common.Json:
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
        "questions": [[draw.choice(layers), draw.randrange(channels)] for _ in range(QUESTIONS)],
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


def result_of(tool: Tool, venvs: Path, folder: Path) -> common.Json:
    """What its adapter found, or `error`."""
    try:
        python = environment(tool, venvs)
    except subprocess.CalledProcessError as error:
        said = error.stderr or error.output or b""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        return {"error": f"could not be installed: {_last(text)}"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"could not be installed: {error}"}
    out = folder / f"{tool.module}.json"
    place = folder / FOLDERS.get(tool.name, tool.module)
    module = f"{adapters.__name__}.{tool.module}"
    environ = dict(os.environ)
    if tool.installs:
        environ["PYTHONPATH"] = str(copied(folder / "adapters"))
    place.mkdir()
    try:
        done = subprocess.run(
            [python, "-m", module, folder / "task.json", out, place],
            capture_output=True,
            text=True,
            env=environ,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"failed: it took more than {PATIENCE / 60:.0f} minutes"}
    finally:
        shutil.rmtree(place)
    if done.returncode:
        return {"error": f"failed: {_last(done.stderr)}"}
    result: common.Json = json.loads(out.read_text())
    out.unlink()
    return result


def copied(target: Path) -> Path:
    """The adapters alone, as other interpreters import them."""
    package = target.joinpath(*adapters.__name__.split("."))
    if not package.exists():
        shutil.copytree(Path(adapters.__path__[0]), package)
    return target


def environment(tool: Tool, venvs: Path) -> str:
    """The interpreter of a tool, installed where it is not there as it is to be."""
    if not tool.installs:
        return sys.executable
    place = (venvs / tool.module).resolve()
    python, marker = place / "bin" / "python", place / "installed"
    shared = str(Path(torch.__file__).parents[1])
    wanted = json.dumps([sys.version, shared, tool.installs])
    if not marker.exists() or marker.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        [site] = place.glob("lib/python*/site-packages")
        # PyTorch is there already, and gigabytes; what a tool wants otherwise it gets itself.
        (site / "shared.pth").write_text(shared + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for words in tool.installs:
            run_quietly([*pip, *words])
        marker.write_text(wanted)
    return str(python)


def run_quietly(command: Sequence[Any]) -> None:
    """Raise `CalledProcessError`, with what it said, where a command fails."""
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def oracle(task: common.Json) -> tuple[dict[str, Scores], float]:
    """Means over patches of all pictures for the questions that are compared, and the operations of
    one picture's forward."""
    model, pictures = naive.prepare(task)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(pictures[0][0][None])
    asked = task["questions"][: common.RANKINGS]
    found: dict[str, list[Any]] = {f"{layer}|{channel}": [] for layer, channel in asked}
    layers = sorted({layer for layer, _ in asked})
    batches = common.batches_of(task, pictures)
    for values in naive.activations(model, layers, batches):
        for layer, channel in asked:
            part = values[layers.index(layer)][:, model.num_prefix_tokens :, channel].mean(1)
            found[f"{layer}|{channel}"].append(part.numpy())
    whole = {key: np.concatenate(parts) for key, parts in found.items()}
    return whole, float(counter.get_total_flops())


def table(task: common.Json, found: Mapping[str, common.Json], operations: float) -> Iterator[Row]:
    """One row for each thing that is compared; `operations` are those of one picture's forward."""
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
        "work": {"float32": operations},
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


def explanations(found: Mapping[str, common.Json]) -> Iterator[str]:
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


def agreement(found: Mapping[str, common.Json], truth: Mapping[str, Scores]) -> Iterator[str]:
    """Whether rankings are those of plain hooks, up to what a tool's precision leaves open."""
    for name, each in found.items():
        if judged := [
            judge(ranking, truth[key]) for key, ranking in each.get("rankings", {}).items()
        ]:
            same, close, empty, negative = (
                sum(getattr(one, what) for one in judged)
                for what in ("same", "close", "empty", "negative")
            )
            farthest = max(one.farthest for one in judged)
            line = (
                f"**{name}**, {each['ranking_pooling']}: {same} of {len(judged)} rankings are "
                f"those of plain hooks, {close} up to ties within {CLOSE:g} of the greatest score; "
                f"scores differ by {farthest:.1e} of it at most."
            )
            if empty:
                line += f" It leaves {empty} places empty; in {negative} belongs a negative score."
            differs = same < len(judged) and "ranking_note" in each
            yield line + (f" Why: {each['ranking_note']}." if differs else "")


@dataclass(frozen=True)
class Judged:
    """A ranking beside that of plain hooks."""

    same: bool
    """Row by row."""
    close: bool
    """As good in what it gives: other rows only where scores are as near as precision leaves."""
    empty: int
    """Places without a row."""
    negative: int
    """Of these, in how many a negative score belongs."""
    farthest: float
    """By how much scores differ, of the greatest."""


def judge(ranking: common.Ranking, scores: Scores) -> Judged:
    """A tool's (row, score), best first, -1 for none, beside scores (N,) of all pictures."""
    given = [(int(row), score) for row, score in ranking if row >= 0]
    rows = [row for row, _ in given]
    best = [int(row) for row, _ in common.best_of(scores, len(ranking))]
    scale = float(np.abs(scores).max()) or 1.0
    off = np.array([score for _, score in given]) - scores[rows]
    gap = np.sort(scores[rows])[::-1] - scores[best][: len(rows)]
    return Judged(
        same=rows == best,
        close=len(rows) == len(best) and float(np.abs(gap).max(initial=0)) <= CLOSE * scale,
        empty=len(best) - len(rows),
        negative=int((scores[best][len(rows) :] < 0).sum()),
        farthest=float(np.abs(off).max(initial=0)) / scale,
    )


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
