"""A run from the command line: errors before anything is written, interruption and resumption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pictures import BAD, write_pictures
from runs import files_of

from vitscope.client.cli import main

INDEX = ("index", "--model", "test_vit", "--random-weights", "--img-size", "64", "--top-k", "3")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 60)
    return folder


def small(pictures: Path, out: Path) -> list[str]:
    sizes = ["--batch-size", "4", "--unit-rows", "12"]
    return [*INDEX, "--data", str(pictures), "--out", str(out), *sizes]


def test_indexes_and_says_what_it_made(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(pictures, tmp_path / "index")) == 0
    said = capsys.readouterr()
    assert "Published 000001-" in said.out
    assert "60 images, 6 layers" in said.out
    assert "images: 60/60 (100%)" in said.err
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == [
        "CURRENT",
        "generations",
        "lock",
    ]
    assert main(["verify", "--deep", str(tmp_path / "index")]) == 0


def test_one_picture_is_no_plural(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "index"
    write_pictures(tmp_path / "pictures", 1)
    line = [*INDEX, "--threads", "1", "--data", str(tmp_path / "pictures"), "--out", str(out)]
    assert main(line) == 0
    assert main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert ": 1 image, 6 layers, " in said
    assert "units       1 image, 1 thread fixed, pictures of 256 pixels" in said
    assert " 1 images" not in said


def test_equal_runs_give_equal_bytes(pictures: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(small(pictures, tmp_path / name)) == 0
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("units", [0, 1, 3, 4])
def test_a_killed_run_resumes_to_the_same_bytes(pictures: Path, tmp_path: Path, units: int) -> None:
    assert main(small(pictures, tmp_path / "whole")) == 0
    out = tmp_path / "killed"
    process = start(small(pictures, out))
    receipts = out / "building" / "units"
    while process.poll() is None:
        if receipts.is_dir() and len(list(receipts.glob("*.json"))) >= units:
            process.kill()
            break
        time.sleep(0.001)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert main(small(pictures, out)) == 0
    assert files_of(out) == files_of(tmp_path / "whole")


def test_ctrl_c_stops_with_one_line_and_can_be_resumed(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    # Many small units: a busy machine may look only seconds after the first was begun.
    line = [*INDEX, "--data", str(pictures), "--out", str(out)]
    line += ["--batch-size", "1", "--unit-rows", "1"]
    process = start(line)
    while not (out / "building" / "units").is_dir():
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert main(line) == 0
    assert main(["verify", "--deep", str(out)]) == 0


def test_an_unfinished_run_of_another_plan_is_refused_by_option(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    process = start(small(pictures, out))
    while not (out / "building" / "units").is_dir():
        time.sleep(0.002)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert main([*small(pictures, out), "--limit", "9", "--thumbnail-size", "32"]) == 3
    said = capsys.readouterr().err
    # With so few pictures a unit is no larger than their number: nothing to tell.
    assert (
        "unfinished run with --data (and --limit) of 60 pictures (not 9 pictures), "
        "--thumbnail-size 256 (not 32); run" in said
    )


def test_two_writers_are_kept_apart(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    process = start(small(pictures, out))
    while not (out / "building" / "plan.json").is_file():
        time.sleep(0.002)
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    try:
        assert main(small(pictures, out)) == 3
        assert f"being written by process {process.pid}" in capsys.readouterr().err
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait() == 0


def test_bad_files_are_listed_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 5)
    for name, data in BAD.items():
        (tmp_path / "pictures" / name).write_bytes(data)
    out = tmp_path / "index"
    assert main([*INDEX, "--data", str(tmp_path / "pictures"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "5 images" in said
    assert "No readable image, kept as invalid rows (3)" in said
    assert main(["info", str(out)]) == 0
    listed = capsys.readouterr().out
    for name in BAD:
        assert name in said
        assert name in listed


NO_POOLING = "--poolings names 'median', which is no pooling; choose from mean, max, cls."
NO_CLASS = "--poolings names 'cls', but the model has no class token; it has mean, max."
WRONG = [
    # arguments after the model, a word of the sentence
    (["--model", "no_such_vit"], "knows no model"),
    (["--model", "resnet18"], "no transformer feed-forward blocks"),
    (["--model", "test_vit", "--img-size", "65"], "such as 64"),
    # 15 patches of 16 pixels: 255 can be divided by their number and not by their size.
    (["--model", "test_vit", "--img-size", "255"], "such as 256"),
    (["--model", "test_vit", "--img-size", "-3"], "--img-size"),
    (["--model", "convit_tiny", "--img-size", "64x96"], "a forward of 64x96 pixels fails"),
    (["--model", "twins_svt_small", "--img-size", "50"], "cannot be made for 50x50 pixels"),
    (["--model", "test_vit", "--top-k", "0"], "--top-k must be at least 1"),
    (["--model", "test_vit", "--batch-size", "0"], "--batch-size"),
    (["--model", "test_vit", "--batch-size", "5", "--unit-rows", "8"], "multiple of"),
    (["--model", "test_vit", "--retain-all", "blocks.9.mlp"], "is no layer of the model"),
    (["--model", "test_vit", "--limit", "0"], "--limit"),
    (["--model", "test_vit", "--thumbnail-size", "-1"], "--thumbnail-size"),
    (["--model", "test_vit", "--dtype", "int8"], "--dtype must be one of"),
    (["--model", "test_vit", "--device", "abacus"], "cannot be used here (Expected one of cpu"),
    (["--model", "test_vit", "--poolings", "mean,median"], NO_POOLING),
    (["--model", "test_vit", "--poolings", "median"], NO_POOLING),
    (["--model", "test_vit", "--poolings", "max"], "must have mean among them"),
    (["--model", "test_vit2", "--poolings", "mean,cls"], NO_CLASS),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_wrong_arguments_write_nothing(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    words: str,
) -> None:
    out = tmp_path / "index"
    line = ["index", *arguments, "--random-weights", "--data", str(pictures), "--out", str(out)]
    assert main(line) == 3
    check_sentence(capsys.readouterr().err, words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("data", "words"), [("none", "no folder of pictures"), ("empty", "holds no picture")]
)
def test_no_pictures_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "index"
    assert main([*INDEX, "--data", str(tmp_path / data), "--out", str(out)]) == 3
    check_sentence(capsys.readouterr().err, words)
    assert not out.exists()


def test_foreign_output_is_left_alone(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "project" / "building").mkdir(parents=True)
    (tmp_path / "project" / "building" / "thesis.txt").write_text("precious")
    (tmp_path / "family" / "generations").mkdir(parents=True)
    (tmp_path / "lost" / "generations" / "000001-0123456789abcdef").mkdir(parents=True)
    for out, words in (
        ("lost", "lost is missing; restore it from a copy"),
        ("mine", "holds something else"),
        ("file", "is a file"),
        ("project", "holds something else"),
        ("family", "holds something else"),
        ("no/such", "does not exist"),
    ):
        assert main([*INDEX, "--data", str(pictures), "--out", str(tmp_path / out)]) == 3
        check_sentence(capsys.readouterr().err, words)
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"precious"}
    assert (tmp_path / "file").read_text() == "precious"
    assert files_of(tmp_path / "project") == {"building/thesis.txt": b"precious"}
    assert list((tmp_path / "family").iterdir()) == [tmp_path / "family" / "generations"]


def test_a_published_index_is_left_alone(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    assert main(small(pictures, out)) == 0
    before = files_of(out)
    capsys.readouterr()
    assert main(small(pictures, out)) == 3
    check_sentence(capsys.readouterr().err, "holds a published index already")
    assert files_of(out) == before


def check_sentence(said: str, words: str) -> None:
    [line] = said.strip().splitlines()
    assert line.startswith("vitscope: ")
    assert words in line
    assert line.endswith((".", "?"))
    assert ". " not in line.removesuffix("?")
    assert "Traceback" not in said


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    script = "import sys; from vitscope.client.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
