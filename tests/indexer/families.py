"""Models of every family, at small sizes, and what is known of their tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Family:
    """One model, without pretrained weights."""

    name: str
    size: tuple[int, int]
    """Height and width of its input; unequal where the model takes that."""
    prefix: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    """Of its layers, in the order in which they first come."""
    layers: int
    patch: float
    """Side of a patch of the first grid in pixels."""

    def __str__(self) -> str:
        return f"{self.name}-{self.size[0]}x{self.size[1]}"


CLS, REG4 = ("cls",), ("reg",) * 4
PATCH16, PATCH32, PATCH14 = (64, 96), (128, 192), (56, 84)
PLAIN = ((4, 6),)
STAGES4 = ((32, 48), (16, 24), (8, 12), (4, 6))
WIDE = ((28, 56), (14, 28), (7, 14), (4, 7))
POOLED = ((15, 23), (8, 12), (4, 6))

FAMILIES = (
    # ViT: class token, none, average pooled, registers alone, side by side, behind convolutions
    Family("vit_tiny_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    Family("vit_small_patch32_224", PATCH32, CLS, PLAIN, 12, 32),
    Family("vit_medium_patch16_gap_240", PATCH16, (), PLAIN, 12, 16),
    Family("vit_medium_patch16_reg1_gap_256", PATCH16, ("reg",), PLAIN, 12, 16),
    Family("vit_little_patch16_reg4_gap_256", PATCH16, REG4, PLAIN, 14, 16),
    Family("vit_relpos_small_patch16_224", PATCH16, (), PLAIN, 12, 16),
    Family("vit_small_patch16_18x2_224", PATCH16, CLS, PLAIN, 36, 16),
    Family("vit_base_patch16_xp_224", PATCH16, CLS, PLAIN, 12, 16),
    Family("vit_tiny_r_s16_p8_224", PATCH16, CLS, ((2, 3),), 12, 32),
    Family("samvit_base_patch16_224", PATCH16, (), PLAIN, 12, 16),
    # DeiT, distilled, DeiT-III
    Family("deit_tiny_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    Family("deit_small_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    Family("deit_tiny_distilled_patch16_224", PATCH16, ("cls", "dist"), PLAIN, 12, 16),
    Family("deit_small_distilled_patch16_224", PATCH16, ("cls", "dist"), PLAIN, 12, 16),
    Family("deit3_small_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    Family("deit3_medium_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    # CLIP and SigLIP
    Family("vit_base_patch32_clip_quickgelu_224", PATCH32, CLS, PLAIN, 12, 32),
    Family("vit_base_patch32_clip_224", PATCH32, CLS, PLAIN, 12, 32),
    Family("vit_xsmall_patch16_clip_224", PATCH16, CLS, PLAIN, 10, 16),
    Family("vit_base_patch32_siglip_256", PATCH32, (), PLAIN, 12, 32),
    Family("vit_base_patch32_siglip_gap_256", PATCH32, (), PLAIN, 12, 32),
    # DINOv2 and DINOv3
    Family("vit_small_patch14_dinov2", PATCH14, CLS, PLAIN, 12, 14),
    Family("vit_small_patch14_reg4_dinov2", PATCH14, (*CLS, *REG4), PLAIN, 12, 14),
    Family("vit_small_patch16_dinov3", PATCH16, (*CLS, *REG4), PLAIN, 12, 16),
    Family("vit_small_plus_patch16_dinov3", PATCH16, (*CLS, *REG4), PLAIN, 12, 16),
    # EVA-02 and BEiT
    Family("eva02_tiny_patch14_224", PATCH14, CLS, PLAIN, 12, 14),
    Family("eva02_small_patch14_224", PATCH14, CLS, PLAIN, 12, 14),
    Family("beit_base_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    Family("beitv2_base_patch16_224", PATCH16, CLS, PLAIN, 12, 16),
    # CoaT: a class token for every scale; parallel blocks see three grids each
    Family("coat_tiny", PATCH32, CLS, STAGES4, 26, 4),
    Family("coat_mini", PATCH32, CLS, STAGES4, 26, 4),
    Family("coat_lite_tiny", PATCH32, CLS, STAGES4, 8, 4),
    Family("coat_lite_mini", PATCH32, CLS, STAGES4, 8, 4),
    # ConViT takes square pictures alone; its class token joins two blocks before the end
    Family("convit_tiny", (64, 64), CLS, ((4, 4),), 12, 16),
    Family("convit_small", (64, 64), CLS, ((4, 4),), 12, 16),
    # PiT: patches of 16 pixels every 8
    Family("pit_ti_224", PATCH32, CLS, POOLED, 12, 8),
    Family("pit_xs_224", PATCH32, CLS, POOLED, 12, 8),
    Family("pit_ti_distilled_224", PATCH32, ("cls", "dist"), POOLED, 12, 8),
    Family("pit_xs_distilled_224", PATCH32, ("cls", "dist"), POOLED, 12, 8),
    # Swin, with a last grid that is padded to be halved
    Family("swin_tiny_patch4_window7_224", (112, 224), (), WIDE, 12, 4),
    Family("swin_s3_tiny_224", (112, 224), (), WIDE, 12, 4),
    Family("swinv2_tiny_window8_256", PATCH32, (), STAGES4, 12, 4),
    Family("swinv2_tiny_window16_256", PATCH32, (), STAGES4, 12, 4),
    Family("swinv2_cr_tiny_224", (112, 224), (), WIDE, 12, 4),
    Family("swinv2_cr_tiny_ns_224", (112, 224), (), WIDE, 12, 4),
    # Twins and TinyViT
    Family("twins_pcpvt_small", PATCH32, (), STAGES4, 16, 4),
    Family("twins_svt_small", PATCH32, (), STAGES4, 18, 4),
    Family("tiny_vit_5m_224", PATCH32, (), STAGES4[1:], 10, 8),
    Family("tiny_vit_11m_224", PATCH32, (), STAGES4[1:], 10, 8),
)


@lru_cache(maxsize=1)
def make(name: str, size: tuple[int, int]) -> nn.Module:
    """The model with random weights; tests leave it as it is."""
    torch.manual_seed(1)
    # TinyViT takes pictures of any size as it is.
    sized: dict[str, Any] = {} if name.startswith("tiny_vit") else {"img_size": size}
    model: Any = timm.create_model(name, num_classes=0, **sized)
    return model.eval()  # type: ignore[no-any-return]
