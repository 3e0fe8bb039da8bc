"""Pruning: what goes, what stays, and that a death or another process spoils nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import seccomp
from permissions import give_away, powerless, public_folder
from processes import NFS_READER, READER, WRITER, Holder
from started import run_vitscope
from synthetic import Synthetic, build

from vitscope.client.cli import main
from vitscope.store.errors import DamagedIndexError, NotAnIndexError, NotWrittenError
from vitscope.store.files import tree_files
from vitscope.store.generation import generation_names
from vitscope.store.lock import BusyIndexError, NoLocksError
from vitscope.store.prune import UnfinishedIndexError, prune
from vitscope.store.verify import verify


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """An index of four generations."""
    path = tmp_path_factory.mktemp("prune") / "index"
    return [build(path, seed=seed, rows=4) for seed in range(4)][-1]


@pytest.fixture
def index(four: Synthetic, tmp_path: Path) -> Path:
    return Path(shutil.copytree(four.path, tmp_path / "index"))


def generations(index: Path) -> list[str]:
    return sorted(os.listdir(index / "generations"))


def size(folder: Path) -> int:
    return sum((folder / path).stat().st_size for path in tree_files(folder))


def check(index: Path, names: list[str]) -> None:
    """These and nothing else are there, and the published one is sound."""
    assert generations(index) == names
    assert verify(index, deep=True).problems == ()
    assert verify(index).generation == names[-1]


def test_all_older_generations_go(index: Path) -> None:
    *older, current = generations(index)
    before = size(index)
    result = prune(index)
    assert (result.generation, result.removed) == (current, tuple(older))
    assert (result.kept, result.in_use) == ((), ())
    assert result.freed_bytes == before - size(index)
    check(index, [current])
    assert prune(index).removed == ()


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 9])
def test_the_newest_of_the_older_ones_are_kept(index: Path, keep: int) -> None:
    names = generations(index)
    gone = max(0, 3 - keep)
    dry = prune(index, keep=keep, dry_run=True)
    assert generations(index) == names
    result = prune(index, keep=keep)
    assert dry == result
    assert (result.removed, result.kept) == (tuple(names[:gone]), tuple(names[gone:-1]))
    check(index, names[gone:])


def test_a_newer_generation_than_the_published_one_stays(index: Path) -> None:
    names = generations(index)
    # As a death before the pointer moves leaves it.
    (index / "CURRENT").write_text(f"{names[2]}\n")
    assert prune(index).removed == tuple(names[:2])
    assert generations(index) == names[2:]


def test_a_generation_that_a_process_reads_stays(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, current = generations(index)
    with Holder(READER, index / "generations" / second / "manifest.json"):
        assert main(["prune", str(index)]) == 0
        assert f"Generation {second} is in use and stays" in capsys.readouterr().out
        check(index, [second, current])
        assert verify_alone(index, second) == []
        assert prune(index).in_use == (second,)
    assert prune(index).removed == (second,)
    check(index, [current])
    assert first < second < third


def verify_alone(index: Path, name: str) -> list[str]:
    """The problems of an older generation; in a process of its own, so that nothing stays open."""
    pointer = (index / "CURRENT").read_bytes()
    (index / "CURRENT").write_text(f"{name}\n")
    body = json.loads(run_vitscope("verify", "--deep", "--json", index).stdout)
    (index / "CURRENT").write_bytes(pointer)
    assert body["generation"] == name
    problems: list[str] = body["problems"]
    return problems


def test_shared_files_are_freed_with_their_last_generation(index: Path) -> None:
    first, second, third, current = (index / "generations" / name for name in generations(index))
    both, lone = size(first) + size(second), size(third)
    # One file in the oldest and the published, one in the two oldest, one in the next pair.
    for source, target, path in (
        (first, current, "arrays.zarr/rows/label/zarr.json"),
        (first, second, "arrays.zarr/rows/key/zarr.json"),
        (second, third, "arrays.zarr/rows/bytes/zarr.json"),
    ):
        assert (source / path).read_bytes() == (target / path).read_bytes()
        (target / path).unlink()
        os.link(source / path, target / path)
    label, key, length = (
        (first / f"arrays.zarr/rows/{name}/zarr.json").stat().st_size
        for name in ("label", "key", "bytes")
    )
    dry = prune(index, keep=1, dry_run=True)
    # Counted twice above, though it lies on the disk once: the file of the two oldest.
    expected = both - label - key - length
    assert (dry.freed_bytes, prune(index, keep=1).freed_bytes) == (expected, expected)
    assert prune(index).freed_bytes == lone
    check(index, [current.name])


def test_an_index_that_is_written_is_left_alone(index: Path) -> None:
    names = generations(index)
    with (
        Holder(WRITER, index) as writer,
        pytest.raises(BusyIndexError, match=f"process {writer.pid};"),
    ):
        prune(index)
    check(index, names)


def test_an_unfinished_run_keeps_everything(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = generations(index)
    (index / "building").mkdir()
    (index / "building" / "plan.json").write_text("{}")
    with pytest.raises(UnfinishedIndexError, match="finish it"):
        prune(index)
    assert main(["prune", str(index)]) == 4
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    check(index, names)


DYING = """
import os, shutil
from pathlib import Path
from vitscope.store import prune
real = shutil.rmtree
def die(path):
    (path / "manifest.json").unlink()
    os._exit(9)
shutil.rmtree = die
prune.prune(Path(sys.argv[1]), keep=2)
"""


def test_a_death_in_the_middle_leaves_a_sound_index_and_is_swept(index: Path) -> None:
    first, *others = generations(index)
    before = size(index)
    with pytest.raises(RuntimeError, match="before it was ready"):
        Holder(DYING, index)
    hidden = f".{first}.removed"
    check(index, [hidden, *others])
    assert generation_names(index / "generations") == others
    left = size(index / "generations" / hidden)
    assert 0 < left < before
    assert prune(index, keep=2, dry_run=True).freed_bytes == left
    assert generations(index) == [hidden, *others]
    result = prune(index, keep=2)
    assert (result.removed, result.freed_bytes) == ((), left)
    check(index, others)


def test_what_is_not_ours_stays(index: Path) -> None:
    folder = index / "generations"
    for name in (".DS_Store", "backup", ".old.removed"):
        (folder / name).mkdir()
    prune(index)
    assert {".DS_Store", "backup", ".old.removed"} < set(generations(index))


def test_while_the_published_one_cannot_be_opened_all_stay(index: Path) -> None:
    names = generations(index)
    (index / "generations" / names[-1] / "manifest.json").write_bytes(b"{}")
    with pytest.raises(DamagedIndexError):
        prune(index)
    assert generations(index) == names


def test_an_older_generation_without_a_manifest_goes(index: Path) -> None:
    first = generations(index)[0]
    (index / "generations" / first / "manifest.json").unlink()
    assert first in prune(index).removed


def test_a_disk_that_refuses_is_said_in_one_sentence(index: Path) -> None:
    (index / "lock").mkdir()
    with pytest.raises(NotWrittenError) as caught:
        prune(index)
    assert str(caught.value) == (
        f"{index} cannot be pruned: Is a directory ({index / 'lock'}); mend that and prune it "
        "again."
    )


def test_over_nfs_what_is_read_stays_and_all_else_goes(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, current = generations(index)
    # What NFS makes of it: exclusive ones are for files that are open for writing.
    monkeypatch.setattr("fcntl.flock", fcntl.lockf)
    with Holder(NFS_READER, index / "generations" / second / "manifest.json"):
        result = prune(index)
    assert (result.removed, result.in_use) == ((first, third), (second,))
    check(index, [second, current])


def test_read_only_manifests_are_pruned_unless_over_nfs(four: Synthetic) -> None:
    with public_folder() as folder:
        index = give_away(Path(shutil.copytree(four.path, folder / "index")))
        names = generations(index)
        for path in index.glob("generations/*/manifest.json"):
            path.chmod(0o444)
        with powerless():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fcntl.flock", fcntl.lockf)
                with pytest.raises(NoLocksError) as caught:
                    prune(index)
            assert str(caught.value) == (
                f"{index / 'generations' / names[0] / 'manifest.json'} may not be written, and "
                "its file system locks no such file; give it write permission and run the same "
                "command again."
            )
            check(index, names)
            assert prune(index).removed == tuple(names[:-1])


LOCKLESS = """
import sys, seccomp
from vitscope.client.cli import main
seccomp.install(seccomp.program("flock", int(sys.argv[1])))
sys.exit(main(["prune", sys.argv[2]]))
"""


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_all_stay(index: Path, number: int) -> None:
    if why := seccomp.obstacle():
        pytest.skip(why)
    names = generations(index)
    done = subprocess.run(
        [sys.executable, "-c", LOCKLESS, str(number), index],
        env={**os.environ, "PYTHONPATH": str(Path(seccomp.__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"vitscope: The file system of {index / 'lock'} has no locks ({os.strerror(number)}), "
        "which keep the writers and readers of an index apart; mount it with locks, or keep the "
        "index on another.\n"
    )
    check(index, names)


def test_what_is_no_index_cannot_be_pruned(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NotAnIndexError):
            prune(path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_what_it_did(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third, current = generations(index)
    assert main(["prune", str(index), "--keep", "1", "--dry-run", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body == {
        "generation": current,
        "removed": [first, second],
        "kept": [third],
        "in_use": [],
        "freed_bytes": size(index / "generations" / first) + size(index / "generations" / second),
        "dry_run": True,
    }
    assert main(["prune", str(index), "--dry-run"]) == 0
    assert f"Generation {first} would be removed." in capsys.readouterr().out
    assert main(["prune", str(index), "--keep", "2"]) == 0
    text = capsys.readouterr().out
    assert f"Generation {first} is removed.\n" in text
    assert f"Generation {current} is the published one; " in text
    assert main(["prune", str(index), "--keep", "-1"]) == 2
    assert "is not a number of generations" in capsys.readouterr().err
