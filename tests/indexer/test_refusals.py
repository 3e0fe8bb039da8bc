"""A folder that may not be written to: its name, the reason and the mend in one sentence."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Children, Fault
from permissions import give_away, locked, powerless, public_folder
from pictures import write_pictures
from runs import files_of
from seccomp import obstacle

from vitscope.client.cli import main

MEND = "mend that and run the same command again to go on."


def line(pictures: Path, out: Path) -> list[str]:
    model = ["--model", "test_vit", "--random-weights", "--img-size", "32", "--top-k", "3"]
    return ["index", *model, "--threads", "1", "--data", str(pictures), "--out", str(out)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A public folder with pictures, with more of them, and with an index of the first."""
    with public_folder() as folder:
        write_pictures(folder / "pictures", 3)
        write_pictures(folder / "more", 5)
        assert main(line(folder / "pictures", folder / "index")) == 0
        yield folder


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that cannot write says, but for the notices before it."""
    capsys.readouterr()
    assert main(arguments) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    return said.removeprefix("vitscope: ")


def test_a_folder_that_nothing_can_be_made_in(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "mine" / "index"
    out.parent.mkdir()
    with locked(out.parent, 0o555):
        said = refusal(line(folder / "pictures", out), capsys)
    assert said == f"Writing to {out} failed (Permission denied); {MEND}"


@pytest.mark.parametrize("part", ["lock", "building"])
def test_an_index_of_another_user(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    out = folder / "index"
    before = files_of(out)
    if part == "building":
        give_away(out)
        out.chmod(0o555)
    else:
        (out / "lock").chmod(0o444)
    arguments = [*line(folder / "more", out), "--append"]
    with powerless():
        said = refusal(arguments, capsys)
    assert said == f"Writing to {out} failed (Permission denied: {part}); {MEND}"
    assert files_of(out) == before
    assert main(arguments) == 0


def test_the_demo_in_such_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "demo"
    out.mkdir()
    with locked(out, 0o555):
        said = refusal(["demo", "--count", "64", "--out", str(out)], capsys)
    assert said == f"Writing to {out / 'scenes'} failed (Permission denied); {MEND}"


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as server:
        yield server


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(("kind", "part"), [("create", ": lock"), ("sync", "")])
def test_the_reason_is_named(
    children: Children, tmp_path: Path, number: int, kind: str, part: str
) -> None:
    if why := obstacle():
        pytest.skip(why)
    write_pictures(tmp_path / "pictures", 3)
    out = tmp_path / "index"
    fault = Fault(kind=kind, after=0.0, error=number)
    child = children.start(line(tmp_path / "pictures", out), fault=fault)
    assert child.wait() == 3
    assert child.errors().splitlines() == [
        f"vitscope: Writing to {out} failed ({os.strerror(number)}{part}); {MEND}"
    ]


LIMITED = """
import json, resource, sys
from vitscope.client.cli import main
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for size, arguments in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    print("exit code", main(arguments), file=sys.stderr)
"""


def test_whichever_file_grows_too_large_the_reason_is_named(folder: Path) -> None:
    """As on a file system with a limit, or under `ulimit -f`."""
    sizes = {len(data) for data in files_of(folder / "index").values()}
    limits = [size - 1 for size in sorted(sizes, reverse=True) if size > 100][::2]
    runs = [(size, line(folder / "pictures", folder / f"{size}")) for size in limits]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(runs)], capture_output=True, text=True
    )
    ours = ("vitscope: ", "exit code ")
    said = [each for each in done.stderr.splitlines() if each.startswith(ours)]
    assert len(said) == 2 * len(limits), done.stderr
    assert "Traceback" not in done.stderr
    for size, sentence, code in zip(limits, said[::2], said[1::2], strict=True):
        assert code == "exit code 3"
        assert sentence.startswith(f"vitscope: Writing to {folder / str(size)} failed (")
        assert "File too large" in sentence
        assert sentence.endswith(f"); {MEND}")
