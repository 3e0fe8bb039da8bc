"""Two runs side by side: what counts as a change, and what as noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from started import run_vitscope

from vitscope.bench.changes import changes, missing, table
from vitscope.bench.commands import bench
from vitscope.bench.figures import bound_of, figures_of
from vitscope.bench.record import compared
from vitscope.bench.suite import AREAS, SUITE

LIMITS = {
    "matrix_float32": 100.0,
    "memory": 10.0,
    "disk_write": 500.0,
    "disk_read": 800.0,
    "loopback": 0.02,
}


def a_run(taken: dict[str, list[float]], floor: list[float], **parts: Any) -> dict[str, Any]:
    """Figures of a run with one row, of which some sides took so long."""
    row = compared("a question", {"floor": floor, **taken}, "floor")
    limits = [{"name": name, "value": value} for name, value in LIMITS.items()]
    return {
        "processor": "one",
        "threads": 2,
        "quick": True,
        "parts": {"limits": {"rows": limits}, "answers": {"rows": [row]}, **parts},
    }


FLOOR = [1.0, 1.1, 1.2, 1.0, 1.1]


def test_twice_as_slow_is_a_change_and_noise_is_none() -> None:
    before = a_run({"slow": [4.0] * 5, "same": [3.0, 3.3, 3.6, 3.0, 3.3]}, FLOOR)
    after = a_run({"slow": [8.0] * 5, "same": [3.1, 3.2, 3.6, 3.1, 3.2]}, FLOOR)
    slow, same = changes(before, after)
    assert (slow.after.side, slow.beyond_spread, slow.factor) == ("slow", True, 2)
    assert (same.after.side, same.beyond_spread) == ("same", False)
    assert slow.beyond(0.5)
    assert not slow.beyond(1.5)
    # Faster is a change too, but nothing to fail by.
    [back, _] = changes(after, before)
    assert back.beyond_spread
    assert not back.beyond(0.0)
    marked = [line for line in table([slow, same]) if line.startswith("!")]
    assert len(marked) == 1
    assert marked[0].endswith("answers, a question: slow")


@given(st.floats(0.01, 100), st.floats(0.5, 2))
def test_a_slower_machine_is_no_change(speed: float, ratio: float) -> None:
    before = a_run({"side": [ratio * each for each in FLOOR]}, FLOOR)
    after = a_run(
        {"side": [ratio * each * speed for each in FLOOR]}, [each * speed for each in FLOOR]
    )
    [change] = changes(before, after)
    assert change.factor == pytest.approx(1)
    assert not change.beyond_spread
    assert not change.beyond(0.01)


def test_what_is_no_longer_measured_is_told_of_parts_that_ran() -> None:
    before = a_run(
        {"side": FLOOR, "gone": FLOOR}, FLOOR, other={"rows": [compared("x", {"a": FLOOR}, "a")]}
    )
    after = a_run({"side": FLOOR}, FLOOR)
    assert [figure.side for figure in missing(before, after)] == ["gone"]


def test_bounds_are_of_the_limits_that_were_measured() -> None:
    """By hand, of the limits above."""

    def least(**work: float) -> float | None:
        bound = bound_of(work, LIMITS)
        return bound.ms if bound else None

    # 3 GFLOP at 100 GFLOP/s, half a gigabyte at 500 MB/s, at 800, and at 10 GB/s.
    assert least(float32=3e9) == pytest.approx(30)
    assert least(written=5e8) == pytest.approx(1000)
    assert least(read=8e8) == pytest.approx(1000)
    assert least(moved=5e8) == pytest.approx(50)
    # Ten trips of 0.02 ms; a tenth of one each where ten go side by side.
    assert least(trips=10) == pytest.approx(0.2)
    assert least(trips=0.1, moved=10) == pytest.approx(0.002)
    # Work goes on side by side: the longest is what cannot be beaten.
    assert least(float32=3e9, written=5e8) == pytest.approx(1000)
    assert least(float32=3e11, written=5e8) == pytest.approx(3000)
    assert least() is None
    assert least(bfloat16=1e9) is None, "not measured"
    assert bound_of({"float32": 3e9}, {}) is None


def test_sides_that_do_other_work_have_other_bounds() -> None:
    more = {"work": {"moved": 1e7}, "work_of": {"side": {"moved": 2e7}, "none": {}}}
    sides = {"floor": FLOOR, "side": FLOOR, "none": FLOOR}
    run = a_run({}, FLOOR) | {"parts": {"x": {"rows": [compared("a", sides, "floor", **more)]}}}
    run["parts"]["limits"] = {"rows": [{"name": "memory", "value": 10.0}]}
    bounds = [figure.bound and figure.bound.ms for figure in figures_of(run)]
    assert bounds == [pytest.approx(1), pytest.approx(2), None]


def test_few_rounds_are_not_judged_by() -> None:
    before, after = (
        a_run({"slow": [taken] * 4}, FLOOR[:4]) | {"parts": {"a": {"rows": [row]}}}
        for taken in (4.0, 8.0)
        for row in [compared("a question", {"floor": FLOOR[:4], "slow": [taken] * 4}, "floor")]
    )
    [change] = changes(before, after)
    assert change.factor == 2
    assert not change.judged
    assert not change.beyond_spread
    assert not change.beyond(0.5)
    assert [line[:2] for line in table([change])][-1] == "? "


MISSED = {"held": {"memory": False}, "targets": {"memory": "memory stays"}}
JUDGED: list[tuple[dict[str, Any], int, str]] = [
    (a_run({"slow": [4.0] * 5}, FLOOR), 0, "1 ratios were held against base; 0 are worse."),
    (a_run({"slow": [5.5] * 5}, FLOOR), 0, "0 are worse"),
    (a_run({"slow": [8.0] * 5}, FLOOR), 1, "Worse than in base by more than 50%:"),
    (a_run({"fast": [8.0] * 5}, FLOOR), 1, "No longer measured: answers, a question: slow"),
    ({"parts": {}}, 1, "no ratio is in both"),
    (
        a_run({"slow": [4.0] * 5}, FLOOR, overload={"rows": [MISSED]}),
        1,
        "A target was missed: overload: memory stays",
    ),
]


@pytest.mark.parametrize(("after", "code", "told"), JUDGED)
def test_a_gate_fails_beyond_its_margin(
    after: dict[str, Any], code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = a_run({"slow": [4.0] * 5}, FLOOR)
    assert bench._judge(before, after, Path("base"), 0.5) == code
    assert told in capsys.readouterr().out


def test_what_only_one_run_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bench._compare(a_run({"old": FLOOR}, FLOOR), a_run({"new": FLOOR}, FLOOR))
    said = capsys.readouterr().out
    assert "Only in the first:\n  answers     a question: old\n" in said
    assert "Only in the second:\n  answers     a question: new\n" in said
    bench._compare(a_run({}, FLOOR), a_run({}, FLOOR, growth={"rows": []}))
    assert "Only in the second:\n  growth      all of it\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device", "abacus"], "The device 'abacus' cannot be used here"),
        (["--json", "FILE/x.json"], "FILE cannot be made"),
        (["--margin", "-1"], "'-1' is no number from 0 on"),
        (["--margin", "nan"], "'nan' is no number from 0 on"),
        (["--check", "OTHER"], "has no figures of store."),
        (["--out", "FILE"], "FILE cannot be made"),
        (["--check", "FILE"], "FILE is no file of figures"),
        (["--compare", "FILE", "FILE", "--check", "FILE"], "--compare measures nothing"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_measured(
    tmp_path: Path, words: list[str], told: str
) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.touch()
    other.write_text(json.dumps(a_run({}, FLOOR)))
    paths = {"FILE": str(file), "OTHER": str(other)}
    words = [paths.get(word, word).replace("FILE/", f"{file}/") for word in words]
    done = run_vitscope("bench", "store", *words)
    assert done.returncode in (2, 3)
    assert told.replace("FILE", str(file)) in done.stderr
    assert "Traceback" not in done.stderr
    assert "limits" not in done.stderr


@pytest.mark.parametrize(
    ("module", "words", "told"),
    [
        ("limits", ["--device", "abacus"], "The device 'abacus' cannot be used here"),
        ("growth", ["--device", "abacus"], "The device 'abacus' cannot be used here"),
        ("store", ["--json", "nowhere/x.json"], "there is no folder nowhere to write x.json to"),
    ],
)
def test_a_benchmark_alone_tells_the_same(module: str, words: list[str], told: str) -> None:
    command = [sys.executable, "-m", f"vitscope.bench.{module}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_floors_are_no_changes() -> None:
    run = a_run({"side": FLOOR}, FLOOR)
    assert [figure.is_floor for figure in figures_of(run)] == [True, False]
    assert [change.after.side for change in changes(run, run)] == ["side"]


def test_the_command_compares_two_files(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(a_run({"slow": [4.0] * 5}, FLOOR)))
    after.write_text(json.dumps(a_run({"slow": [8.0] * 5}, FLOOR) | {"processor": "other"}))
    done = run_vitscope("bench", "--compare", str(before), str(after))
    assert done.returncode == 0, done.stderr
    assert "!   2.00  x 3.64 (3.64–4)" in done.stdout
    assert "They differ in processor: one and other." in done.stderr


def test_areas_that_are_none_are_told() -> None:
    done = run_vitscope("bench", "indexing")
    assert done.returncode == 2
    assert "'indexing' is none of index, store, query, serve, growth, peers, all" in done.stderr


def test_the_command_names_the_areas_of_the_suite() -> None:
    assert set(bench._AREAS) == {each.area for each in SUITE} - {"limits"}
    assert bench._AREAS == AREAS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "no file of figures"),
        ("[]", "no file of figures"),
        ('{"parts": []}', "no file of figures"),
        ('{"parts": {"x": {}}}', "no file of figures"),
    ],
)
def test_a_file_that_is_none_is_told_in_a_sentence(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "figures.json"
    if content is not None:
        path.write_text(content)
    done = run_vitscope("bench", "--compare", str(path), str(path))
    assert done.returncode == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr
