"""Decoders held against the reference: their speed, the model's input, scores and rankings.

    python -m vitscope.bench.decoders [--data FOLDER …] [--model NAME] [--checkpoint FILE]
        [--img-size N …] [--margin M …] [--limit N] [--device DEVICE] [--json FILE]

On every picture all decoders take turns, in one thread each. Without --data, scenes are drawn and
saved as large JPEGs. A margin is another rule of `pillow-dct`, in rows of its own. Differences are
those of pictures whose input differs at all; of scores in standard deviations of the channel over
all pictures, in all layers. The overlap is that of the best 20 of all pictures of each channel,
ties by row. The result file has a data set's name, not where it lies.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vitscope.indexer  # noqa: F401  # isort: skip  # Sets what is read when torch is loaded.
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from vitscope.bench import arguments
from vitscope.bench.record import Row, compared, show, write
from vitscope.indexer.allocation import keep_freed_memory
from vitscope.indexer.capture import capture
from vitscope.indexer.decode import Decoder
from vitscope.indexer.decoders import NAMES, PillowDct, check, make_decoder
from vitscope.indexer.errors import IndexingError
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.pooling import pool, round_to_half
from vitscope.indexer.scenes import render_scene
from vitscope.store.manifest import Pooling

PACKAGES = ("vitscope", "torch", "torchvision", "timm", "pillow", "torchcodec", "numpy")
REFERENCE = Decoder.name
POOLINGS: tuple[Pooling, ...] = ("mean", "max")
ROUNDS = 3
BATCH = 32
TOP = 20
DRAWN, DRAWN_SIDE = 48, 1280

Scores = npt.NDArray[np.float16]


def main() -> int:
    """Compare on every data set at every size, print tables, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--data", type=Path, action="append", help="a folder of pictures")
    add("--model", default="vit_tiny_patch16_224", help="a model of timm")
    add("--checkpoint", type=Path, help="its weights, random without")
    add("--img-size", type=int, action="append", help="side of its input")
    add("--margin", type=float, action="append", default=[], help="another for pillow-dct")
    add("--limit", type=int, help="only the first N pictures")
    add("--device", type=arguments.device, default="cpu", help="cpu or cuda")
    add("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for data in args.data or [drawn(Path(folder) / f"{DRAWN} drawn scenes")]:
            for side in args.img_size or [None]:
                rows.append(parity(prepare(options(args, data, side, Path(folder))), data, args))
                show(rows[-1:])
                show_parity(rows[-1])
    if args.json:
        write(args.json, command(args), rows, PACKAGES)
    return 0


def options(args: argparse.Namespace, data: Path, side: int | None, folder: Path) -> Options:
    """A run of which only the pictures and the model are used."""
    return Options(
        model=args.model,
        data=data,
        out=folder / "index",
        weights=Weights(args.checkpoint, random=not args.checkpoint),
        img_size=(side, side) if side else None,
        limit=args.limit,
        device=args.device,
    )


def command(args: argparse.Namespace) -> str:
    """The command line with names for paths."""
    words = ["python -m vitscope.bench.decoders"]
    words += [f"--data {data.name}" for data in args.data or ()]
    words += [f"--model {args.model}"]
    words += [f"--checkpoint {args.checkpoint.name}"] if args.checkpoint else []
    words += [f"--img-size {side}" for side in args.img_size or ()]
    words += [f"--margin {margin:g}" for margin in args.margin]
    words += [f"--limit {args.limit}"] if args.limit else []
    return " ".join([*words, f"--device {args.device}"])


def drawn(folder: Path) -> Path:
    """Large photographs of scenes."""
    folder.mkdir()
    for number in range(DRAWN):
        picture = Image.fromarray(render_scene(number, size=DRAWN_SIDE).image)
        picture.save(folder / f"{number:02d}.jpg", quality=90)
    return folder


def decoders(job: Job, margins: Sequence[float]) -> dict[str, Decoder]:
    """By name, the reference first; those that cannot be had here are said and left out."""
    made = {}
    for name in NAMES:
        try:
            check(name)
        except IndexingError as error:
            print(error)
            continue
        made[name] = make_decoder(name, job.model.steps, 0, job.device)
        if name == PillowDct.name:
            for margin in margins:
                rule = type(name, (PillowDct,), {"margin": margin})
                made[f"{name}, margin {margin:g}"] = rule(job.model.steps, 0)
    return made


@dataclass
class Side:
    """What is gathered of one decoder."""

    decode: Decoder
    seconds: list[float] = field(default_factory=lambda: [0.0] * ROUNDS)
    off_by: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, np.int64))
    """How often the model's input is off by so many of 255, in pictures where it is at all."""
    differing: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    """(B,) of each batch: which pictures those are."""
    scores: dict[Pooling, list[Scores]] = field(
        default_factory=lambda: {pooling: [] for pooling in POOLINGS}
    )
    """(B, all channels of all layers) of each batch."""


def parity(job: Job, data: Path, args: argparse.Namespace) -> Row:
    """One row: times by decoder, and how far each is from the reference."""
    keep_freed_memory()
    sides = {name: Side(decode) for name, decode in decoders(job, args.margin).items()}
    threads = torch.get_num_threads()
    valid = 0
    for start in range(0, len(job.source.rows), BATCH):
        rows = range(start, min(start + BATCH, len(job.source.rows)))
        torch.set_num_threads(1)
        inputs = decoded(job, rows, sides)
        torch.set_num_threads(threads)
        valid += len(inputs[REFERENCE])
        take(job, sides, inputs)
    side = "x".join(map(str, dict.fromkeys(job.model.input_size)))
    samples = {name: [each * 1e3 for each in side.seconds] for name, side in sides.items()}
    row = compared(f"{data.name}, {job.model.name} at {side}", samples, REFERENCE, pictures=valid)
    channels = [layer.channels for layer in job.layers]
    for name, mine in sides.items():
        row["sides"][name]["images_per_second"] = valid / row["sides"][name]["ms"] * 1e3
        row["sides"][name].update(apart(mine, sides[REFERENCE], channels))
    return row


def decoded(job: Job, rows: range, sides: dict[str, Side]) -> dict[str, torch.Tensor]:
    """The valid pictures' inputs (B, 3, H, W) by decoder, timed in turns."""
    pixels: dict[str, list[torch.Tensor]] = {name: [] for name in sides}
    names = list(sides)
    for row in rows:
        data = job.source.read(row)
        for number in range(-1 if row == 0 else 0, ROUNDS):
            # Another goes first each time; the very first round warms up.
            turn = (row + number) % len(names)
            for name in names[turn:] + names[:turn]:
                start = time.perf_counter()
                picture = sides[name].decode(data)
                taken = time.perf_counter() - start
                sides[name].seconds[number] += taken if number >= 0 else 0.0
                if number == ROUNDS - 1 and picture.pixels is not None:
                    pixels[name].append(picture.pixels)
    return {name: torch.stack(mine) for name, mine in pixels.items()}


def take(job: Job, sides: dict[str, Side], inputs: dict[str, torch.Tensor]) -> None:
    """Add a batch to what is gathered of every decoder."""
    reference = inputs[REFERENCE]
    scale = torch.as_tensor(job.model.steps[-1].std)[:, None, None] * 255  # type: ignore[attr-defined]
    first: dict[Pooling, Scores] = scores(job, reference)
    for name, side in sides.items():
        apart = ((inputs[name] - reference).abs() * scale).round().long()
        differing = apart.flatten(1).any(1)
        side.off_by += np.bincount(apart[differing].flatten().numpy(), minlength=256)
        side.differing.append(differing.numpy())
        # Equal inputs have equal scores.
        found = scores(job, inputs[name]) if differing.any() else first
        for pooling, values in found.items():
            side.scores[pooling].append(values)


def scores(job: Job, inputs: torch.Tensor) -> dict[Pooling, Scores]:
    """Float16 scores (B, all channels of all layers) of one forward."""
    found: dict[Pooling, dict[int, torch.Tensor]] = {pooling: {} for pooling in POOLINGS}

    def sink(number: int, activation: torch.Tensor) -> None:
        for pooling in POOLINGS:
            wide = pool(activation, job.layers[number].tokens, pooling)
            found[pooling][number] = round_to_half(wide).cpu()

    with torch.inference_mode(), capture(job.model.module, job.layers, sink):
        job.model.module(inputs.to(job.device, job.model.dtype))
    return {
        pooling: torch.cat([layers[number] for number in sorted(layers)], 1).numpy()
        for pooling, layers in found.items()
    }


def apart(mine: Side, reference: Side, channels: Sequence[int]) -> dict[str, Any]:
    """How far a decoder is from the reference."""
    counts, differing = mine.off_by, np.concatenate(mine.differing)
    found: dict[str, Any] = {"differing_pictures": int(differing.sum())}
    if not differing.any():
        return found
    total = counts.sum()
    found |= {
        "input_of_255_mean": float(counts @ np.arange(256) / total),
        "input_of_255_p99": int(np.searchsorted(counts.cumsum(), 0.99 * total)),
        "input_of_255_max": int(counts.nonzero()[0].max()),
    }
    for pooling in POOLINGS:
        one, other = (np.concatenate(each.scores[pooling]) for each in (mine, reference))
        deviation = other.std(0, dtype=np.float64)
        told = deviation > 0
        off = np.abs(one[differing].astype(np.float32) - other[differing])
        off = off[:, told] / deviation[told]
        layers = [float(each.mean()) for each in overlaps(one, other, channels)]
        found[f"{pooling}_scores"] = {
            "off_by_deviations_median": float(np.median(off)),
            "off_by_deviations_p99": float(np.quantile(off, 0.99)),
            f"top{TOP}_overlap_mean": float(np.average(layers, weights=channels)),
            f"top{TOP}_overlap_worst_layer": min(layers),
        }
    return found


def overlaps(
    one: Scores, other: Scores, channels: Sequence[int]
) -> Iterator[npt.NDArray[np.float64]]:
    """By layer, the share of each channel's best pictures that two sides agree on."""
    ends = np.cumsum(channels)
    for start, stop in zip(ends - channels, ends, strict=True):
        chosen = np.zeros((2, len(one), stop - start), bool)
        for number, values in enumerate((one, other)):
            best = np.argsort(-values[:, start:stop], axis=0, kind="stable")[:TOP]
            np.put_along_axis(chosen[number], best, values=True, axis=0)
        yield chosen.all(0).sum(0) / min(TOP, len(one))


def show_parity(row: Row) -> None:
    """Print what `apart` found."""
    for name, side in row["sides"].items():
        print(f"  {name}: {side['differing_pictures']} pictures differ", flush=True)
        if side["differing_pictures"]:
            print(
                f"    input: of 255, mean"
                f" {side['input_of_255_mean']:.3f}, p99 {side['input_of_255_p99']},"
                f" max {side['input_of_255_max']}"
            )
            for pooling in POOLINGS:
                median, high, mean, worst = side[f"{pooling}_scores"].values()
                print(
                    f"    {pooling}: off by {median:.4f} deviations (p99 {high:.3f}),"
                    f" top {TOP} overlap {mean:.4f} (worst layer {worst:.4f})",
                    flush=True,
                )


if __name__ == "__main__":
    raise SystemExit(main())
