"""The wheel: what the base install brings, and what it leaves out."""

from __future__ import annotations

import subprocess
import venv
import zipfile
from pathlib import Path

import pytest
from synthetic import Synthetic


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with only the base package."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--quiet", str(wheel))
    return python


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_room_is_in_the_wheel_with_its_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("v1", "store", "indexer", "server", "client", "bench"):
        assert f"vitscope/{room}/py.typed" in names
    assert "vitscope/__init__.py" not in names
    assert "vitscope/v1/service_pb2_grpc.py" in names
    assert "vitscope/indexer/scenes/vit_scenes_patch8_96.safetensors" in names


def test_the_thin_client_queries_without_torch_faiss_and_zarr(
    base: Path, synthetic: Synthetic, synthetic_server: str
) -> None:
    for absent in ("torch", "timm", "faiss", "zarr", "tensorstore", "blake3", "pyarrow", "pandas"):
        found = run(
            str(base), "-c", f"from importlib.util import find_spec; print(find_spec({absent!r}))"
        )
        assert found.strip() == "None"
    layer = synthetic.manifest.layers[0].name
    vitscope = str(base.with_name("vitscope"))
    asked = ("--server", synthetic_server, "--layer", layer, "--channel", "0", "-k", "3")
    assert run(vitscope, "top-images", *asked).count("\n") == 4
    assert '"images"' in run(vitscope, "top-images", *asked, "--json")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["info", "somewhere"], "store"),
        (["push", "somewhere", "s3://bucket/x"], "s3"),
        (["serve", "somewhere"], "server"),
        (["export", "table", "images", "--out", "rows.parquet"], "arrow"),
        (["index", "--model", "m", "--data", "d", "--out", "o"], "indexer"),
    ],
)
def test_a_missing_extra_is_named(base: Path, arguments: list[str], extra: str) -> None:
    vitscope = str(base.with_name("vitscope"))
    done = subprocess.run([vitscope, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert f"vitscope[{extra}" in done.stderr
    assert "Traceback" not in done.stderr
