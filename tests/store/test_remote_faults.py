"""Indexes in a bucket: whole or not there, whatever was killed, damaged or done beside."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
from buckets import BucketServer, Relay
from processes import WRITER, Holder
from remotes import LARGE, bucket, check_pulled, objects, published
from runs import files_of
from started import VITSCOPE

from vitscope.client.cli import main
from vitscope.store.errors import DamagedIndexError, NotAnIndexError
from vitscope.store.generation import generation_name, open_generation
from vitscope.store.lock import BusyIndexError
from vitscope.store.prune import UnfinishedIndexError
from vitscope.store.pull import pull
from vitscope.store.push import push
from vitscope.store.remote import OtherGenerationError

SCORES = "arrays.zarr/layers/blocks.0.mlp/scores_mean"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(
    bucket_server: BucketServer,
    arguments: list[str],
    end: Callable[[str, str, int], bool],
    signum: signal.Signals,
) -> tuple[int, str]:
    """Run `vitscope` and send it a signal before the first request for which `end` is true.

    `end` is given method, path and how many such there were before. That request gets no answer.
    """
    seen: dict[str, int] = {}
    hit = threading.Event()
    started: list[subprocess.Popen[str]] = []
    begun = threading.Event()

    def told(method: str, path: str) -> bool:
        begun.wait()
        number = seen[method] = seen.get(method, -1) + 1
        if not hit.is_set() and end(method, path, number):
            hit.set()
            started[0].send_signal(signum)
            started[0].wait()
        return not hit.is_set()

    with Relay(bucket_server, told) as relay:
        started.append(
            subprocess.Popen(
                [str(VITSCOPE), *arguments],
                env={**os.environ, "AWS_ENDPOINT_URL": relay.url},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        begun.set()
        errors = started[0].communicate(timeout=60)[1]
    assert hit.is_set(), errors
    return started[0].returncode, errors


def test_killed_pushes_go_on_and_readers_see_one_generation(
    made: Path, grown: Path, url: str, tmp_path: Path, bucket_server: BucketServer
) -> None:
    push(made, url)
    before = objects(url)
    index, name = grown, open_generation(grown).name
    sent = []
    for end in (
        lambda method, path, number: method == "PUT" and number == 0,
        lambda method, path, number: "partNumber=2" in path,
        lambda method, path, number: method == "PUT" and number == 30,
        lambda method, path, number: method == "PUT" and path.endswith("manifest.json"),
        lambda method, path, number: method == "PUT" and path.endswith("CURRENT"),
    ):
        code, _ = cut(bucket_server, ["push", str(index), url], end, signal.SIGKILL)
        assert code == -signal.SIGKILL
        there = objects(url)
        assert before.items() <= there.items()
        mine = {path for path in there if name in path}
        assert {path: there[path] for path in mine}.items() <= published(index).items()
        sent.append(len(mine))
    assert sent == sorted(sent)
    assert sent[2] >= 20
    assert push(index, url).sent == 0
    check_pulled(url, tmp_path / "out", index)


def test_killed_pulls_go_on_and_readers_see_one_generation(
    grown: Path, url: str, tmp_path: Path, bucket_server: BucketServer
) -> None:
    index = grown
    push(index, url)
    out = tmp_path / "out"
    # The first is CURRENT, the second the manifest.
    for number in (1, 2, 7, 60):

        def end(method: str, path: str, place: int, number: int = number) -> bool:
            return method == "GET" and place == number

        code, _ = cut(bucket_server, ["pull", url, str(out)], end, signal.SIGKILL)
        assert code == -signal.SIGKILL
        with pytest.raises(NotAnIndexError):
            open_generation(out)
    pulled = pull(url, out)
    assert 0 < pulled.received < pulled.files - 40
    assert published(out) == published(index)
    # As a kill before the last step leaves it.
    (out / "CURRENT").unlink()
    assert pull(url, out).received == 0
    assert published(out) == published(index)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_signal_ends_it_in_the_middle_of_a_request(
    made: Path,
    url: str,
    tmp_path: Path,
    bucket_server: BucketServer,
    command: str,
    signum: signal.Signals,
    exit_code: int,
) -> None:
    if command == "pull":
        push(made, url)
    where = [str(made), url] if command == "push" else [url, str(tmp_path / "out")]
    method = "PUT" if command == "push" else "GET"
    code, errors = cut(
        bucket_server,
        [command, *where],
        lambda how, path, number: how == method and number == 4,
        signum,
    )
    assert code == exit_code
    assert errors.splitlines()[-1] == "vitscope: Stopped; the same command goes on from here."
    assert "Traceback" not in errors
    assert main([command, *where]) == 0


# --- Damaged


@pytest.mark.parametrize("name", [f"{SCORES}/c/0/0", LARGE])
@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
def test_a_damaged_file_is_not_pushed(
    made: Path, grown: Path, url: str, tmp_path: Path, name: str, how: str
) -> None:
    push(made, url)
    index = Path(shutil.copytree(grown, tmp_path / "index"))
    generation = open_generation(index)
    file = generation.path / name
    if how == "flipped":
        flip(file)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(DamagedIndexError, match=f"File {name} of the index "):
        push(index, url)
    after = objects(url)
    assert after["CURRENT"] == (made / "CURRENT").read_bytes()
    assert not after.keys() & {
        f"generations/{generation.name}/{path}" for path in (name, "manifest.json")
    }


@pytest.mark.parametrize("how", ["flipped", "cut", "lost"])
@pytest.mark.parametrize("name", [f"{SCORES}/c/0/0", LARGE])
def test_a_damaged_object_is_not_pulled_and_mended_by_a_push(
    grown: Path, url: str, tmp_path: Path, name: str, how: str
) -> None:
    index, generation = grown, open_generation(grown).name
    push(index, url)
    path = f"generations/{generation}/{name}"
    data = bytearray((index / path).read_bytes())
    data[100] ^= 1
    store = bucket(url)
    if how == "lost":
        obstore.delete(store, path)
    else:
        # Put by another program, as any store allows.
        obstore.put(store, path, bytes(data[:-1] if how == "cut" else data))
    with pytest.raises(DamagedIndexError, match=f"{url}/{path} is "):
        pull(url, tmp_path / "out")
    with pytest.raises(NotAnIndexError):
        open_generation(tmp_path / "out")
    assert push(index, url).sent == 1
    check_pulled(url, tmp_path / "out", index)


def test_a_damaged_object_that_says_it_is_sound_is_not_pulled(
    made: Path, url: str, tmp_path: Path
) -> None:
    push(made, url)
    name = open_generation(made).name
    record = open_generation(made).manifest.files[f"{SCORES}/zarr.json"]
    path = f"generations/{name}/{SCORES}/zarr.json"
    obstore.put(bucket(url), path, bytes(record.bytes), attributes={"blake3": record.blake3})
    with pytest.raises(DamagedIndexError, match=f"{path} is not what was published"):
        pull(url, tmp_path / "out")


def test_a_damaged_manifest_or_pointer_is_named(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    path = f"generations/{open_generation(made).name}/manifest.json"
    obstore.put(bucket(url), path, (made / path).read_bytes().replace(b"mlp", b"mlq"))
    with pytest.raises(DamagedIndexError, match=f"{url}/{path} is not what was published"):
        pull(url, tmp_path / "out")
    push(made, url)
    check_pulled(url, tmp_path / "out", made)
    obstore.put(bucket(url), "CURRENT", b"../../etc\n")
    for attempt in (lambda: pull(url, tmp_path / "out"), lambda: push(made, url)):
        with pytest.raises(DamagedIndexError, match=f"{url}/CURRENT is damaged"):
            attempt()


@pytest.mark.parametrize("name", ["../../../bad", "/tmp/bad", "a/./b", "manifest.json", "a\0b"])
def test_a_name_that_leads_out_of_the_index_is_refused(
    made: Path, url: str, tmp_path: Path, name: str
) -> None:
    manifest = open_generation(made).manifest
    files = {name: next(iter(manifest.files.values()))}
    data = replace(manifest, files=files).to_json()
    generation = generation_name(1, data)
    obstore.put(bucket(url), f"generations/{generation}/manifest.json", data)
    obstore.put(bucket(url), "CURRENT", f"{generation}\n".encode())
    with pytest.raises(DamagedIndexError, match="is not what was published"):
        pull(url, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- Several at a time


@contextmanager
def meeting(
    bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]
) -> Iterator[None]:
    """Inside, `other` is done just before the first pointer is put."""
    ours = os.environ["AWS_ENDPOINT_URL"]

    def told(method: str, path: str) -> bool:
        if method == "PUT" and path.endswith("CURRENT"):
            monkeypatch.setenv("AWS_ENDPOINT_URL", ours)
            other()
        return True

    with Relay(bucket_server, told) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.url)
        yield
    monkeypatch.setenv("AWS_ENDPOINT_URL", ours)


@pytest.mark.parametrize("first", [True, False])
def test_of_two_pushers_the_later_one_is_told(
    made: Path,
    grown: Path,
    rival: Path,
    url: str,
    tmp_path: Path,
    bucket_server: BucketServer,
    monkeypatch: pytest.MonkeyPatch,
    first: bool,
) -> None:
    """Where nothing was published before, and on top of what both know."""
    if not first:
        push(made, url)
    mine, others = open_generation(grown).name, open_generation(rival).name
    with (
        meeting(bucket_server, monkeypatch, lambda: push(rival, url)),
        pytest.raises(OtherGenerationError, match=f"^{others} was published at {url} meanwhile"),
    ):
        push(grown, url)
    with pytest.raises(OtherGenerationError, match=f"publishes {others}, which is not among"):
        push(grown, url)
    check_pulled(url, tmp_path / "out", rival)
    push(grown, url, replace=True)
    assert objects(url)["CURRENT"] == f"{mine}\n".encode()


def test_two_pushes_of_the_same_agree(
    made: Path, url: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with meeting(bucket_server, monkeypatch, lambda: push(made, url)):
        push(made, url)
    assert objects(url) == files_of(made)


def test_a_pull_does_not_take_away_what_was_never_pushed(
    made: Path, grown: Path, rival: Path, url: str, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(rival, tmp_path / "out"))
    own, theirs = open_generation(rival).name, open_generation(grown).name
    push(grown, url)
    with pytest.raises(OtherGenerationError, match=f"{out} publishes {own}, which is not among"):
        pull(url, out)
    assert open_generation(out).name == own
    assert pull(url, out, replace=True).generation == theirs
    assert published(out) == published(grown)


def test_who_writes_the_index_or_has_not_finished_it_keeps_it(
    made: Path, url: str, tmp_path: Path
) -> None:
    push(made, url)
    out = tmp_path / "out"
    (out / "building").mkdir(parents=True)
    (out / "building" / "plan.json").write_text("{}")
    with pytest.raises(UnfinishedIndexError):
        pull(url, out)
    shutil.rmtree(out / "building")
    with Holder(WRITER, out) as writer, pytest.raises(BusyIndexError, match=str(writer.pid)):
        pull(url, out)
    check_pulled(url, out, made)
