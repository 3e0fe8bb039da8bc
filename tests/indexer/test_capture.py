"""Which models are taken, which are refused and why, and what capturing leaves behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitscope.indexer.capture import capture
from vitscope.indexer.errors import ModelError
from vitscope.indexer.grids import Grids, Size
from vitscope.indexer.layers import declared_layers, find_layers


def make(name: str, **arguments: object) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, num_classes=0, **arguments)  # type: ignore[arg-type]
    return model.eval()


def test_hooks_are_gone_afterwards() -> None:
    model = make("test_vit")
    layers, _ = find_layers(model, "test_vit", (160, 160))
    calls = []
    with capture(model, layers, lambda number, _: calls.append(number)):
        model(torch.zeros(1, 3, 160, 160))
    model(torch.zeros(1, 3, 160, 160))
    assert calls == list(range(len(layers)))
    hooks = [(m._forward_pre_hooks, m._forward_hooks) for m in model.modules()]
    assert not any(before or after for before, after in hooks)


def test_a_forward_that_fails_does_not_shift_the_next() -> None:
    model = make("coat_lite_tiny", img_size=64)
    layers, _ = find_layers(model, "coat_lite_tiny", (64, 64))
    seen: list[int] = []
    with capture(model, layers, lambda number, _: seen.append(number)):
        with pytest.raises(AssertionError):
            model(torch.zeros(1, 3, 48, 48))
        seen.clear()
        model(torch.zeros(1, 3, 64, 64))
    assert seen == list(range(len(layers)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet18", r"it has no transformer feed-forward blocks with a last projection"),
        ("convnext_atto", r"its forward computes no attention"),
        ("mixer_s32_224", r"its forward computes no attention"),
        ("vit_dpwee_patch16_reg1_gap_256", r"no transformer feed-forward blocks"),
        ("mobilevit_xxs", r"in stages\.2\.1\.transformer\.0\.mlp .* is no batch of tokens"),
        ("nest_tiny", r"tokens are no grid of patches"),
        # Its tokens are a grid in number, but lie in another order.
        ("hiera_tiny_224", r"in blocks\.0\.mlp a probe finds its tokens elsewhere"),
    ],
)
def test_other_models_are_refused_by_name(name: str, words: str) -> None:
    model = make(name)
    size = timm.get_pretrained_cfg(name).input_size[1:]  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=f"{name} cannot be indexed: .*{words}"):
        find_layers(model, name, size)


def test_a_size_that_the_model_cannot_take_is_refused() -> None:
    words = r"a forward of 64x96 pixels fails \("
    with pytest.raises(ModelError, match=f"convit_tiny cannot be indexed: {words}"):
        find_layers(make("convit_tiny", img_size=(64, 96)), "convit_tiny", (64, 96))


def test_a_size_that_leaves_a_rim_is_refused() -> None:
    model = make("test_vit", img_size=(255, 160))
    with pytest.raises(ModelError, match=r"would leave a rim.*such as 256x160"):
        find_layers(model, "test_vit", (255, 160))


def test_a_rim_that_the_model_was_trained_with_is_taken() -> None:
    """SigLIP's so400m sees 27 x 27 patches of 14 pixels in 384, and nothing of the last six."""
    with torch.device("meta"):
        model = make("vit_so400m_patch14_siglip_384")
    layers, _ = declared_layers(model, "vit_so400m_patch14_siglip_384", (384, 384))
    tokens = layers[0].tokens
    assert (tokens.height, tokens.cell_height, tokens.top) == (27, 14, 0)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "coat_tiny", "pit_ti_distilled_224"])
def test_shapes_alone_tell_the_same_as_the_probe(name: str) -> None:
    with torch.device("meta"):
        bare = make(name)
    assert declared_layers(bare, name, (224, 224)) == find_layers(make(name), name, (224, 224))


def test_blocks_without_patches_are_left_out() -> None:
    model = make("vit_base_patch32_siglip_256", img_size=64)
    layers, left_out = declared_layers(model, "siglip", (64, 64))
    assert [layer.name for layer in layers] == [f"blocks.{number}.mlp" for number in range(12)]
    assert [str(block) for block in left_out] == [
        "attn_pool.mlp is no layer of the index: it sees one token for the whole picture."
    ]


@pytest.mark.parametrize("name", ["swap", "roll", "mirror"])
def test_tokens_out_of_order_are_noticed(name: str) -> None:
    """A model that is as any other, but for the order of its patches."""
    model = make("vit_tiny_patch16_224", img_size=64)
    order = torch.arange(16)
    if name == "swap":
        order[[5, 10]] = order[[10, 5]]
    order = {"roll": order.roll(1), "mirror": order.view(4, 4).flip(1).flatten()}.get(name, order)
    embed = model.patch_embed.forward  # type: ignore[union-attr]
    model.patch_embed.forward = lambda x: embed(x)[:, order]  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="a probe finds its tokens elsewhere"):
        find_layers(model, "scrambled", (64, 64))


def test_a_picture_that_the_model_pads_keeps_its_cells() -> None:
    """Of 212 pixels the last patches lie partly in what the forward adds at the end."""
    model: Any = VisionTransformer(
        depth=2, num_classes=0, dynamic_img_size=True, dynamic_img_pad=True
    ).eval()
    model.pretrained_cfg = {"input_size": (3, 212, 212)}
    tokens = find_layers(model, "padded", (212, 212))[0][0].tokens
    assert (tokens.height, tokens.cell_height, tokens.top) == (14, 16, 0)


def test_grids_that_the_model_pads_keep_their_cells() -> None:
    """DaViT adds cells where a grid is to be halved: 58, 29 and one, 15 and one, 8."""
    layers, _ = find_layers(make("davit_tiny"), "davit_tiny", (232, 200))
    found = dict.fromkeys((layer.tokens.height, layer.tokens.cell_height) for layer in layers)
    assert list(found) == [(58, 4), (29, 8), (15, 16), (8, 32)]


def test_cells_of_another_size_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Grids.passed

    def wrong(self: Grids, module: nn.Module, size: Size, out: Size) -> None:
        passed(self, module, size, out)
        rows, columns = self._known[out]
        self._known[out] = replace(rows, step=rows.step * 0.94), columns

    monkeypatch.setattr(Grids, "passed", wrong)
    with pytest.raises(ModelError, match="to be of another size"):
        find_layers(make("vit_tiny_patch16_224"), "vit_tiny_patch16_224", (224, 224))


def test_prefix_tokens_in_another_order_are_noticed() -> None:
    model = make("vit_small_patch14_reg4_dinov2", img_size=56)
    plain: Any = model
    embed = plain._pos_embed

    def last_first(patches: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = embed(patches)
        return tokens[:, [1, 2, 3, 4, 0, *range(5, tokens.shape[1])]]

    plain._pos_embed = last_first
    with pytest.raises(ModelError, match=r"cls_token moves other tokens than the cls token"):
        find_layers(model, "turned", (56, 56))


def test_want_of_memory_is_told_as_such() -> None:
    model = make("test_vit")
    model.register_forward_pre_hook(lambda *_: torch.empty(1 << 50) and None)
    with pytest.raises(ModelError, match="memory does not suffice for a forward of 160 pixels"):
        find_layers(model, "test_vit", (160, 160))
