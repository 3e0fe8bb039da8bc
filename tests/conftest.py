"""Fixtures of all rooms: a synthetic index, a copy of it to damage, and servers over indexes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from started import ServerProcess
from synthetic import Synthetic, build

if TYPE_CHECKING:
    from lives import LiveIndex

# The same examples every time where nobody looks on; new ones on a person's machine.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# A shell has its background jobs ignore it, and they their children; tests send it to theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests know the bits of a processor; those that are marked `gpu` ask for a device. Commands that
# they start are shown none; this process has seen what there is before.
if Path("/dev/nvidiactl").exists():
    import torch

    if torch.cuda.is_available():
        torch.empty(1, device="cuda")
        # Kept from now on; it would be read from the variable otherwise.
        torch.cuda.device_count()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).resolve().parents[1]
Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    """The index that tests read; they leave it as it is."""
    return build(tmp_path_factory.mktemp("synthetic") / "zoo")


@pytest.fixture
def synthetic_copy(synthetic: Synthetic, tmp_path: Path) -> Path:
    """A fresh copy of the index, for tests that damage it."""
    return Path(shutil.copytree(synthetic.path, tmp_path / "zoo"))


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts server processes, `serve(index, …, options=(…))`, and ends them."""
    started: list[ServerProcess] = []

    def start(*indexes: Path, options: tuple[str, ...] = (), **how: Any) -> ServerProcess:
        errors = tmp_path_factory.mktemp("server") / "stderr"
        started.append(ServerProcess(*indexes, options=options, errors=errors, **how))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveIndex:
    """An index whose model and pictures are at hand."""
    # Only for tests that need torch.
    from lives import build_live

    return build_live(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="session")
def live_server(live: LiveIndex, serve: Serve) -> str:
    """Address of a server that runs the model of that index."""
    return serve(live.path, options=live.options).address


@pytest.fixture(scope="session")
def synthetic_server(synthetic: Synthetic, serve: Serve) -> str:
    """Address of a server that holds the synthetic index alone."""
    return serve(synthetic.path).address
