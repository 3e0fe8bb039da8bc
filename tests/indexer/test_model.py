"""Making models: right weights or one sentence why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracle import save_random_model
from safetensors.torch import load_file, save_file

from vitscope.indexer.errors import ModelError
from vitscope.indexer.model import Weights, load_model, weights_digest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_random_model("test_vit", path)
    return path


def test_a_checkpoint_is_loaded_in_full(checkpoint: Path) -> None:
    loaded = load_model("test_vit", Weights(checkpoint))
    stored = load_file(checkpoint)
    state = loaded.module.state_dict()
    assert set(state) == set(stored)
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert not loaded.module.training
    assert loaded.weights_source == "checkpoint"


def test_a_checkpoint_with_a_classifier_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    stored = load_file(checkpoint)
    with_head = {**stored, "head.weight": torch.zeros(7, 64), "head.bias": torch.zeros(7)}
    save_file(with_head, tmp_path / "head.safetensors")
    loaded = load_model("test_vit", Weights(tmp_path / "head.safetensors"))
    assert set(loaded.module.state_dict()) == set(stored)


def test_a_pickled_checkpoint_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    torch.save(load_file(checkpoint), tmp_path / "weights.pth")
    loaded = load_model("test_vit", Weights(tmp_path / "weights.pth"))
    assert loaded.weights_sha256 == load_model("test_vit", Weights(checkpoint)).weights_sha256


def test_random_weights_are_the_same_every_time() -> None:
    first, second = (load_model("test_vit", Weights(random=True)) for _ in range(2))
    assert first.weights_sha256 == second.weights_sha256


def test_the_digest_sees_every_value(checkpoint: Path) -> None:
    module = load_model("test_vit", Weights(checkpoint)).module
    before = weights_digest(module)
    with torch.no_grad():
        next(iter(module.parameters())).view(-1)[-1] += 1
    assert weights_digest(module) != before


def test_img_size_changes_the_input(checkpoint: Path) -> None:
    loaded = load_model("test_vit", Weights(checkpoint), img_size=(96, 96))
    assert loaded.input_size == (96, 96)
    assert loaded.module.patch_embed.grid_size == (6, 6)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_smal_patch16_224", "knows no model.*vit_small_patch16_224"),
        ("test_vit.nonesuch", "no pretrained weights 'nonesuch'; it has: r160_in1k"),
        ("", "knows no model"),
    ],
)
def test_an_unknown_name_is_said(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(name, Weights(random=True))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint file"):
        load_model("test_vit", Weights(tmp_path / "none.safetensors"))


def test_a_file_that_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    for name in ("text.safetensors", "text.pth"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(ModelError, match="cannot be loaded into test_vit"):
            load_model("test_vit", Weights(tmp_path / name))


def test_a_checkpoint_of_other_shapes_is_said(tmp_path: Path) -> None:
    save_random_model("vit_tiny_patch16_224", tmp_path / "tiny.safetensors")
    with pytest.raises(ModelError, match="does not fit test_vit"):
        load_model("test_vit", Weights(tmp_path / "tiny.safetensors"))


def test_a_checkpoint_that_leaves_tensors_unset_is_said(checkpoint: Path, tmp_path: Path) -> None:
    stored = load_file(checkpoint)
    del stored["blocks.3.mlp.fc1.weight"]
    save_file(stored, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 tensor of.*blocks\.3\.mlp\.fc1\.weight"):
        load_model("test_vit", Weights(tmp_path / "part.safetensors"))


def test_a_checkpoint_with_other_tensors_is_said(checkpoint: Path, tmp_path: Path) -> None:
    stored = load_file(checkpoint)
    stored["blocks.6.mlp.fc1.weight"] = stored["blocks.0.mlp.fc1.weight"].clone()
    save_file(stored, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match=r"no place for 1 tensor of.*blocks\.6"):
        load_model("test_vit", Weights(tmp_path / "more.safetensors"))


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    script = (
        "from vitscope.indexer.model import load_model, Weights\n"
        "try: load_model('test_vit.r160_in1k', Weights())\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ModelError The pretrained weights of test_vit.r160_in1k could")
    assert "--checkpoint FILE" in done.stdout
    assert "Traceback" not in done.stderr
