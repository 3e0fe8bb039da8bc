"""Which channels look at the object, which at the background, and what masking either does.

    python -m vitscope.bench.background [--scenes N] [--json FILE]

Drawn scenes, whose boxes are known, are indexed, and so are two kinds of copies from
`vitscope variant`: without background, in which the box alone is left, and without the object. A
channel looks at the object where its maps tell the box from the rest with a mean ROC-AUC of 0.9
and more, and prefers the background at 0.4 and less. What a mask does to it is the mean change of
its scores in standard deviations over all whole scenes. Both are read twice: over all scenes; and
over the 32 on which the channel's strongest patch is strongest. Scenes that were chosen for high
scores lose by any change at all, so that there one mask is to be held against the other, not
against zero. Asked of a server, as anyone would.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.bench import arguments
from vitscope.bench.record import write
from vitscope.bench.servers import served
from vitscope.client import Client, ImageFilter
from vitscope.indexer.scenes import read_truth, write_scenes
from vitscope.indexer.scenes.model import MODEL_NAME

PACKAGES = ("vitscope", "torch", "timm", "numpy")
OBJECT, BACKGROUND, BEST = 0.9, 0.4, 32
MASKS = ("background", "foreground")
READINGS = ("all scenes, mean", "all scenes, max", "best scenes, max")

Doubles = npt.NDArray[np.float64]


def main() -> int:
    """Index, mask, index, ask, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.scenes)
        with served(folder / "whole", *(folder / mask for mask in MASKS)) as address:
            rows = layer_rows(address)
    show(rows)
    if args.json:
        command = f"python -m vitscope.bench.background --scenes {args.scenes}"
        write(args.json, command, rows, PACKAGES)
    return 0


def make(folder: Path, scenes: int) -> None:
    """The indexes `whole`, and one by the name of each mask."""
    whole = draw(folder / "scenes", scenes)
    index(whole, folder / "whole", "--retain-all", "all")
    for mask in MASKS:
        copies = folder / f"without-{mask}"
        run("variant", "--data", whole, "--out", copies, "--mask", mask)
        index(copies / "list.csv", folder / mask)


def index(pictures: Path, out: Path, *more: str) -> None:
    """An index of a list of pictures."""
    run("index", "--model", MODEL_NAME, "--data", pictures, "--out", out,
        "--no-patch-search", *more)  # fmt: skip


def draw(folder: Path, scenes: int) -> Path:
    """Scenes, and the list that has their boxes."""
    write_scenes(folder, scenes)
    with (folder / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "boxes"))
        for scene in read_truth(folder):
            table.writerow((f"images/{scene.key}", scene.label, json.dumps([scene.box])))
    return folder / "list.csv"


def run(*arguments: object) -> None:
    """A command of vitscope."""
    command = [sys.executable, "-m", "vitscope.client", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def layer_rows(address: str) -> list[dict[str, Any]]:
    """What becomes of the two kinds of channels of every layer, in every reading."""
    rows = []
    with Client(address, timeout=600) as client:
        for layer in client.index("whole").layers:
            for reading in READINGS:
                auc, effects = judged(client, layer.name, reading)
                row: dict[str, Any] = {"layer": layer.name, "reading": reading}
                row["channels"] = layer.channels
                for kind, chosen in (("object", auc >= OBJECT), ("background", auc <= BACKGROUND)):
                    row[kind] = {
                        "channels": int(chosen.sum()),
                        **{f"no_{mask}": summary(effects[mask][chosen]) for mask in MASKS},
                    }
                rows.append(row)
    return rows


def summary(effects: Doubles) -> dict[str, float] | None:
    """Quartiles of the effects of a mask on channels (M,), and the share of them it lowers."""
    if not len(effects):
        return None
    low, middle, high = np.quantile(effects, (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "low": low, "high": high, "lowered": float((effects < 0).mean())}


def judged(client: Client, layer: str, reading: str) -> tuple[Doubles, dict[str, Doubles]]:
    """The ROC-AUC of each channel (C,), and what each mask does to it (C,); channels that never
    change have an AUC of NaN, so that they are of neither kind."""
    scenes, _, pooling = reading.partition(", ")
    chosen = best_scenes if scenes == "best scenes" else all_scenes
    auc, effects = chosen(client, layer, pooling)
    changing = ~np.isnan(effects[MASKS[0]])
    return np.where(changing, auc, np.nan), effects


def all_scenes(client: Client, layer: str, pooling: str) -> tuple[Doubles, dict[str, Doubles]]:
    """Over all scenes."""
    auc = np.array(client.box_scores(layer, index="whole").auc)
    effects = {}
    for mask in MASKS:
        found = client.compare_channels("whole", mask, layer, pooling=pooling, k=len(auc))
        effects[mask] = np.full(len(auc), np.nan)
        for each in found.channels:
            effects[mask][each.channel] = each.effect
    return auc, effects


def best_scenes(client: Client, layer: str, pooling: str) -> tuple[Doubles, dict[str, Doubles]]:
    """Over the scenes on which a channel scores highest."""
    scores = {
        name: client.scores(layer, pooling=pooling, index=name).values.astype(np.float64)
        for name in ("whole", *MASKS)
    }
    best = np.argsort(-scores["whole"], 1, kind="stable")[:, :BEST]
    means = {name: np.take_along_axis(each, best, 1).mean(1) for name, each in scores.items()}
    deviation = scores["whole"].std(1)
    deviation[deviation == 0] = np.nan
    effects = {mask: (means[mask] - means["whole"]) / deviation for mask in MASKS}
    auc = [
        client.box_scores(
            layer, [channel], where=ImageFilter(rows=rows.tolist()), index="whole"
        ).auc[0]
        for channel, rows in enumerate(best)
    ]
    return np.array(auc), effects


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table for each reading."""
    for reading in READINGS:
        print(f"\n{reading}: median effect, and the share that is lowered, without …")
        print(f"{'':<16}{'on the object':^48}{'on the background':^48}")
        head = f"{'channels':>12}{'… background':>18}{'… object':>18}"
        print(f"{'layer':<16}{head}{head}")
        for row in rows:
            if row["reading"] != reading:
                continue
            cells = ""
            for kind in ("object", "background"):
                cells += f"{row[kind]['channels']:>12}"
                for mask in MASKS:
                    cells += f"{cell(row[kind][f'no_{mask}']):>18}"
            print(f"{row['layer']:<16}{cells}")


def cell(found: dict[str, float] | None) -> str:
    """A summary in a few characters."""
    return f"{found['median']:+.2f}, {found['lowered']:.0%}" if found else "-"


if __name__ == "__main__":
    raise SystemExit(main())
