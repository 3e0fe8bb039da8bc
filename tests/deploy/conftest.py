"""Images, built once for all tests, and the files that say how they are run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import ROOT, Image, Sandbox


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    if os.geteuid() != 0:
        pytest.skip("images are built by root")
    try:
        made = Sandbox(tmp_path_factory.mktemp("images"))
    except OSError as error:
        pytest.skip(f"no namespaces here: {error}")
    with made:
        yield made


@pytest.fixture(scope="session")
def server_image(sandbox: Sandbox) -> Image:
    return sandbox.build(ROOT / "server" / "Dockerfile", VERSION="1.2.3")


@pytest.fixture
def indexes(synthetic_copy: Path, tmp_path: Path) -> Path:
    """A folder with one index, as a volume has it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    synthetic_copy.rename(folder / "my-index")
    return folder
