"""On drawn scenes a mask takes from each kind of channel what that kind looks at.

Judged as in `vitscope.bench.background`: on the scenes on which a channel's strongest patch is
strongest, where one mask is held against the other.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from started import ServerProcess

from vitscope.client import Client, ImageFilter
from vitscope.client.cli import main
from vitscope.indexer.scenes import read_truth, write_scenes
from vitscope.indexer.scenes.model import MODEL_NAME

SCENES, BEST = 128, 8
LAYER = "blocks.5.mlp"
MASKS = ("background", "foreground")

Doubles = npt.NDArray[np.float64]


def index(pictures: Path, out: Path, *more: str) -> None:
    line = ["index", "--model", MODEL_NAME, "--data", str(pictures), "--out", str(out)]
    assert main([*line, *more]) == 0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., ServerProcess]) -> str:
    """Of a server over the scenes as they are, and without background and object."""
    folder = tmp_path_factory.mktemp("masking")
    write_scenes(folder, SCENES)
    whole = folder / "list.csv"
    with whole.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "boxes"))
        for scene in read_truth(folder):
            table.writerow((f"images/{scene.key}", scene.label, json.dumps([scene.box])))
    index(whole, folder / "whole", "--retain-all", LAYER, "--no-patch-search")
    for mask in MASKS:
        copies = folder / f"without-{mask}"
        line = ["variant", "--data", str(whole), "--out", str(copies), "--mask", mask]
        assert main(line) == 0
        index(copies / "list.csv", folder / mask)
    return serve(folder / "whole", *(folder / mask for mask in MASKS)).address


def test_each_mask_takes_what_the_channels_of_a_kind_look_at(address: str) -> None:
    with Client(address) as client:
        scores = {
            name: client.scores(LAYER, pooling="max", index=name).values.astype(np.float64)
            for name in ("whole", *MASKS)
        }
        best = np.argsort(-scores["whole"], 1, kind="stable")[:, :BEST]
        auc = np.array(
            [
                client.box_scores(
                    LAYER, [channel], where=ImageFilter(rows=rows.tolist()), index="whole"
                ).auc[0]
                for channel, rows in enumerate(best)
            ]
        )

    def effect(mask: str, chosen: npt.NDArray[np.bool_]) -> Doubles:
        """Of a mask on the chosen channels (M,), in deviations."""
        lost = np.take_along_axis(scores[mask] - scores["whole"], best, 1).mean(1)
        found: Doubles = (lost / scores["whole"].std(1))[chosen]
        return found

    on_object, on_background = auc >= 0.9, auc <= 0.4
    assert on_object.sum() >= 5
    assert on_background.sum() >= 20
    assert np.median(effect("foreground", on_object)) < -2
    assert np.median(effect("background", on_object)) > -1
    assert (effect("foreground", on_object) < effect("background", on_object)).all()
    without, control = (effect(mask, on_background) for mask in MASKS)
    assert np.median(without) < np.median(control) - 0.3
    assert (without < control).mean() > 0.6
