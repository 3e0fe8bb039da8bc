"""Units done by several processes, in any order, found damaged, or stopped on request."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import files_of, keeping, keeping_line, open_files

from vitscope.client.cli import main
from vitscope.indexer.errors import OutputError
from vitscope.indexer.job import Job
from vitscope.indexer.plan import Unit
from vitscope.indexer.run import index
from vitscope.indexer.work import Work
from vitscope.indexer.workers import run_here
from vitscope.store.generation import open_generation
from vitscope.store.progress import Progress
from vitscope.store.verify import verify

ROWS = 31


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_processes_changes_nothing(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    index(replace(keeping(pictures, tmp_path / "index"), workers=workers))
    assert files_of(tmp_path / "index") == whole


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_units_changes_nothing(
    pictures: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    def shuffled(
        job: Job, work: Work, finished: list[Unit], units: list[Unit], progress: Progress
    ) -> Mapping[str, float]:
        order = random.Random(seed).sample(units, len(units))
        return run_here(job, work, finished, order, progress)

    monkeypatch.setattr("vitscope.indexer.run.run_here", shuffled)
    index(keeping(pictures, tmp_path / "index"))
    assert files_of(tmp_path / "index") == whole


def half_done(
    pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None = None
) -> Path:
    """A run that ended before its merge; gives the working folder."""
    with monkeypatch.context() as patch:

        def stop(*given: object) -> str:
            raise KeyboardInterrupt

        patch.setattr("vitscope.indexer.run.merge", stop)
        with pytest.raises(KeyboardInterrupt):
            index(replace(keeping(pictures, out), limit=limit))
    return out / "building"


SCORES = "staged/arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/2"
DENSE = "staged/arrays.zarr/layers/blocks.1.mlp/activations/c/2/0/0"
MAPS = "units/000002/blocks.2.mlp.max.maps.npy"
RECEIPT = "units/000002.json"


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        *((SCORES, how) for how in ("flip", "cut", "remove", "swap")),
        *((RECEIPT, how) for how in ("flip", "cut", "remove", "swap")),
        (DENSE, "swap"),
        (MAPS, "flip"),
        ("units/000002/rows.json", "swap"),
        ("units/000002/thumbnails.bin", "flip"),
    ],
)
def test_a_unit_that_was_damaged_is_done_again(
    pictures: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    victim: str,
    how: str,
) -> None:
    path = half_done(pictures, tmp_path / "index", monkeypatch) / victim
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "remove":
        path.unlink()
    else:
        # Another unit's file, sound in itself.
        other = Path(str(path).replace("000002", "000003").replace("/2", "/3"))
        path.write_bytes(other.read_bytes())
    capsys.readouterr()
    index(keeping(pictures, tmp_path / "index"))
    assert files_of(tmp_path / "index") == whole
    said = capsys.readouterr().err
    missing_receipt = how == "remove" and victim.endswith("2.json")
    assert missing_receipt or "Rows 8 to 11 are indexed again" in said


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_stops_cleanly_and_the_same_command_goes_on(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path, stop: signal.Signals, workers: int
) -> None:
    out = tmp_path / "index"
    line = keeping_line(pictures, out, "--workers", str(workers))
    command = [sys.executable, "-m", "vitscope.client.cli", *line]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob("building/units/*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, stop)
    _, said = process.communicate(timeout=60)
    if process.returncode:  # else it was faster than the signal
        assert process.returncode == (143 if stop == signal.SIGTERM else 130)
        assert said.splitlines()[-1].startswith(
            "vitscope: Stopped; the same command goes on from here"
        )
        assert "Traceback" not in said
        assert main(line) == 0
    assert files_of(out) == whole


def test_a_worker_that_is_killed_ends_the_run_in_one_sentence(
    pictures: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "index"
    line = keeping_line(pictures, out, "--workers", "2")
    command = [sys.executable, "-m", "vitscope.client.cli", *line]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    victims: list[int] = []
    while not victims:
        assert process.poll() is None
        victims = workers_of(process.pid, out)
        time.sleep(0.005)
    os.kill(victims[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "A worker process was killed by SIGKILL" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert main(line) == 0
    assert files_of(out) == whole


def workers_of(parent: int, out: Path) -> list[int]:
    """What multiprocessing's server forked to work: children of it that hold the index's lock."""
    servers = [child for child in children_of(parent) if "forkserver" in command_of(child)]
    children = [child for server in servers for child in children_of(server)]
    return [child for child in children if str(out / "lock") in open_files(child)]


def children_of(parent: int) -> list[int]:
    children: list[str] = []
    with suppress(OSError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            children += (task / "children").read_text().split()
    return [int(child) for child in children]


def command_of(process: int) -> str:
    # Libraries ask short-lived programs about the machine: one may be gone when looked at.
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


def test_other_options_are_refused_by_name(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    half_done(pictures, out, monkeypatch)
    base = keeping(pictures, out)
    others = {
        "--model test_vit (not test_vit2)": replace(base, model="test_vit2"),
        "--top-k 3 (not 2)": replace(base, top_k=2),
        "--poolings mean,max,cls (not mean)": replace(base, poolings=("mean",)),
        "--retain-all blocks.1.mlp (not none)": replace(base, retain_all=()),
        "--patch-search for blocks.1.mlp (not none)": replace(base, patch_search=False),
        "--retain-prefix blocks.0.mlp (not none)": replace(base, retain_prefix=()),
        "--img-size 32 (not 48)": replace(base, img_size=(48, 48)),
        "--dtype float32 (not bfloat16)": replace(base, dtype="bfloat16"),
        "--data (and --limit) of 31 pictures (not 1 picture)": replace(base, limit=1),
        "--batch-size 4 (not 2)": replace(base, batch_size=2),
        "--unit-rows 4 (not 8)": replace(base, unit_rows=8),
        "--threads 1 (not 2)": replace(base, threads=2),
        "--thumbnail-size 256 (not 0)": replace(base, thumbnail_size=0),
        "--dtype float32 (not float16), --top-k 3 (not 2)": replace(base, top_k=2, dtype="float16"),
    }
    for said, other in others.items():
        with pytest.raises(OutputError) as caught:
            index(other)
        assert str(caught.value) == (
            f"{out} holds an unfinished run with {said}; run its own command again to finish it, "
            "or give another folder with --out."
        )


def test_a_unit_of_one_row_is_told_as_one(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    building = half_done(pictures, tmp_path / "index", monkeypatch, limit=5)
    (building / "units" / "000001" / "rows.json").unlink()
    index(replace(keeping(pictures, tmp_path / "index"), limit=5))
    assert "Row 4 is indexed again: " in capsys.readouterr().err


def test_a_damaged_plan_is_one_sentence(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = half_done(pictures, tmp_path / "index", monkeypatch)
    (building / "plan.json").write_bytes(b"{")
    with pytest.raises(OutputError, match=r"plan of the unfinished run .* is damaged; remove"):
        index(keeping(pictures, tmp_path / "index"))


def test_chosen_poolings_and_prefix_tokens(pictures: Path, tmp_path: Path) -> None:
    chosen = replace(keeping(pictures, tmp_path / "a"), poolings=("mean", "cls"))
    index(chosen)
    index(replace(keeping(pictures, tmp_path / "b"), retain_all=("all",), retain_prefix=()))
    some, everything = open_generation(tmp_path / "a"), open_generation(tmp_path / "b")
    assert [layer.poolings for layer in some.manifest.layers] == [("mean", "cls")] * 6
    assert not list(some.path.rglob("*_max"))
    assert verify(tmp_path / "a", deep=True).problems == ()
    for row in range(ROWS):
        kept = some.prefix_activations("blocks.0.mlp", row)
        assert kept.shape == (1, 192)
        np.testing.assert_array_equal(
            kept, everything.activations("blocks.0.mlp", row, slice(None))[:, :1].T
        )
        # A score has no negative zero.
        np.testing.assert_array_equal(kept[0], some.image_scores("blocks.0.mlp", "cls", row))
        np.testing.assert_array_equal(kept, everything.prefix_activations("blocks.0.mlp", row))
