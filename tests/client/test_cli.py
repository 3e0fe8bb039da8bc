"""How `vitscope` finds its commands and reports what went wrong."""

import argparse
import subprocess
import sys
import types
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from vitscope.client import cli
from vitscope.client.cli import main

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def vitscope(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitscope.client.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def install(patch: Patch, error: BaseException | None = None, extra: str | None = None) -> None:
    """Make `work` the only command: it prints, then raises `error`."""
    module = types.ModuleType("only_command", "Do the work.\n\nAt length.")

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--code", type=int, default=0)

    def run(args: argparse.Namespace) -> int:
        if error is not None:
            raise error
        code: int = args.code
        return code

    vars(module).update(add_arguments=add_arguments, run=run)
    if extra is not None:
        vars(module).update(EXTRA=extra)
    patch.setitem(sys.modules, module.__name__, module)
    points = EntryPoints([EntryPoint("work", module.__name__, cli.GROUP)])
    patch.setattr(cli, "entry_points", lambda group: points.select(group=group))


class StoreLikeError(Exception):
    exit_code = 4


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    run = vitscope("--help")
    assert run.returncode == 0
    for word in ("top-images", "gallery", "verify", "serve", "130  interrupted"):
        assert word in run.stdout


def test_no_argument_is_wrong_usage() -> None:
    run = vitscope()
    assert (run.returncode, run.stdout) == (2, "")
    assert "usage: vitscope" in run.stderr


def test_version() -> None:
    run = vitscope("--version")
    assert run.returncode == 0
    assert run.stdout.startswith("vitscope 0.")


def test_an_unknown_command_suggests_close_ones() -> None:
    run = vitscope("top-image", "--layer", "x")
    assert run.returncode == 2
    assert run.stderr.startswith("vitscope: There is no command 'top-image'; did you mean")
    assert "top-images" in run.stderr
    assert run.stderr.endswith("?\n")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["xyzzy", "--colour"])
def test_an_unknown_first_word_is_one_sentence(word: str, capsys: Captured) -> None:
    assert main([word]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vitscope: There is no ")
    assert err.endswith("see `vitscope --help`.\n")


def test_a_closed_pipe_is_quiet() -> None:
    line = f"'{sys.executable}' -m vitscope.client.cli --help | true"
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=60
    )
    assert run.stderr == ""
    assert run.returncode in (0, cli.OUTPUT_CLOSED)


@pytest.mark.parametrize("line", [["top-images"], ["top-images", "--channel", "x"], ["--colour"]])
def test_wrong_usage(line: list[str], capsys: Captured) -> None:
    assert main(line) == 2
    assert capsys.readouterr().out == ""


def test_a_command_has_its_help(capsys: Captured) -> None:
    assert main(["top-images", "--help"]) == 0
    assert "--layer" in capsys.readouterr().out


def test_the_code_of_a_command_is_returned(monkeypatch: Patch) -> None:
    install(monkeypatch)
    assert main(["work", "--code", "7"]) == 7


def test_only_the_first_line_of_a_command_is_its_help(monkeypatch: Patch, capsys: Captured) -> None:
    install(monkeypatch)
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "  work  do the work\n" in out
    assert "At length" not in out


def test_a_command_that_cannot_be_loaded_does_not_hide_the_others(
    monkeypatch: Patch, capsys: Captured
) -> None:
    points = EntryPoints([EntryPoint("gone", "vitscope_gone", cli.GROUP)])
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    assert main(["--help"]) == 0
    assert "gone  (cannot be loaded: No module named 'vitscope_gone')" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError):
        main(["gone"])


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (StoreLikeError("The index is damaged."), 4, "The index is damaged."),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (SystemExit("No way."), 2, "No way."),
        (
            ModuleNotFoundError("x", name="faiss"),
            3,
            "work needs faiss; install it with `pip install 'vitscope[faiss-cpu]'` "
            "(or vitscope[faiss-gpu] where there is a CUDA device).",
        ),
        (
            ModuleNotFoundError("x", name="torch.nn"),
            3,
            "work needs torch; install it with `pip install 'vitscope[indexer]'`.",
        ),
        (
            ModuleNotFoundError("x", name="tensorstore"),
            3,
            "work needs tensorstore; install it with `pip install 'vitscope[store]'`.",
        ),
    ],
)
def test_errors_that_are_meant(
    error: BaseException, code: int, sentence: str, monkeypatch: Patch, capsys: Captured
) -> None:
    install(monkeypatch, error)
    assert main(["work"]) == code
    assert capsys.readouterr().err == f"vitscope: {sentence}\n"


def test_a_commands_own_extra_is_named(monkeypatch: Patch, capsys: Captured) -> None:
    install(monkeypatch, ModuleNotFoundError("x", name="tensorstore"), extra="server")
    assert main(["work"]) == 3
    assert "pip install 'vitscope[server]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), ModuleNotFoundError("x", name="vitscope.store.typo")]
)
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: Patch) -> None:
    install(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["work"])
