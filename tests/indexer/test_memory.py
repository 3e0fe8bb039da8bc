"""Where memory ends, batches get smaller and the index stays the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import files_of, keeping

from vitscope.indexer.dense import DenseWriter
from vitscope.indexer.errors import ModelError
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.memory import batch_for, largest_batch
from vitscope.indexer.model import Weights, load_model
from vitscope.indexer.options import Options
from vitscope.indexer.run import index

ROWS = 40
FITS = 12
"""Images that there is memory for in the last of the layers."""


def run_of(pictures: Path, out: Path, batch_size: int) -> Options:
    return replace(
        keeping(pictures, out), retain_all=("all",), batch_size=batch_size, unit_rows=ROWS
    )


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_batch_that_does_not_fit_is_run_in_halves(
    pictures: Path,
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where memory ends in the middle: some layers have taken the batch in by then."""
    name = index(run_of(pictures, tmp_path / "free", ROWS))
    monkeypatch.setattr("vitscope.indexer.run.prepare", partial(prepared, number, FITS))
    limited = index(run_of(pictures, tmp_path / "limited", ROWS))
    assert "No memory for 40 images at once: 20 from row 0 on." in capsys.readouterr().err
    mine, theirs = (
        files_of(tmp_path / each / "generations" / generation)
        for each, generation in (("limited", limited), ("free", name))
    )
    assert mine == theirs


@pytest.mark.parametrize("after", [0, 1])
def test_where_memory_ends_while_activations_are_kept(
    pictures: Path, tmp_path: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer's scores have been taken in by then."""
    name = index(run_of(pictures, tmp_path / "free", ROWS))
    original = DenseWriter.add
    left = [after]

    def add(self: DenseWriter, activation: torch.Tensor, valid: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise torch.OutOfMemoryError("no memory")
        original(self, activation, valid)

    monkeypatch.setattr(DenseWriter, "add", add)
    limited = index(run_of(pictures, tmp_path / "limited", ROWS))
    mine, theirs = (
        files_of(tmp_path / each / "generations" / generation)
        for each, generation in (("limited", limited), ("free", name))
    )
    assert left[0] < -1
    assert mine == theirs


def test_one_image_that_does_not_fit_is_told(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitscope.indexer.run.prepare", partial(prepared, 1, 0))
    with pytest.raises(ModelError, match="test_vit does not fit in the memory of cpu with one"):
        index(run_of(pictures, tmp_path / "out", 4))


def prepared(number: int, fits: int, options: Options) -> Job:
    """The job of a run whose model asks for too much memory where more than `fits` images come."""
    job = prepare(options)

    def ask(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > fits:
            torch.empty(1 << 55, dtype=torch.uint8)

    job.model.module.get_submodule(job.layers[number].name).register_forward_pre_hook(ask)
    return job


LIMITED = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from runs import tiny
from vitscope.indexer.errors import IndexingError
from vitscope.indexer.run import index

options = tiny(Path(sys.argv[1]), Path(sys.argv[2]) / "warm", limit=4)
index(options)
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    index(replace(options, out=Path(sys.argv[2]) / "out", batch_size=65536, unit_rows=65536))
except IndexingError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_where_nothing_fits_it_is_told(pictures: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(pictures), str(tmp_path)]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[1]
    )
    assert run.stdout.startswith("There is not enough memory; free some"), run.stderr


@given(st.integers(0, 1 << 36), st.integers(1, 1 << 32), st.integers(1, 1 << 38))
def test_the_largest_batch_stays_within_memory(once: int, each: int, memory: int) -> None:
    batch = largest_batch(lambda images: once + images * each, memory)
    assert batch.bit_count() == 1
    assert batch == 1 or once + batch * each <= memory
    # Twice as many would come close to all of it, or be more than any device gains from.
    assert batch == 256 or once + 2 * batch * each > 0.69 * memory


def test_processors_get_the_same_batch_whatever_their_memory() -> None:
    model = load_model("test_vit", Weights(random=True))
    assert batch_for(model, "cpu", 1 << 60) == 32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_what_it_has_memory_for() -> None:
    model = load_model("vit_tiny_patch16_224", Weights(random=True), device="cuda")
    batch = batch_for(model, "cuda", 0)
    assert batch == batch_for(model, "cuda", 0)
    total = torch.cuda.get_device_properties(0).total_memory
    assert batch_for(model, "cuda", total) == 1
    with torch.inference_mode():
        model.module(torch.zeros(batch, 3, 224, 224, device="cuda"))
