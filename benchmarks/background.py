"""Which channels look at the object, which at the background, and what masking the latter does.

    python benchmarks/background.py [--scenes N] [--json FILE]

Drawn scenes, whose boxes are known, are indexed, and so are their copies from
`vitscope variant --mask background`, in which the box alone is left. A channel is judged on the 32
scenes on which its strongest patch is strongest: it looks at the object where its maps tell the box
from the rest with a mean ROC-AUC of 0.9 and more, and prefers the background at 0.3 and less. What
the mask does to it is the mean change of its maxima on these scenes, in standard deviations over
all whole scenes. Asked of a server, as anyone would.
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
from answers import served
from record import write

from vitscope.client import Client, ImageFilter
from vitscope.indexer.scenes import read_truth, write_scenes
from vitscope.indexer.scenes.model import MODEL_NAME

PACKAGES = ("vitscope", "torch", "timm", "numpy")
OBJECT, BACKGROUND, KEPT = 0.9, 0.3, 32

Doubles = npt.NDArray[np.float64]


def main() -> int:
    """Index, mask, index, ask, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.scenes)
        with served(folder / "whole", folder / "masked") as address:
            rows = layer_rows(address)
    show(rows)
    if args.json:
        command = f"python benchmarks/background.py --scenes {args.scenes}"
        write(args.json, command, rows, PACKAGES)
    return 0


def make(folder: Path, scenes: int) -> None:
    """The indexes `whole` and `masked`."""
    draw(folder / "scenes", scenes)
    run("variant", "--data", folder / "scenes/list.csv", "--out", folder / "variant",
        "--mask", "background")  # fmt: skip
    for name, source in (("whole", "scenes"), ("masked", "variant")):
        run("index", "--model", MODEL_NAME, "--data", folder / source / "list.csv",
            "--out", folder / name, "--top-k", KEPT)  # fmt: skip


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
    """What becomes of the two kinds of channels of every layer."""
    rows = []
    with Client(address, timeout=600) as client:
        for layer in client.index("whole").layers:
            auc, effect = judged(client, layer.name)
            row: dict[str, Any] = {"layer": layer.name, "channels": layer.channels}
            for kind, chosen in (("object", auc >= OBJECT), ("background", auc <= BACKGROUND)):
                some = effect[chosen & ~np.isnan(effect)]
                row[kind] = {
                    "channels": len(some),
                    "median_effect": float(np.median(some)) if len(some) else None,
                    "share_lowered": float((some < 0).mean()) if len(some) else None,
                }
            rows.append(row)
    return rows


def judged(client: Client, layer: str) -> tuple[Doubles, Doubles]:
    """The ROC-AUC of each channel (C,) on its best scenes, and what the mask does to it there."""
    whole, masked = (
        client.scores(layer, pooling="max", index=name).values.astype(np.float64)
        for name in ("whole", "masked")
    )
    best = np.argsort(-whole, 1, kind="stable")[:, :KEPT]
    before, after = (np.take_along_axis(each, best, 1).mean(1) for each in (whole, masked))
    deviation = whole.std(1)
    effect = np.divide(
        after - before, deviation, out=np.full(len(whole), np.nan), where=deviation > 0
    )
    auc = [
        client.box_scores(
            layer, [channel], where=ImageFilter(rows=rows.tolist()), index="whole"
        ).auc[0]
        for channel, rows in enumerate(best)
    ]
    return np.array(auc), effect


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':<16}{'on the object':^38}{'on the background':^38}")
    head = f"{'channels':>10}{'median effect':>16}{'lowered':>12}"
    print(f"{'layer':<16}{head}{head}")
    for row in rows:
        cells = ""
        for kind in ("object", "background"):
            found = row[kind]
            cells += f"{found['channels']:>10}"
            if found["channels"]:
                cells += f"{found['median_effect']:>+16.2f}{found['share_lowered']:>12.0%}"
            else:
                cells += f"{'-':>16}{'-':>12}"
        print(f"{row['layer']:<16}{cells}")


if __name__ == "__main__":
    raise SystemExit(main())
