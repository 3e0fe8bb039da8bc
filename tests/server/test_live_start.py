"""What keeps a server from starting with a live model, and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from lives import OTHER, LiveIndex, analyze, map_of, values_of
from pictures import jpeg, noise
from safetensors.torch import load_file, save_file
from server.refusals import refused
from sources import Item, write_tars
from started import ServerProcess, run_vitscope

from vitscope.server.app import load_live
from vitscope.server.errors import StartError
from vitscope.server.liveoptions import LiveOptions
from vitscope.store.generation import Generation, open_generation
from vitscope.store.manifest import Manifest
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]


def opened(*paths: Path) -> dict[str, Generation]:
    return {path.name: open_generation(path) for path in paths}


def start_error(paths: Path | list[Path], **options: Any) -> str:
    """Why a server of this process would not start."""
    indexes = opened(*(paths if isinstance(paths, list) else [paths]))
    with pytest.raises(StartError) as caught:
        load_live(indexes, LiveOptions(**options), indexes)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_a_server_that_does_not_start_says_why(live: LiveIndex) -> None:
    for arguments, word in (
        (["--live"], "give it with --checkpoint FILE."),
        (["--data", live.pictures], "--data is for the live model; give --live too."),
    ):
        run = run_vitscope("serve", live.path, *arguments, "--listen", "127.0.0.1:0")
        assert run.returncode == 6
        assert run.stdout == ""
        assert run.stderr.startswith("vitscope: ")
        assert run.stderr.endswith(f"{word}\n")


def test_what_keeps_a_server_from_starting(live: LiveIndex, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    weights = load_file(live.checkpoint)
    weights["norm.bias"] += 1
    save_file(weights, other)
    file, checkpoint = str(live.checkpoint), [str(live.checkpoint)]
    error = start_error(live.path, checkpoints=[str(other)])
    assert "weights at hand are not those" in error
    assert "--checkpoint FILE" in error
    error = start_error(live.path, checkpoints=[str(tmp_path / "none.pth")])
    assert "There is no checkpoint file" in error
    assert "--device" in start_error(live.path, checkpoints=checkpoint, device="abacus")
    assert "--threads" in start_error(live.path, checkpoints=checkpoint, threads=0)
    assert "--split" in start_error(live.path, checkpoints=checkpoint, splits=["train"])
    assert "given twice" in start_error(live.path, checkpoints=[file, file])
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(live.checkpoint.read_bytes()[:1000])
    assert "cannot be loaded" in start_error(live.path, checkpoints=[str(damaged)])


CHANGES: dict[str, Callable[[Manifest], Manifest]] = {
    "transform": lambda manifest: replace(
        manifest,
        model=replace(manifest.model, transform=(*manifest.model.transform[:-1], "Flip()")),
    ),
    "exif": lambda manifest: replace(manifest, model=replace(manifest.model, exif="applied")),
    "token layouts": lambda manifest: replace(
        manifest,
        layers=(
            *manifest.layers[:-1],
            replace(
                manifest.layers[-1], tokens=replace(manifest.layers[-1].tokens, prefix=("reg",))
            ),
        ),
    ),
    "other layers": lambda manifest: replace(manifest, layers=manifest.layers[:-1]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_made_otherwise(live: LiveIndex, name: str) -> None:
    """As by another version of timm: the manifest tells of what this one does not do."""
    [(index, generation)] = opened(live.path).items()
    generation.manifest = CHANGES[name](generation.manifest)
    options = LiveOptions(checkpoints=[str(live.checkpoint)])
    with pytest.raises(StartError, match=name):
        load_live([index], options, {index: generation})


def test_other_pictures_than_were_indexed(live: LiveIndex, tmp_path: Path) -> None:
    def error(data: Path) -> str:
        return start_error(live.path, checkpoints=[str(live.checkpoint)], data=[str(data)])

    fewer = Path(shutil.copytree(live.pictures, tmp_path / "fewer"))
    lost = fewer / live.files[live.good_rows[1]].relative_to(live.pictures)
    data = lost.read_bytes()
    lost.write_bytes(data + b"\0")
    assert f"row {live.good_rows[1]} " in error(fewer)
    assert f"has {len(data) + 1} bytes" in error(fewer)
    lost.unlink()
    assert "is not there" in error(fewer)
    assert "There is no folder" in error(tmp_path / "none")
    lost.write_bytes(data)
    shards = write_tars(tmp_path / "shards", [Item("a.jpg", data, "a")], 1)
    assert "is not there" in error(shards)


def test_more_pictures_than_were_indexed_are_no_harm(
    live: LiveIndex, serve: Serve, tmp_path: Path
) -> None:
    """Rows are found by their keys, in whatever order the pictures come."""
    more = Path(shutil.copytree(live.pictures, tmp_path / "more"))
    (more / "0.jpg").write_bytes(jpeg(noise(500)))
    options = (*live.options[:4], str(more))
    with grpc.insecure_channel(serve(live.path, options=options).address) as channel:
        grid = pb.PatchMapGrid(layer=OTHER, rows=live.good_rows, channels=[4])
        request = pb.GetPatchMapsRequest(grids=[grid])
        for reply in ActivationServiceStub(channel).GetPatchMaps(request):
            for values, row in zip(values_of(reply.maps), reply.maps.rows, strict=True):
                assert np.array_equal(values, map_of(live.truth[row][OTHER], 4))


def test_several_indexes_name_what_is_whose(live: LiveIndex, serve: Serve, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(live.path, tmp_path / "twin"))
    error = start_error([live.path, twin], checkpoints=[str(live.checkpoint)])
    assert "NAME=" in error
    assert "live, twin" in error
    given = [f"{name}={live.checkpoint}" for name in ("live", "twin")]
    assert "given twice" in start_error([live.path, twin], checkpoints=[*given, given[0]])
    assert "'twin'" in start_error([live.path, twin], checkpoints=given[:1])
    both = [each for one in given for each in ("--checkpoint", one)]
    server = serve(live.path, twin, options=("--live", *both, "--data", f"twin={live.pictures}"))
    grid = pb.PatchMapGrid(layer=OTHER, rows=live.good_rows, channels=[4])
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        assert list(stub.GetPatchMaps(pb.GetPatchMapsRequest(index="twin", grids=[grid])))
        request = pb.GetPatchMapsRequest(index="live", grids=[grid])
        code, _ = refused(lambda: list(stub.GetPatchMaps(request)))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert analyze(stub, live.files[-1].read_bytes(), index="live").channels


WITHOUT_TORCH = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "timm") or name.startswith("vitscope.indexer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
from vitscope.client.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_torch_a_server_serves_but_not_live(live: LiveIndex) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", str(live.path)]
    command += ["--listen", "127.0.0.1:0"]
    run = subprocess.run([*command, *live.options], capture_output=True, text=True, timeout=60)
    assert run.returncode == 6, run.stderr
    assert "pip install 'vitscope[server,indexer]'" in run.stderr
    assert "Traceback" not in run.stderr
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().rpartition(" ")[2].strip()
        with grpc.insecure_channel(address) as channel:
            stub = ActivationServiceStub(channel)
            found = stub.GetIndex(pb.GetIndexRequest(), timeout=60).index
            assert not found.live_model
            code, details = refused(lambda: analyze(stub, live.files[-1].read_bytes()))
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert "--live" in details
        server.terminate()
