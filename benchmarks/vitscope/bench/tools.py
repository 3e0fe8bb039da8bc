"""The tools that stand beside vitscope, and how each is installed and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitscope.bench import adapters
from vitscope.bench.record import Json

PATIENCE = 3600.0
"""Seconds for an installation, or for all that a tool does."""


@dataclass(frozen=True)
class Tool:
    """Something that can be asked."""

    name: str
    module: str
    """Of the adapter."""
    installs: Sequence[Sequence[str]] = ()
    """What pip is given, one time after the other, in an environment of its own; nothing for this
    one's."""
    way: str = ""
    """Which of the ways of its adapter."""


OURS = "vitscope"
TOOLS = (
    Tool(OURS, "own"),
    Tool("model again", "naive", way="again"),
    Tool("dense .npy", "naive", way="npy"),
    Tool("dense Zarr", "naive", way="zarr"),
    Tool("semanticlens", "semanticlens", [["semanticlens==0.2.1"]]),
    Tool("zennit-crp", "zennit_crp", [["zennit-crp==0.6.0"]]),
    Tool("captum", "captum", [["captum==0.9.0"]]),
    Tool("vit-prisma", "vit_prisma", [["vit-prisma==0.1.4"]]),
    Tool(
        "thingsvision",
        "thingsvision",
        [
            # It asks for a torchvision of years ago; TensorFlow it wants to be imported at all.
            [
                "--no-deps",
                "thingsvision==2.7.3",
                "torchtyping",
                "typeguard<3",
                "h5py",
                "scipy<1.15",
            ],
            ["tensorflow-cpu==2.15.1", "numpy==1.26.4"],
        ],
    ),
    Tool(
        "clip-retrieval",
        "clip_retrieval",
        # One of those that it needs imports `pkg_resources`, which newer ones have no more.
        [["clip-retrieval==2.45.0", "autofaiss==2.18.0"], ["setuptools<70"]],
    ),
)


def result_of(tool: Tool, venvs: Path, folder: Path) -> Json:
    """What its adapter found, or `error`."""
    try:
        python = environment(tool, venvs)
    except subprocess.CalledProcessError as error:
        said = error.stderr or error.output or b""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        return {"error": f"could not be installed: {_last(text)}"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"could not be installed: {error}"}
    out = folder / f"{tool.module}.json"
    place = folder / (tool.way or tool.module)
    module = f"{adapters.__name__}.{tool.module}"
    environ = dict(os.environ)
    if tool.installs:
        environ["PYTHONPATH"] = str(copied(folder / "adapters"))
    place.mkdir()
    try:
        done = subprocess.run(
            [python, "-m", module, folder / "task.json", out, place],
            capture_output=True,
            text=True,
            env=environ,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"failed: it took more than {PATIENCE / 60:.0f} minutes"}
    finally:
        shutil.rmtree(place)
    if done.returncode:
        return {"error": f"failed: {_last(done.stderr)}"}
    result: Json = json.loads(out.read_text())
    out.unlink()
    return result


def copied(target: Path) -> Path:
    """The adapters alone, as other interpreters import them."""
    package = target.joinpath(*adapters.__name__.split("."))
    if not package.exists():
        shutil.copytree(Path(adapters.__path__[0]), package)
    return target


def environment(tool: Tool, venvs: Path) -> str:
    """The interpreter of a tool, installed where it is not there as it is to be."""
    if not tool.installs:
        return sys.executable
    place = (venvs / tool.module).resolve()
    python, marker = place / "bin" / "python", place / "installed"
    shared = str(Path(torch.__file__).parents[1])
    wanted = json.dumps([sys.version, shared, tool.installs])
    if not marker.exists() or marker.read_text() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        [site] = place.glob("lib/python*/site-packages")
        # PyTorch is there already, and gigabytes; what a tool wants otherwise it gets itself.
        (site / "shared.pth").write_text(shared + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for words in tool.installs:
            run_quietly([*pip, *words])
        marker.write_text(wanted)
    return str(python)


def run_quietly(command: Sequence[Any]) -> None:
    """Raise `CalledProcessError`, with what it said, where a command fails."""
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
