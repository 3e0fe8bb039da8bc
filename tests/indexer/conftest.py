"""Pictures to index, and what an undisturbed run makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import files_of, keeping, write_mixed

from vitscope.indexer.run import index


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many files, good and bad, as the module's `ROWS` says."""
    folder = tmp_path_factory.mktemp("pictures")
    write_mixed(folder, request.module.ROWS)
    return folder


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run by one process."""
    out = tmp_path_factory.mktemp("whole") / "index"
    index(keeping(pictures, out))
    return files_of(out)
