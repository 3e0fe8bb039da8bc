"""The small vision transformer trained on scenes, registered with timm.

After importing this module, ``timm.create_model("vit_scenes_patch8_96", pretrained=True)`` builds
the model and loads the weights packaged beside it, with no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from vitscope.indexer.scenes.catalogue import CLASSES
from vitscope.indexer.scenes.render import SIZE

__all__ = ["MODEL_NAME", "WEIGHTS", "vit_scenes_patch8_96"]

MODEL_NAME = "vit_scenes_patch8_96"
"""The name the model goes by in timm."""

WEIGHTS: Path = Path(__file__).with_name(f"{MODEL_NAME}.safetensors")
"""The packaged weights, float32."""

# register_model looks this table up by name in the module of the function it registers.
default_cfgs = generate_default_cfgs(
    {
        MODEL_NAME: {
            "file": str(WEIGHTS),
            "input_size": (3, SIZE, SIZE),
            "fixed_input_size": True,
            "num_classes": len(CLASSES),
            "label_names": CLASSES,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "description": "Trained on drawn scenes; classes in the order of CLASSES.",
        }
    }
)


@register_model
def vit_scenes_patch8_96(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT of six blocks for 96x96 pictures, 8x8 patches, class token, 128 channels.

    Takes ``(B, C, Y, X)`` float32 normalised to -1..1 and returns logits ``(B, K)``, ``K`` in the
    order of ``CLASSES``. ``kwargs`` go to timm's ``VisionTransformer``.
    """
    shape = {
        "img_size": SIZE,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 6,
        "num_heads": 4,
        "mlp_ratio": 4.0,
        "num_classes": len(CLASSES),
    }
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        MODEL_NAME,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**shape, **kwargs},
    )
    return model
