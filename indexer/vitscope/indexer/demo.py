"""The demo: draw scenes, index them, serve the index, ask it, and check against the truth."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitscope.indexer.errors import OutputError
from vitscope.indexer.model import Weights, load_model
from vitscope.indexer.refusals import telling
from vitscope.indexer.scenes import SceneTruth, read_truth, write_scenes
from vitscope.indexer.scenes.model import MODEL_NAME
from vitscope.indexer.sources import open_source
from vitscope.store import layout
from vitscope.store.arrays import open_array
from vitscope.store.generation import Generation, open_generation
from vitscope.store.geometry import box_share
from vitscope.store.manifest import Pooling
from vitscope.store.progress import Progress
from vitscope.store.text import counted

COUNT = 2_000
_POOLING: Pooling = "max"
_SHOWN = 8
_MAPS_KEPT = 20
# The command line in its own processes, as a reader would use it.
_VITSCOPE = (sys.executable, "-m", "vitscope.client")


@dataclass(frozen=True, slots=True)
class Selective:
    """The channel of a layer that tells one class best from the others."""

    layer: str
    channel: int
    label: str
    separation: float
    """Mean score on the class minus mean on the others, in standard deviations of all scores."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a channel's top images are, held against the ground truth."""

    of_label: float
    """Share of the top images that are of the channel's class."""
    inside: float
    """Mean share of the (positive) activation that lies in the object's box."""
    area: float
    """Mean share of the picture that the box covers."""


def run(out: Path, count: int = COUNT) -> None:
    """Run the whole demo in the folder `out`, and print what was done."""
    _check(out)
    truth = _draw(out / "scenes", count)
    index = out / "index"
    _index(out / "scenes" / "images", index)
    generation = open_generation(index)
    chosen: list[Selective] = []
    for layer in _three_layers(generation):
        # Another class each time: three channels of one class would make a dull sheet.
        chosen.append(most_selective(generation, layer, {each.label for each in chosen}))
    sheet = out / "channels.png"
    _ask(index, chosen, sheet)
    _report(generation, chosen, truth)
    print(f"\nThe contact sheet, one block per channel: {sheet}\n{_farewell(index)}")


def most_selective(
    generation: Generation, layer: str, passed_over: Collection[str] = ()
) -> Selective:
    """The channel of `layer` with the widest gap between one class and all others.

    Classes `passed_over` do not count. The gap is d' of signal detection: the difference of the
    means over the standard deviation, here of all scores.
    """
    path = layout.layer_path(generation.path, layer) / layout.scores_name(_POOLING)
    scores = open_array(path).read().astype(np.float64)  # [C, N]
    labels = generation.rows.labels
    names = generation.rows.label_names
    gaps = np.stack(
        [
            scores[:, labels == number].mean(1) - scores[:, labels != number].mean(1)
            for number in range(len(names))
        ]
    )  # [classes, C]
    gaps /= scores.std(1) + 1e-12
    gaps[[name in passed_over for name in names]] = -np.inf
    label, channel = np.unravel_index(gaps.argmax(), gaps.shape)
    return Selective(layer, int(channel), names[label], float(gaps.max()))


def hold_against_truth(
    generation: Generation, chosen: Selective, truth: Sequence[SceneTruth]
) -> Found:
    """Where the top images of a channel have their activation, and of which class they are."""
    by_key = {scene.key: scene for scene in truth}
    rows, _ = generation.top(chosen.layer, _POOLING, chosen.channel)
    maps = generation.top_maps(chosen.layer, _POOLING, chosen.channel, slice(0, _SHOWN))
    scenes = [by_key[generation.rows.key(int(row))] for row in rows[:_SHOWN]]
    tokens = generation.layer(chosen.layer).tokens
    boxes = [
        box_share(tokens, scene.box, view, generation.manifest.model.input_size)
        for row, scene in zip(rows[:_SHOWN].tolist(), scenes, strict=True)
        # An index of a demo is of the current format: every valid image has a view.
        if (view := generation.rows.view(row))
    ]
    heat = maps.astype(np.float64).clip(0)
    inside = [
        (each * box).sum() / max(each.sum(), 1e-12) for each, box in zip(heat, boxes, strict=True)
    ]
    return Found(
        of_label=float(np.mean([scene.label == chosen.label for scene in scenes])),
        inside=float(np.mean(inside)),
        area=float(np.mean([box.mean() for box in boxes])),
    )


def _check(out: Path) -> None:
    if out.exists() and (
        not out.is_dir() or (any(out.iterdir()) and not (out / "scenes").exists())
    ):
        raise OutputError(f"{out} holds something else; give a new or empty folder with --out.")
    if not out.absolute().parent.is_dir():
        raise OutputError(f"The folder {out.absolute().parent} for --out does not exist.")


def _draw(folder: Path, count: int) -> tuple[SceneTruth, ...]:
    start = time.monotonic()
    print(f"1. Drawing {count:,} scenes (objects of known class and place) …", flush=True)
    progress = Progress("scenes", count)
    try:
        with telling(folder):
            write_scenes(
                folder, count, progress=lambda done: progress.advance(done - progress.done)
            )
    except ValueError as error:
        raise OutputError(f"{error}; give another folder with --out.") from None
    print(f"   {time.monotonic() - start:.1f} s, in {folder}", flush=True)
    return read_truth(folder)


def _index(images: Path, index: Path) -> None:
    start = time.monotonic()
    print(f"2. Indexing them with {MODEL_NAME}, a small ViT trained on other scenes …", flush=True)
    if (index / layout.CURRENT).exists() and not (index / layout.WORK).exists():
        manifest = open_generation(index).manifest
        same_rows = manifest.rows_sha256 == open_source(images).rows.digest()
        weights = load_model(MODEL_NAME, Weights()).weights_sha256
        if not same_rows or manifest.model.weights_sha256 != weights:
            raise OutputError(f"{index} is of an earlier demo; give another folder with --out.")
        print(f"   {index} is published already", flush=True)
        return
    arguments = ["--model", MODEL_NAME, "--data", str(images), "--out", str(index)]
    _vitscope("index", *arguments, "--top-k", str(_MAPS_KEPT))
    print(f"   {time.monotonic() - start:.1f} s with start-up", flush=True)


def _ask(index: Path, chosen: Sequence[Selective], sheet: Path) -> None:
    print("3. Serving the index on a free port and asking it …", flush=True)
    with _server(index) as address:
        for each in chosen:
            start = time.monotonic()
            question = ["--layer", each.layer, "--channel", str(each.channel)]
            asked = ["--pooling", _POOLING, "-k", str(_SHOWN), "--server", address, "--json"]
            answer = json.loads(_vitscope("top-images", *question, *asked, quiet=True))
            took = time.monotonic() - start
            labels = ", ".join(image["label"] for image in answer["images"][:4])
            print(
                f"   {each.layer} channel {each.channel}: {labels}, … ({took:.1f} s with start-up)"
            )
        shows = [part for e in chosen for part in ("--show", f"{e.layer}:{e.channel}")]
        sheet_options = ["--pooling", _POOLING, "-k", str(_SHOWN), "--png", str(sheet)]
        _vitscope("gallery", *shows, *sheet_options, "--server", address)


@contextmanager
def _server(index: Path) -> Iterator[str]:
    """A server process on a free port; gives its address."""
    command = (*_VITSCOPE, "serve", str(index), "--listen", "127.0.0.1:0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = (process.stdout or io.StringIO()).readline()
            if not line.startswith("Serving on "):
                raise OutputError("The demo's server did not start; its own message is above.")
            yield line.removeprefix("Serving on ").strip()
        finally:
            process.terminate()


def _vitscope(*arguments: str, quiet: bool = False) -> str:
    """Run one `vitscope` command; with `quiet`, give its output instead of showing it."""
    out = subprocess.PIPE if quiet else None
    done = subprocess.run((*_VITSCOPE, *arguments), stdout=out, text=True, check=False)
    if done.returncode:
        raise OutputError(
            f"`vitscope {arguments[0]}` ended with exit code {done.returncode}; "
            "its own message is above."
        )
    return done.stdout or ""


def _three_layers(generation: Generation) -> list[str]:
    """An early, a middle and a late layer."""
    names = [layer.name for layer in generation.manifest.layers]
    return [names[1], names[len(names) // 2], names[-1]]


def _report(
    generation: Generation, chosen: Sequence[Selective], truth: Sequence[SceneTruth]
) -> None:
    size = sum(record.bytes for record in generation.manifest.files.values())
    print(
        f"4. Held against the truth: generation {generation.name}, "
        f"{counted(generation.manifest.valid_rows, 'image')}, {size / 1e6:,.0f} MB\n"
        f"   {'layer':<13} {'channel':>7}  {'most selective for':<22} {'d′':>4}  "
        f"{'of that class':>13}  {'activation in the box':>21}  {'box of picture':>14}"
    )
    for each in chosen:
        found = hold_against_truth(generation, each, truth)
        print(
            f"   {each.layer:<13} {each.channel:>7}  {each.label:<22} {each.separation:>4.1f}  "
            f"{f'{found.of_label:.0%} of top {_SHOWN}':>13}  {found.inside:>21.0%}  "
            f"{found.area:>14.0%}"
        )


def _farewell(index: Path) -> str:
    return f"""
Ask this index yourself: vitscope serve {index}, then vitscope layers.
Your own model and images, in three commands:
  vitscope index --model vit_base_patch16_224.augreg2_in21k_ft_in1k --data PICTURES --out my-index
  vitscope serve my-index
  vitscope top-images --layer blocks.9.mlp --channel 0 --pooling max --png top.png"""
