"""What is captured is the input of fc2, token by token."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from vitscope.indexer.capture import capture, find_layers
from vitscope.indexer.errors import ModelError

PLAIN = [
    # name, side, prefix, grid, hidden width
    ("vit_tiny_patch16_224", 64, ("cls",), (4, 4), 768),
    ("deit_tiny_patch16_224", 64, ("cls",), (4, 4), 768),
    ("deit_tiny_distilled_patch16_224", 64, ("cls", "dist"), (4, 4), 768),
    ("deit3_small_patch16_224", 64, ("cls",), (4, 4), 1536),
    ("vit_base_patch32_clip_quickgelu_224", 64, ("cls",), (2, 2), 3072),
    ("vit_small_patch14_reg4_dinov2", 56, ("cls", "reg", "reg", "reg", "reg"), (4, 4), 1536),
    ("vit_medium_patch16_reg1_gap_256", 64, ("reg",), (4, 4), 2048),
    ("vit_base_patch32_siglip_256", 64, (), (2, 2), 3072),
    ("vit_scenes_patch8_96", 96, ("cls",), (12, 12), 512),
    ("test_vit", 160, ("cls",), (10, 10), None),
]


@lru_cache(maxsize=1)
def make(name: str, side: int) -> nn.Module:
    import vitscope.indexer.scenes.model  # noqa: F401

    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, num_classes=0, img_size=side)
    return model.eval()


@pytest.mark.parametrize(("name", "side", "prefix", "grid", "width"), PLAIN)
def test_layers_and_layout(
    name: str, side: int, prefix: tuple[str, ...], grid: tuple[int, int], width: int | None
) -> None:
    model = make(name, side)
    layers = find_layers(model, name, (side, side))
    assert [layer.name for layer in layers] == [
        f"blocks.{number}.mlp"
        for number in range(len(model.blocks))  # type: ignore[arg-type]
    ]
    for layer in layers:
        assert layer.tokens.prefix == prefix
        assert (layer.tokens.height, layer.tokens.width) == grid
        assert width is None or layer.channels == width


@pytest.mark.parametrize(("name", "side"), [row[:2] for row in PLAIN])
def test_the_captured_tensor_makes_the_block_output(name: str, side: int) -> None:
    model = make(name, side)
    layers = find_layers(model, name, (side, side))
    outputs: dict[str, torch.Tensor] = {}
    for layer in layers:
        block = model.get_submodule(layer.name)
        block.register_forward_hook(
            lambda _, __, output, key=layer.name: outputs.__setitem__(key, output)
        )
    seen: dict[int, torch.Tensor] = {}
    with torch.inference_mode(), capture(model, layers, seen.__setitem__):
        model(torch.randn(2, 3, side, side))
        for number, layer in enumerate(layers):
            assert seen[number].shape == (2, layer.tokens.tokens, layer.channels)
            again = model.get_submodule(f"{layer.name}.fc2")(seen[number])
            torch.testing.assert_close(again, outputs[layer.name])


@pytest.mark.parametrize(("name", "side"), [row[:2] for row in PLAIN])
def test_a_bright_patch_answers_in_its_own_cell(name: str, side: int) -> None:
    # The first block of a model without attention sees patches alone: rows and columns must agree.
    make.cache_clear()
    model = make(name, side)
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn = nn.Identity()
        block.attn.forward = lambda x, *_, **__: torch.zeros_like(x)
    layers = find_layers(model, name, (side, side))
    tokens = layers[0].tokens
    step_y, step_x = side // tokens.height, side // tokens.width

    def maps(picture: torch.Tensor) -> torch.Tensor:
        seen: dict[int, torch.Tensor] = {}
        with torch.inference_mode(), capture(model, layers, seen.__setitem__):
            model(picture)
        patches = seen[0][0, len(tokens.prefix) :]
        return patches.reshape(tokens.height, tokens.width, -1)

    blank = torch.zeros(1, 3, side, side)
    rest = maps(blank)
    for y, x in [(0, 1), (1, 0), (tokens.height - 1, 0), (0, tokens.width - 1)]:
        lit = blank.clone()
        lit[:, :, y * step_y : (y + 1) * step_y, x * step_x : (x + 1) * step_x] = 3
        change = (maps(lit) - rest).abs().sum(-1)
        assert divmod(int(change.argmax()), tokens.width) == (y, x)


def test_hooks_are_gone_afterwards() -> None:
    model = make("test_vit", 160)
    layers = find_layers(model, "test_vit", (160, 160))
    calls = []
    with capture(model, layers, lambda number, _: calls.append(number)):
        model(torch.zeros(1, 3, 160, 160))
    model(torch.zeros(1, 3, 160, 160))
    assert calls == list(range(len(layers)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", "no transformer feed-forward blocks"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer is not among"),
    ],
)
def test_other_models_are_refused_by_name(name: str, words: str) -> None:
    model = timm.create_model(name, num_classes=0).eval()
    with pytest.raises(ModelError, match=f"{name} cannot be indexed.*{words}"):
        find_layers(model, name, (224, 224))


def test_a_size_that_leaves_a_rim_is_refused(tmp_path: Path) -> None:
    model = make("test_vit", 255)
    with pytest.raises(ModelError, match=r"would leave a rim.*such as 256"):
        find_layers(model, "test_vit", (255, 255))
