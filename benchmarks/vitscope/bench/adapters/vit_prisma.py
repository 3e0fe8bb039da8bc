"""vit-prisma: one `run_with_cache` pass over the pictures, pooled by its user, held as a table.

The tool gives the raw activations of a batch and keeps nothing between calls, so that pooling,
joining batches and saving are the few lines its user writes: one float32 for each picture, layer
and channel. Patch maps and another pooling run the model again.

Its own conversion of weights from timm has a place for a class token and a head, and none for
registers, LayerScale or a table of positions without a row for the class token: models with those
it cannot take. `HookedViT.from_pretrained` asks a hub for a configuration, which is written out
here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from vit_prisma.configs.HookedViTConfig import HookedViTConfig
from vit_prisma.models.base_vit import HookedViT
from vit_prisma.prisma_tools.loading_from_pretrained import convert_timm_weights

from vitscope.bench.adapters.common import (
    Json,
    Pictures,
    answers_of_tables,
    batches_of,
    folder_bytes,
    run,
    table_of,
    timed,
    transform_of,
)

TABLE = "pooled.pt"


class Tool:
    """The hooked model, and the few lines around it."""

    def __init__(self, task: Json) -> None:
        self.task = task
        # With its head, without which the conversion fails.
        given = {key: each for key, each in task["model_kwargs"].items() if key != "num_classes"}
        source: Any = timm.create_model(
            task["model"],
            pretrained=True,
            pretrained_cfg_overlay={"file": task["weights"]},
            **given,
        ).eval()
        self.prefix = source.num_prefix_tokens
        self.pictures = Pictures(task, transform_of(source))
        block = source.blocks[0]
        config = HookedViTConfig(
            n_layers=len(source.blocks),
            d_model=source.embed_dim,
            d_head=block.attn.head_dim,
            n_heads=block.attn.num_heads,
            d_mlp=block.mlp.fc1.out_features,
            eps=block.norm1.eps,
            patch_size=source.patch_embed.patch_size[0],
            image_size=source.patch_embed.img_size[0],
            n_classes=source.num_classes,
            activation_name="gelu",
            return_type="pre_logits",
        )
        model = HookedViT(config)
        model.load_and_process_state_dict(convert_timm_weights(source.state_dict(), config))
        self.model = model.eval()

    @torch.no_grad()
    def patches(self, layers: list[str], pictures: Pictures) -> Any:
        """Activations of patches (B, P, C) of every layer, a batch after the other."""
        names = [f"{layer}.hook_post" for layer in layers]
        stop = max(int(layer.split(".")[1]) for layer in layers) + 1
        for batch, _ in batches_of(self.task, pictures):
            _, cache = self.model.run_with_cache(batch, names_filter=names, stop_at_layer=stop)
            yield [cache[name][:, self.prefix :] for name in names]


def index(task: Json, folder: Path) -> Json:
    """Pool all layers in one pass."""
    tool, layers = Tool(task), task["layers"]

    def write() -> None:
        found = table_of(layers, tool.patches(layers, tool.pictures), "mean")
        torch.save(found, folder / TABLE)

    seconds, _ = timed(write)
    what = "one number a picture, layer and channel: their mean, in a file of torch.save"
    return {"index": {"seconds": seconds, "bytes": folder_bytes(folder), "what": what}}


def answer(task: Json, folder: Path) -> Json:
    """Sort columns of the table; run the model for the rest."""
    tables: dict[str, torch.Tensor] = {}

    def opened(layer: str) -> torch.Tensor:
        if not tables:
            tables.update(torch.load(folder / TABLE, weights_only=True))
        return tables[layer]

    what = {
        "answers": "the whole table is loaded, one column sorted",
        "other_pooling": "all pictures again, up to the layer asked",
        "label_filter": "rows of the table; it knows no labels",
        "maps": "the pictures again, up to the layer asked",
    }
    return answers_of_tables(task, opened, lambda: Tool(task), what)


if __name__ == "__main__":
    run(["vit-prisma"], index, answer)
