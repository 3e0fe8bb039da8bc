"""Scenes: small drawn photographs with known contents, and a model trained on them.

Importing this package needs numpy and Pillow only; ``model`` and ``train`` need torch and timm.
"""

from vitscope.indexer.scenes.catalogue import (
    BACKGROUND_RATE,
    BACKGROUNDS,
    CLASSES,
    HABITAT,
    KINDS,
    Kind,
    Plan,
    plan_scene,
)
from vitscope.indexer.scenes.folder import (
    SceneTruth,
    read_masks,
    read_truth,
    scene_key,
    write_scenes,
)
from vitscope.indexer.scenes.render import SIZE, Scene, render_scene

__all__ = [
    "BACKGROUNDS",
    "BACKGROUND_RATE",
    "CLASSES",
    "HABITAT",
    "KINDS",
    "SIZE",
    "Kind",
    "Plan",
    "Scene",
    "SceneTruth",
    "plan_scene",
    "read_masks",
    "read_truth",
    "render_scene",
    "scene_key",
    "write_scenes",
]
