"""Train the packaged model: ``python -m vitscope.indexer.scenes.train --out DIR``.

The defaults are those that made the committed weights. Two things let a transformer learn from
scratch on a laptop's processor. Every patch, not only the class token, has to say what it shows
(a linear layer that is thrown away afterwards). And most epochs look at a part of the patches: all
those that the object touches and a random choice of the rest; the last epochs look at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from vitscope.indexer.scenes.catalogue import BACKGROUNDS, CLASSES
from vitscope.indexer.scenes.model import MODEL_NAME
from vitscope.indexer.scenes.render import SIZE
from vitscope.indexer.scenes.training_data import (
    PATCH,
    Batch,
    SceneArray,
    plain_batches,
    render_array,
    training_batches,
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the machine and the library versions."""

    scenes: int = 20480
    scene_seed: int = 1
    heldout: int = 1600
    heldout_seed: int = 2
    seed: int = 7
    part_epochs: int = 6
    full_epochs: int = 1
    part_patches: int = 64
    batch: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up_steps: int = 300
    label_smoothing: float = 0.05
    patch_loss: float = 0.5
    threads: int = 2

    @property
    def epochs(self) -> int:
        """All passes over the training scenes."""
        return self.part_epochs + self.full_epochs

    @property
    def steps(self) -> int:
        """All optimizer steps."""
        return self.epochs * (self.scenes // self.batch)


def _positions(channels: int) -> torch.Tensor:
    """Sines and cosines of each patch's row and column ``(P, D)``: where learning starts from."""
    side = SIZE // PATCH
    rates = torch.exp(torch.linspace(0, -math.log(100), channels // 4))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, channels) * 0.3


def _new_model() -> VisionTransformer:
    model = timm.create_model(MODEL_NAME, pretrained=False)
    assert isinstance(model, VisionTransformer)
    assert model.pos_embed is not None
    with torch.no_grad():
        model.pos_embed[0, 1:] = _positions(model.embed_dim)
    return model


def _choose_patches(batch: Batch, count: int) -> torch.Tensor:
    """Numbers ``(B, K)`` of the patches to look at: the object's first, then any others."""
    rank = torch.rand(batch.covered.shape) + (batch.covered > 0)
    return rank.topk(count, dim=1).indices


def _loss(
    model: VisionTransformer, patch_head: nn.Linear, batch: Batch, recipe: Recipe, part: bool
) -> torch.Tensor:
    """Cross-entropy of the class token, plus that of the patches in view."""
    tokens = model._pos_embed(model.patch_embed(batch.images))
    places = batch.places
    if part:
        chosen = _choose_patches(batch, recipe.part_patches)
        wide = chosen[..., None].expand(-1, -1, tokens.shape[2])
        tokens = torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, wide)], dim=1)
        places = places.gather(1, chosen)
    tokens = model.norm(model.blocks(tokens))
    smoothing = recipe.label_smoothing
    whole = functional.cross_entropy(
        model.forward_head(tokens), batch.labels, label_smoothing=smoothing
    )
    told = patch_head(tokens[:, 1:]).flatten(0, 1)
    patches = functional.cross_entropy(told, places.flatten(), label_smoothing=smoothing)
    return whole + recipe.patch_loss * patches


def _optimizer(modules: list[nn.Module], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that lets only weight matrices decay."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in modules:
        for name, weight in module.named_parameters():
            is_matrix = weight.ndim > 1 and name not in ("pos_embed", "cls_token")
            (decayed if is_matrix else free).append(weight)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _pace(step: int, recipe: Recipe) -> float:
    """The share of the full learning rate at ``step``: a linear rise, then half a cosine."""
    if step < recipe.warm_up_steps:
        return (step + 1) / recipe.warm_up_steps
    done = (step - recipe.warm_up_steps) / max(recipe.steps - recipe.warm_up_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * done)) + 0.002


@torch.inference_mode()
def class_accuracy(model: nn.Module, scenes: SceneArray) -> dict[str, float]:
    """The share of each class's scenes that the model names rightly, 0..1."""
    model.eval()
    named = [model(batch.images).argmax(dim=1) for batch in plain_batches(scenes, 64)]
    right = torch.cat(named).numpy() == scenes.labels
    return {
        name: float(right[scenes.labels == number].mean()) for number, name in enumerate(CLASSES)
    }


def _mean(values: dict[str, float]) -> float:
    """Mean over the classes, which every set holds equally often."""
    return float(np.mean(list(values.values())))


class _Progress:
    """Prints where training stands, with an estimate of the time left."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._start = self._epoch_start = time.perf_counter()
        # An epoch over all patches takes longer by about the ratio of the patches.
        ratio = (SIZE // PATCH) ** 2 / recipe.part_patches
        self._costs = [1.0] * recipe.part_epochs + [ratio] * recipe.full_epochs

    def line(self, epoch: int, done: int, loss: float, accuracy: float | None = None) -> None:
        """Report ``done`` scenes of ``epoch``; with ``accuracy``, the epoch is over."""
        now = time.perf_counter()
        share = done / self._recipe.scenes
        spent = sum(self._costs[:epoch]) + share * self._costs[epoch]
        left = (now - self._start) * (sum(self._costs) / spent - 1)
        rate = done / (now - self._epoch_start)
        held_out = "" if accuracy is None else f"  held-out {accuracy:.4f}"
        print(
            f"epoch {epoch + share:6.2f}/{self._recipe.epochs}  loss {loss:.4f}{held_out}"
            f"  {rate:5.1f} images/s  {now - self._start:6.0f} s  ETA {left:5.0f} s",
            flush=True,
        )
        if accuracy is not None:
            self._epoch_start = time.perf_counter()


def _fit(recipe: Recipe, train: SceneArray, heldout: SceneArray) -> tuple[nn.Module, list[float]]:
    """Train a new model; return it with the mean loss of each epoch."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = _new_model()
    patch_head = nn.Linear(model.embed_dim, len(CLASSES) + len(BACKGROUNDS))
    optimizer = _optimizer([model, patch_head], recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, recipe))
    progress = _Progress(recipe)
    epoch_losses: list[float] = []
    for epoch in range(recipe.epochs):
        model.train()
        losses: list[float] = []
        for batch in training_batches(train, recipe.batch, rng):
            loss = _loss(model, patch_head, batch, recipe, part=epoch < recipe.part_epochs)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 80 == 0:
                progress.line(epoch, len(losses) * recipe.batch, float(np.mean(losses[-80:])))
        epoch_losses.append(float(np.mean(losses)))
        accuracy = _mean(class_accuracy(model, heldout))
        progress.line(epoch, recipe.scenes, epoch_losses[-1], accuracy)
    return model, epoch_losses


def _save(model: nn.Module, path: Path) -> str:
    """Write the weights; return the SHA-256 of the file in hexadecimal."""
    save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(recipe: Recipe, out: Path) -> dict[str, object]:
    """Render the scenes, train, save, and measure what was saved; return the record of it."""
    torch.set_num_threads(recipe.threads)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        heldout = render_array(
            Path(scratch, "heldout"), recipe.heldout, recipe.heldout_seed, recipe.threads
        )
        scenes = render_array(
            Path(scratch, "train"), recipe.scenes, recipe.scene_seed, recipe.threads
        )
        print(f"rendered {len(scenes) + len(heldout)} scenes: {time.perf_counter() - start:.0f} s")
        model, losses = _fit(recipe, scenes, heldout)
        wall = time.perf_counter() - start
        path = out / f"{MODEL_NAME}.safetensors"
        digest = _save(model, path)
        saved = timm.create_model(
            MODEL_NAME, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
        )
        by_class = class_accuracy(saved, heldout)
    return {
        "recipe": asdict(recipe),
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__},
        "wall_seconds": round(wall),
        "epoch_losses": losses,
        "heldout_accuracy": _mean(by_class),
        "class_accuracy": by_class,
        "sha256": digest,
    }


def main() -> None:
    """Command line: the output folder, and the few settings worth changing for a short trial."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description="Train the ViT that ships with the scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and record")
    for name in ("scenes", "heldout", "part_epochs", "full_epochs", "seed", "threads"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(recipe, name))
    chosen = vars(parser.parse_args())
    out = chosen.pop("out")
    record = train(Recipe(**chosen), out)
    text = json.dumps(record, indent=2)
    (out / "record.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
