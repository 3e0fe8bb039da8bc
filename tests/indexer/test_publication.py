"""Death before and after every durable step of publishing and cleaning up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures
from runs import files_of, tiny

from vitscope.client.cli import main
from vitscope.indexer import work
from vitscope.indexer.errors import OutputError
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.store import publish as publish_module
from vitscope.store.verify import verify

STEPS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (Path, "replace"),
    (Path, "rename"),
    (Path, "unlink"),
    (shutil, "rmtree"),
]


class Death(BaseException):
    """What no handler of the program catches."""


class Reaper:
    """From the start of publication on, counts durable steps and dies at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.count = -1
        self._at, self._after = at, after
        for place, name in STEPS:
            patch.setattr(place, name, self._around(getattr(place, name)))
        publish = publish_module.publish

        def armed(*given: Any) -> str:
            self.count = 0
            return publish(*given)

        patch.setattr("vitscope.indexer.merge.publish", armed)

    def _around(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            mine = self.count == self._at
            if self.count >= 0:
                self.count += 1
            if mine and not self._after:
                raise Death
            result = step(*given, **named)
            if mine:
                raise Death
            return result

        return call


def options(pictures: Path, out: Path) -> Options:
    return tiny(pictures, out, top_k=2, poolings=("mean",))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_any_death_leads_to_the_same_bytes(tmp_path: Path, after: bool) -> None:
    write_pictures(tmp_path / "pictures", 6)
    index(options(tmp_path / "pictures", tmp_path / "whole"))
    whole = files_of(tmp_path / "whole")
    deaths = 0
    while True:
        out = tmp_path / f"killed{deaths}"
        with pytest.MonkeyPatch.context() as patch:
            Reaper(patch, deaths, after=after)
            try:
                index(options(tmp_path / "pictures", out))
            except Death:
                deaths += 1
            else:
                break
        # Refused where death came when all was done but the last removal.
        with suppress(OutputError):
            index(options(tmp_path / "pictures", out))
        assert files_of(out) == whole
        assert verify(out, deep=True).problems == ()
    assert deaths > 8


def test_a_run_that_loses_the_race_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pictures", 6)
    other = options(tmp_path / "pictures", tmp_path / "out")
    check = work.check_output
    calls: list[Path] = []

    def publish_in_between(out: Path, **given: bool) -> None:
        check(out, **given)
        if not calls:
            calls.append(out)
            index(other)

    monkeypatch.setattr("vitscope.indexer.run.check_output", publish_in_between)
    write_pictures(tmp_path / "more", 9)
    with pytest.raises(OutputError, match="holds a published index already"):
        index(options(tmp_path / "more", tmp_path / "out"))
    assert not (tmp_path / "out" / "building").exists()
    assert verify(tmp_path / "out", deep=True).problems == ()


def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "pictures", 2)
    line = ["index", "--model", "test_vit", "--random-weights", "--data"]
    assert main([*line, str(tmp_path / "pictures"), "--out", "/proc/vitscope"]) == 3
    [said] = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("vitscope: Writing to /proc/vitscope failed")
