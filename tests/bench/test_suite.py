"""The suite: what was done is kept, what failed is told, and the report shows all of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import tiny
from synthetic import Synthetic

from vitscope.bench import forward, growth, limits, overload, peers, suite, tools
from vitscope.bench.adapters import common
from vitscope.bench.agreement import agreement, judge, means, model_of
from vitscope.bench.callers import Call, Made, flooded
from vitscope.bench.record import compared
from vitscope.bench.report import write_report
from vitscope.bench.servers import served
from vitscope.bench.suite import SUITE, BenchError, Benchmark, chosen, run_suite
from vitscope.indexer.job import prepare
from vitscope.indexer.scenes import write_scenes
from vitscope.indexer.topk import NONE


def test_all_benchmarks_are_in_the_suite() -> None:
    package = Path(suite.__file__).parent
    runnable = {
        path.stem
        for path in package.glob("*.py")
        if 'add_argument("--json"' in path.read_text() or 'add("--json"' in path.read_text()
    }
    # By hand: they judge channels, or are part of growth.
    assert runnable - {each.name for each in SUITE} == {"background", "memory"}


def test_an_area_has_its_benchmarks_and_the_limits() -> None:
    assert [each.name for each in chosen(["store"])] == ["limits", "store"]
    assert chosen(suite.AREAS) == list(SUITE)


def test_what_was_done_is_kept_when_a_run_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = Benchmark("limits", "limits"), Benchmark("limits", "store", quick=("--nonsense",))
    said: list[str] = []
    with pytest.raises(BenchError, match="limits ended with 2"):
        run_suite([good, bad], tmp_path, quick=True, device="cpu", say=said.append)
    # The same name and other arguments: nothing of it is taken for the other.
    assert not (tmp_path / suite.PARTS / "limits.json").exists()
    run_suite([good], tmp_path, quick=True, device="cpu", say=said.append)
    said.clear()
    body = run_suite([good], tmp_path, quick=True, device="cpu", say=said.append)
    assert said == ["[1/1] limits: kept from the run that was cut short"]
    names = {row["name"] for row in body["parts"]["limits"]["rows"]}
    assert names == {
        "matrix_float32",
        "matrix_bfloat16",
        "memory",
        "disk_write",
        "disk_read",
        "loopback",
    }
    assert all(row["value"] > 0 for row in body["parts"]["limits"]["rows"])
    said.clear()
    monkeypatch.setattr(suite, "stamp", lambda: "other code")
    run_suite([good], tmp_path, quick=True, device="cpu", say=said.append)
    assert "kept" not in said[0]
    suite.forget(tmp_path)
    assert not (tmp_path / suite.PARTS).exists()


def test_what_a_benchmark_wrote_before_it_failed_is_no_result(tmp_path: Path) -> None:
    words = ("--pictures", "32", "--model", "test_vit", "--model", "nonsense")
    half = Benchmark("forward", "index", quick=words)
    with pytest.raises(BenchError, match=r"forward ended with 1 and without a result"):
        run_suite([half], tmp_path, quick=True, device="cpu", say=print)
    assert list((tmp_path / suite.PARTS).iterdir()) == []


def test_pictures_that_none_can_beat_enter_no_ranking(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", 32)
    data = tmp_path / "scenes" / "images"
    options = tiny(data, tmp_path / "index")
    job = prepare(options)
    for barred in (False, True):
        with forward.working(job, tmp_path) as worker:
            if barred:
                worker.bar()
            worker.run_all(job.plan.units)
            held = [reduction._top.keys != NONE for reduction in worker._reductions]
            assert all(bool(some.any()) != barred for some in held)


def test_rates_are_of_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: a second for 3,152 x 3,072 x 3,072 products and sums, and for bytes both ways."""
    monkeypatch.setattr(limits, "best", lambda call, rounds: call() or 1.0)
    assert limits.matrix_rate("cpu", torch.float32, 1) == 2 * 3152 * 3072 * 3072
    assert limits.copy_rate(1 << 20, 1) == 2 << 20


def test_a_process_that_asks_holds_nothing_of_an_indexer(synthetic: Synthetic) -> None:
    costs = growth.read_by_another(synthetic.path, "blocks.0.mlp")
    assert costs.kept_ms > 0
    assert costs.ranking_ms > 0
    code = "import sys, vitscope.bench.asking; print('torch' in sys.modules, 'zarr' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_calls_of_the_onset_stand_apart(synthetic: Synthetic) -> None:
    call = Call("/vitscope.v1.ActivationService/ListIndexes", b"", "light", False)
    with served(synthetic.path) as address:
        onset, loaded = asyncio.run(flooded(address, [call], 400.0, 0.25, 0.5))
    for made in (onset, loaded):
        assert made.codes == {"OK": len(made.late)}
    # However late they are begun.
    chance, due, meant = random.Random(1), 0.0, Counter[bool]()
    while due < 0.75:
        meant[due < 0.25] += 1
        due += chance.expovariate(400.0)
    assert (len(onset.late), len(loaded.late)) == (meant[True], meant[False])


def test_memory_grows_from_the_twentieth_second_on() -> None:
    assert overload.growth_of([100, 150, 180, 190, 200, 200, 210])["growth"] == pytest.approx(0.05)
    assert overload.growth_of([100] * 10 + [200] * 90)["growth"] == 0


def found_overload(**codes: int) -> overload.Found:
    """What a server does that holds everything, and its statuses of the onset."""

    def made(taken: float, **codes: int) -> Made:
        return Made({(code, "light"): [taken] * count for code, count in codes.items()}, [0.1])

    return overload.Found(
        unloaded=made(10.0, OK=100),
        speeds={2: 90.0, 4: 100.0},
        onset=made(500.0, **codes),
        loaded=made(19.0, OK=500, RESOURCE_EXHAUSTED=9_500),
        health={"SERVING": [1.0]},
        after=made(10.0, OK=100),
        memory=[100] * 10,
    )


def test_an_overload_is_judged_by_all_but_the_times_of_its_onset() -> None:
    row = overload.row_of(1, 10.0, found_overload(OK=5, RESOURCE_EXHAUSTED=5))
    assert row["accepted_p99_to_unloaded"] == pytest.approx(1.9)
    assert row["begun_per_second"] == 1_000
    assert all(row["held"].values())
    row = overload.row_of(1, 10.0, found_overload(OK=5, INTERNAL=1))
    assert row["onset_codes"] == {"OK": 5, "INTERNAL": 1}
    assert [what for what, held in row["held"].items() if not held] == ["codes"]
    bad = found_overload(OK=5)
    bad.loaded.milliseconds["OK", "light"] = [21.0] * 100
    bad.loaded.milliseconds["RESOURCE_EXHAUSTED", "light"] = []
    bad.memory = [100] * 5 + [112] * 5
    row = overload.row_of(1, 10.0, bad)
    # None was refused; what the rest took is in the way too.
    missed = [what for what, held in row["held"].items() if not held]
    assert missed == ["refused", "accepted", "memory"]


def test_a_minute_too_short_for_memory_is_refused() -> None:
    command = [sys.executable, "-m", "vitscope.bench.overload", "--minutes", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--minutes must be at least 0.6" in done.stderr


def test_exponents_are_those_of_powers() -> None:
    points = [
        {"n": n, "seconds": 3 * n**1.5, "memory": 7.0, "disk": 2.0 * n} for n in (10, 20, 80, 320)
    ]
    found = growth.exponents(points)
    assert found == pytest.approx({"seconds": 1.5, "memory": 0, "disk": 1}, abs=1e-9)


FLOOR = [1.0, 1.1, 1.2]
PEERS = {
    "tools": ["vitscope", "other"],
    "notes": ["**other** cannot do maps: it has none."],
    "rows": [
        {
            "what": "indexing",
            "unit": "images/s",
            "better": "more",
            "values": {"vitscope": 20.0, "other": 10.0},
            "work": {"moved": 1e8},
        },
        {"what": "maps", "unit": "ms", "better": "less", "values": {"vitscope": 2.0}},
        {
            "what": "hundredth answer",
            "unit": "ms",
            "better": "less",
            "values": {"vitscope": 4.0, "other": 1.0},
        },
    ],
}
POINTS: list[dict[str, Any]] = [
    {
        "n": n,
        "seconds": 1.0 * n,
        "memory": 5.0 * n,
        "disk": 2.0 * n,
        "work": {"seconds": {"moved": n * 1e9}},
    }
    for n in (10, 100)
]


def a_body() -> dict[str, Any]:
    """Figures of every kind."""
    row = compared(
        "a question",
        {"floor": FLOOR, "side": [3.0, 3.1, 3.3]},
        "floor",
        work={"trips": 1, "moved": 1_000},
    )
    grown = {"what": "pictures", "points": POINTS, "exponents": growth.exponents(POINTS)}
    measured = [
        {"what": "loopback", "name": "loopback", "value": 0.1, "unit": "ms"},
        {"what": "copies", "name": "memory", "value": 10.0, "unit": "GB/s"},
    ]
    return {
        "command": "vitscope bench all --quick",
        "date": "2026-01-01",
        "processor": "some processor",
        "threads": 2,
        "python": "3.11",
        "versions": {"vitscope": "0", "faiss-gpu": "absent"},
        "seconds": 60.0,
        "quick": True,
        "gpu": "none",
        "parts": {
            "limits": {"rows": measured},
            "answers": {"rows": [row]},
            "overload": {"rows": [overload.row_of(1, 10.0, found_overload(INTERNAL=1))]},
            "growth": {"rows": [grown]},
            "peers": PEERS,
        },
    }


def test_the_report_tells_figures_bounds_growth_and_peers(tmp_path: Path) -> None:
    path = write_report(a_body(), tmp_path / "out")
    text = path.read_text()
    assert "| a question | floor | 1.1 (1.05–1.15) | 1 | 0.1 | 9% |" in text
    assert "|  | side | 3.1 (3.05–3.2) | 2.82 (2.78–2.91) | 0.1 | 3% |" in text
    assert "| **exponent** | **1.00** | **1.00** | **1.00** |" in text
    # 100 GB at 10 GB/s.
    assert "| the machine's limit at the last n | 10 |  |  |" in text
    # Twice as good, and four times worse.
    assert "| indexing, images/s | 20 | 10 (2) | 100 |" in text
    assert "| hundredth answer, ms | 4 | 1 (0.25) |  |" in text
    assert "| maps, ms | 2 | – |  |" in text
    assert "| accepted | 500 | 19.00 | 19.0 |" in text
    assert "**Missed: no status but OK and RESOURCE_EXHAUSTED.**" in text
    assert "**No figure of a GPU is in it.**" in text
    assert "absent" not in text
    shown = [line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")]
    assert shown == ["ratios-answers.png", "growth.png", "peers.png"]
    for name in shown:
        with Image.open(path.parent / name) as picture:
            pixels = np.asarray(picture.convert("L"))
        # Something is drawn on it.
        assert (pixels < 128).mean() > 0.001


def test_a_gpu_run_does_not_say_that_there_is_none(tmp_path: Path) -> None:
    text = write_report(a_body() | {"gpu": "a card"}, tmp_path).read_text()
    assert "No figure of a GPU" not in text
    assert "Indexed on a card" in text


def test_agreement_is_judged_by_scores_where_rows_tie() -> None:
    truth = {"a|0": np.array([3.0, 2.0, 2.0, 1.0], np.float32)}
    rankings = {
        "right": [[0, 3.0], [1, 2.0]],
        "tied": [[0, 3.0], [2, 2.0]],
        "wrong": [[0, 3.0], [3, 1.0]],
        "short": [[0, 3.0], [-1, 0.0]],
    }
    found = {
        name: {"rankings": {"a|0": ranking}, "ranking_pooling": "mean"}
        for name, ranking in rankings.items()
    }
    lines = list(agreement(found, truth))
    assert "1 of 1 rankings are those of plain hooks, 1 up to ties" in lines[0]
    assert "0 of 1 rankings are those of plain hooks, 1 up to ties" in lines[1]
    assert "0 of 1 rankings are those of plain hooks, 0 up to ties" in lines[2]
    assert "0 of 1 rankings are those of plain hooks, 0 up to ties" in lines[3]
    assert "1 places empty; in 0 belongs a negative score." in lines[3]
    assert "empty" not in lines[2]


def test_a_ranking_that_repeats_a_picture_is_not_right() -> None:
    truth = np.array([3.0, 3.0, 1.0], np.float32)
    assert judge([[0, 3.0], [1, 3.0]], truth).close
    assert not judge([[0, 3.0], [0, 3.0]], truth).close


def test_the_order_of_a_ranking_counts() -> None:
    truth = np.array([3.0, 2.0, 1.0], np.float32)
    assert judge([[0, 3.0], [1, 2.0]], truth).close
    assert not judge([[1, 2.0], [0, 3.0]], truth).close


def test_why_places_are_empty_is_told_where_some_are() -> None:
    truth = {"a|0": np.array([3.0, 2.0, -1.0], np.float32)}
    notes = {"ranking_pooling": "mean", "ranking_note": "it rounds", "empty_note": "it has zeros"}
    rankings = {
        "right": [[0, 3.0], [1, 2.0], [2, -1.0]],
        "wrong": [[0, 3.0], [2, 2.0], [1, -1.0]],
        "short": [[0, 3.0], [1, 2.0], [-1, 0.0]],
    }
    found = {name: {"rankings": {"a|0": each}} | notes for name, each in rankings.items()}
    right, wrong, short = agreement(found, truth)
    assert "Why" not in right
    assert wrong.endswith("Why: it rounds.")
    assert short.endswith(
        "It leaves 1 places empty; in 1 belongs a negative score. Why: it rounds; it has zeros."
    )


def test_plain_hooks_give_what_a_model_computes_by_hand(tmp_path: Path) -> None:
    """A ViT's first feed-forward layers written out: no hook, and no transform of timm."""
    args = argparse.Namespace(
        limit=None, quick=True, data=None, model="test_vit", img_size=None, checkpoint=None
    )
    task = peers.task_of(args, tmp_path)
    task |= {"pictures": task["pictures"][:3], "compared": 100}
    task["questions"] = [
        [layer, channel] for layer in ("blocks.1.mlp", "blocks.0.mlp") for channel in range(4)
    ]
    found = means(task)
    assert list(found) == [f"{layer}|{channel}" for layer, channel in task["questions"]]
    model = model_of(task)
    prefix = model.num_prefix_tokens
    side = model.patch_embed.img_size[0]
    for number, path in enumerate(task["pictures"]):
        with Image.open(path) as picture:
            # Drawn scenes are square; timm keeps a border of what it resizes to.
            larger = math.floor(side / model.default_cfg["crop_pct"])
            scaled = picture.convert("RGB").resize((larger, larger), Image.Resampling.BICUBIC)
        low = round((larger - side) / 2)
        pixels = np.asarray(scaled.crop((low, low, low + side, low + side)), np.float32) / 255
        norm = [np.array(model.default_cfg[key], np.float32) for key in ("mean", "std")]
        given = torch.from_numpy(((pixels - norm[0]) / norm[1]).transpose(2, 0, 1)[None])
        with torch.inference_mode():
            tokens = model.norm_pre(model._pos_embed(model.patch_embed(given)))
            hidden = {}
            for place in (0, 1):
                block = model.blocks[place]
                tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
                inner = torch.nn.functional.gelu(block.mlp.fc1(block.norm2(tokens)))
                hidden[f"blocks.{place}.mlp"] = inner[0, prefix:].mean(0)
                tokens = tokens + block.ls2(block.mlp.fc2(inner))
        for (layer, channel), mine in zip(task["questions"], found.values(), strict=True):
            assert mine[number] == pytest.approx(float(hidden[layer][channel]), abs=1e-5)


def test_a_tool_whose_user_keeps_tables_is_asked_everything() -> None:
    """By hand: a tool that knows its activations (N, P, C), and a user that keeps their means."""
    activations = np.random.default_rng(0).normal(size=(30, 4, 3)).astype(np.float32)
    task = {
        "k": 5,
        "pictures": [f"{number}.png" for number in range(30)],
        "labels": ["a", "b", "b"] * 10,
        "questions": [["x", channel] for channel in range(3)],
        "compared": 2,
        "batch_size": 7,
    }
    asked: list[tuple[list[str], list[int]]] = []

    class Tool:
        pictures = common.Pictures(task, transform=str)

        def patches(self, layers: list[str], some: common.Pictures) -> Any:
            asked.append((layers, some.rows))
            yield [torch.from_numpy(activations[some.rows])]

    what = {key: key for key in ("answers", "other_pooling", "label_filter", "maps")}
    means_ = activations.mean(1)
    found = common.answers_of_tables(task, lambda layer: means_, Tool, what)
    best = np.argsort(-means_[:, 0], kind="stable")[:5].tolist()
    # Maps of the best, then another pooling of all.
    assert asked == [(["x"], best), (["x"], list(range(30)))]
    assert list(found["rankings"]) == ["x|0", "x|1"]
    assert [row for row, _ in found["rankings"]["x|0"]] == best
    assert {key: found[key]["what"] for key in what} == what
    assert found["answers"]["first_seconds"] > 0
    assert all(found[key]["seconds"] > 0 for key in ("other_pooling", "label_filter", "maps"))


def test_a_tool_that_fails_is_told_and_leaves_its_row_open(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"threads": 1}))
    found = tools.result_of(tools.TOOLS[1], tmp_path / "venvs", tmp_path)
    assert found["error"].startswith("failed: KeyError")
    [line] = peers.explanations({"model again": found})
    assert line.startswith("**model again** failed: KeyError")
    rows = list(peers.table({"pictures": ["x"]}, {"model again": found}, 1e9))
    assert all(row["values"] == {} for row in rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--limit 5", "--limit must be at least 20"),
        ("--model vit_huge", "vit_huge is no model of timm"),
        ("--model resnet18", "has no layers blocks.N.mlp.act"),
        ("--data nowhere", "--data nowhere must hold at least 20"),
        ("--checkpoint nowhere", "--checkpoint nowhere is no file"),
    ],
)
def test_what_peers_cannot_be_given_is_told_before_they_run(words: str, told: str) -> None:
    command = [sys.executable, "-m", "vitscope.bench.peers", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tool_that_cannot_be_installed_is_told(tmp_path: Path) -> None:
    tool = tools.Tool("none", "captum", [["--no-index", "no-such-package-at-all"]])
    found = tools.result_of(tool, tmp_path / "venvs", tmp_path)
    assert found["error"].startswith("could not be installed: ERROR: No matching distribution")
    (tmp_path / "file").touch()
    found = tools.result_of(tool, tmp_path / "file", tmp_path)
    assert found["error"].startswith("could not be installed: ")


def test_peers_run_for_real_and_agree_with_plain_hooks(tmp_path: Path) -> None:
    """Those that need nothing installed; the others differ by their adapter alone."""
    path = tmp_path / "peers.json"
    command = [sys.executable, "-m", "vitscope.bench.peers", "--limit", "24", "--json", str(path)]
    command += ["--tool", "dense .npy", "--tool", "dense Zarr"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    body = json.loads(path.read_text())
    assert body["tools"] == ["vitscope", "dense .npy", "dense Zarr"]
    for row in body["rows"]:
        ours = ("hundredth, from a server", "10 similar images", "of which right")
        count = 0 if "built" in row["what"] else 1 if row["what"] in ours else 3
        assert set(row["values"]) == set(body["tools"][:count])
        assert all(value > 0 for value in row["values"].values())
    agreed = [note for note in body["notes"] if "rankings are those of plain hooks" in note]
    assert len(agreed) == 3
    for note in agreed:
        assert "20 up to ties within" in note
    # Neither paths nor rankings of this machine.
    assert str(Path.home()) not in path.read_text()
    assert "rankings" not in body["results"]["vitscope"]
