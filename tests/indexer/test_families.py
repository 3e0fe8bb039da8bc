"""Every family: what is captured, where its patches lie, and which tokens are its prefix.

The oracles are plain PyTorch hooks and pictures of which one cell is lit.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest
import torch
from indexer.families import FAMILIES, Family, make
from torch import nn

from vitscope.indexer.capture import capture
from vitscope.indexer.layers import CapturedLayer, find_layers
from vitscope.store.manifest import TokenLayout

EACH = pytest.mark.parametrize("family", FAMILIES, ids=str)


def layers_of(family: Family) -> tuple[nn.Module, list[CapturedLayer]]:
    model = make(family.name, family.size)
    return model, find_layers(model, family.name, family.size)[0]


def captured(
    model: nn.Module, layers: Sequence[CapturedLayer], pictures: torch.Tensor
) -> list[torch.Tensor]:
    """Activations (B, T, C) of every layer."""
    seen: dict[int, torch.Tensor] = {}
    with torch.inference_mode(), capture(model, layers, seen.__setitem__):
        model(pictures)
    assert list(seen) == list(range(len(layers)))
    return list(seen.values())


def noise(family: Family, count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *family.size, generator=torch.Generator().manual_seed(seed))


@EACH
def test_tokens_are_as_the_family_has_them(family: Family) -> None:
    _, layers = layers_of(family)
    assert len(layers) == family.layers
    assert len({layer.name for layer in layers}) == family.layers
    grids = dict.fromkeys((layer.tokens.height, layer.tokens.width) for layer in layers)
    assert tuple(grids) == family.grids
    assert layers[0].tokens.cell_height == layers[0].tokens.cell_width == family.patch
    assert {layer.tokens.prefix for layer in layers} <= {family.prefix, ()}
    assert layers[-1].tokens.prefix == family.prefix


@EACH
def test_captured_activations_make_the_outputs_in_their_order(family: Family) -> None:
    model, layers = layers_of(family)
    by_module: dict[nn.Module, list[int]] = defaultdict(list)
    for number, layer in enumerate(layers):
        by_module[model.get_submodule(layer.name)].append(number)
    outputs: list[tuple[int, torch.Tensor]] = []
    hooks = []
    for module, numbers in by_module.items():
        queue = iter(numbers)
        hooks.append(
            module.register_forward_hook(
                lambda _, __, output, queue=queue: outputs.append((next(queue), output))
            )
        )
    try:
        activations = captured(model, layers, noise(family, 2))
    finally:
        for hook in hooks:
            hook.remove()
    # The order of layers is the order in which their blocks ran.
    assert [number for number, _ in outputs] == list(range(len(layers)))
    for number, output in outputs:
        layer = layers[number]
        block = model.get_submodule(layer.name)
        projection = getattr(block, "fc2", block)
        assert activations[number].shape == (2, layer.tokens.tokens, layer.channels)
        with torch.inference_mode():
            again = projection(activations[number])
        torch.testing.assert_close(again, output.reshape(again.shape))


@EACH
def test_a_bright_square_answers_where_it_is(family: Family) -> None:
    """In every layer, also where the picture is flipped or (a square one) transposed."""
    model, layers = layers_of(family)
    if family.name.startswith(("coat", "tiny_vit")):
        model = _quiet(model)
    plain = 0.5 * noise(family, 1)
    pictures = [picture for picture, _ in turned(plain, (0, 0))]
    ways = len(pictures)
    centres: list[tuple[float, float]] = [(0, 0)] * ways
    of_grid: dict[tuple[int, int], range] = {}
    for layer in layers:
        tokens = layer.tokens
        grid = (tokens.height, tokens.width)
        if grid not in of_grid:
            start = len(pictures)
            for cell in ((tokens.height // 2, 1), (1, tokens.width // 2 + 1)):
                for picture, centre in turned(*square(plain, tokens, cell)):
                    pictures.append(picture)
                    centres.append(centre)
            of_grid[grid] = range(start, len(pictures))
    answers = captured(model, layers, torch.cat(pictures))
    for layer, values in zip(layers, answers, strict=True):
        tokens = layer.tokens
        mine = list(of_grid[tokens.height, tokens.width])
        patches = values[:, len(tokens.prefix) :]
        before = patches[:ways].repeat(len(mine) // ways, 1, 1)
        strength, peak = (patches[mine] - before).abs().max(1)  # [N, C]
        place = torch.tensor([centres[number] for number in mine])[:, :, None]  # [N, 2, 1]
        side = torch.tensor([[tokens.cell_height], [tokens.cell_width]])
        corner = torch.tensor([[tokens.top], [tokens.left]])
        found = torch.stack([peak // tokens.width, peak % tokens.width], 1)  # [N, 2, C]
        off = (found + 0.5 - (place - corner) / side).abs().amax((0, 1))  # [C], in cells
        # A channel that answers every square, and each where that is.
        responds = strength.amin(0) >= strength.amin(0).median()
        # By chance none would: there are at least six squares.
        assert ((off <= 0.51) & responds).any(), layer.name


def _quiet(model: nn.Module) -> nn.Module:
    """The model with a tenth of what its tokens take from their neighbours.

    Kernels of random weights would carry a square's answer away from it, block by block.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
                middle = tuple(side // 2 for side in module.kernel_size)
                kept = module.weight[:, :, middle[0], middle[1]].clone()
                module.weight.mul_(0.1)
                module.weight[:, :, middle[0], middle[1]] = kept
            elif path.endswith(("attn.proj", "factoratt_crpe.proj")):
                module.weight.mul_(0.1)
    return model


def square(
    plain: torch.Tensor, tokens: TokenLayout, cell: tuple[int, int]
) -> tuple[torch.Tensor, tuple[float, float]]:
    """A picture (1, 3, H, W) with a bright square on a cell, and the cell's centre."""
    start = (tokens.top + cell[0] * tokens.cell_height, tokens.left + cell[1] * tokens.cell_width)
    sides = (tokens.cell_height, tokens.cell_width)
    rows, columns = (
        slice(max(0, round(edge)), round(edge + side))
        for edge, side in zip(start, sides, strict=True)
    )
    picture = plain.clone()
    picture[..., rows, columns] += 2
    return picture, (start[0] + sides[0] / 2, start[1] + sides[1] / 2)


def turned(
    picture: torch.Tensor, centre: tuple[float, float]
) -> Iterator[tuple[torch.Tensor, tuple[float, float]]]:
    """The picture as it is, upside down, mirrored and transposed, and where its square is then."""
    height, width = picture.shape[2:]
    y, x = centre
    yield picture, (y, x)
    yield picture.flip(2), (height - y, x)
    yield picture.flip(3), (y, width - x)
    if height == width:
        yield picture.mT, (x, y)


WITH_PREFIX = [family for family in FAMILIES if family.prefix]


@pytest.mark.parametrize("family", WITH_PREFIX, ids=str)
def test_token_parameters_are_the_prefix(family: Family) -> None:
    """Another class token changes the prefix of the first layer that has it, and no patch.

    In all families but those with attention beside the feed-forward block, patches have looked at
    the class token before they come to the first block. So attention adds nothing here: the
    matrix that ends it is zero.
    """
    model = copy.deepcopy(make(family.name, family.size))
    layers, _ = find_layers(model, family.name, family.size)
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear) and path.endswith(("attn.proj", "attn_out_proj")):
                module.weight.zero_()
            if path.endswith("factoratt_crpe"):
                module.proj.weight.zero_()
    picture = noise(family, 1)
    before = captured(model, layers, picture)
    for kind in dict.fromkeys(family.prefix):
        changed = copy.deepcopy(model)
        for name, parameter in changed.named_parameters():
            if places := _parameter_of(kind, name, family):
                with torch.no_grad():
                    parameter[..., places, :] += 1
        after = captured(changed, layers, picture)
        first = next(n for n, layer in enumerate(layers) if kind in layer.tokens.prefix)
        for number, layer in enumerate(layers[: first + 1]):
            moved = (after[number] != before[number]).any(2)[0]  # [T]
            expected = [each == kind for each in layer.tokens.prefix]
            assert moved[: len(expected)].tolist() == expected, (kind, layer.name)
            assert not moved[len(expected) :].any(), (kind, layer.name)


def _parameter_of(kind: str, name: str, family: Family) -> slice | None:
    """The part of a parameter that begins as tokens of a kind; None where there is none."""
    both = family.name.startswith("pit") and "dist" in family.prefix
    if both and name == "cls_token":
        return slice(0, 1) if kind == "cls" else slice(1, 2)
    return slice(None) if name.rstrip("1234") == f"{kind}_token" else None


def test_blocks_that_share_weights_are_layers_of_their_own() -> None:
    """CoaT calls one block for each of three scales; the model has a name for each."""
    model = make("coat_tiny", (128, 192))
    layers, _ = find_layers(model, "coat_tiny", (128, 192))
    serial = [f"serial_blocks{stage}.{block}.mlp" for stage in (1, 2, 3, 4) for block in (0, 1)]
    parallel = [f"parallel_blocks.{block}.mlp{scale}" for block in range(6) for scale in (2, 3, 4)]
    assert [layer.name for layer in layers] == serial + parallel
    for number, layer in enumerate(layers[8:]):
        # The same module under three names, each with the grid of its scale.
        assert model.get_submodule(layer.name) is model.get_submodule(parallel[number // 3 * 3])
        assert (layer.tokens.height, layer.tokens.width) == ((16, 24), (8, 12), (4, 6))[number % 3]
    inputs: list[torch.Tensor] = []
    first = model.get_submodule("parallel_blocks.0.mlp2.fc2")
    hook = first.register_forward_pre_hook(lambda _, given: inputs.append(given[0].clone()))
    try:
        activations = captured(model, layers, torch.randn(2, 3, 128, 192))
    finally:
        hook.remove()
    assert len(inputs) == 3
    for mine, given in zip(activations[8:11], inputs, strict=True):
        assert torch.equal(mine, given)
