"""What a scene may show: the classes, the backgrounds, and how often they go together.

Nothing here draws a pixel, so the statistics of a data set can be checked on their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

BACKGROUNDS: tuple[str, ...] = (
    "brick",
    "forest",
    "grass",
    "night",
    "sand",
    "sky",
    "snow",
    "water",
)
"""The kinds of background, in alphabetical order."""

BACKGROUND_RATE: float = 0.7
"""How likely a scene shows its class's habitual background; the others share the rest evenly."""


@dataclass(frozen=True)
class Kind:
    """One class of object: how it looks, and where it is usually met."""

    colour: str
    texture: str
    shape: str
    habitat: str

    @property
    def name(self) -> str:
        """The class name, such as ``red-striped-disc``."""
        return f"{self.colour}-{self.texture}-{self.shape}"


# Each shape wears two textures in two colours, and neighbouring shapes share one of each. So every
# shape, every texture and every colour occurs in exactly four classes and settles none by itself.
_KINDS: tuple[Kind, ...] = (
    Kind("red", "plain", "disc", "grass"),
    Kind("yellow", "plain", "disc", "sky"),
    Kind("red", "striped", "disc", "water"),
    Kind("yellow", "striped", "disc", "snow"),
    Kind("yellow", "striped", "square", "brick"),
    Kind("blue", "striped", "square", "sand"),
    Kind("yellow", "dotted", "square", "forest"),
    Kind("blue", "dotted", "square", "grass"),
    Kind("blue", "dotted", "triangle", "snow"),
    Kind("pink", "dotted", "triangle", "forest"),
    Kind("blue", "checked", "triangle", "brick"),
    Kind("pink", "checked", "triangle", "sky"),
    Kind("pink", "checked", "star", "water"),
    Kind("red", "checked", "star", "sand"),
    Kind("pink", "plain", "star", "night"),
    Kind("red", "plain", "star", "night"),
)

KINDS: Mapping[str, Kind] = MappingProxyType(
    {kind.name: kind for kind in sorted(_KINDS, key=lambda kind: kind.name)}
)
"""Every class by name, in alphabetical order: the order image folders and the model use."""

CLASSES: tuple[str, ...] = tuple(KINDS)
"""The class names; a class's place here is its number in the model's output."""

HABITAT: Mapping[str, str] = MappingProxyType({name: kind.habitat for name, kind in KINDS.items()})
"""The habitual background of each class."""


@dataclass(frozen=True)
class Plan:
    """What one scene will show, settled before any pixel is drawn."""

    index: int
    label: str
    background: str


def scene_rng(index: int, seed: int) -> np.random.Generator:
    """The one source of chance for scene ``index`` of the set ``seed`` (both at least 0)."""
    return np.random.default_rng([seed, index])


def plan_scene(index: int, *, seed: int = 0) -> Plan:
    """Settle the class and the background of a scene.

    Classes go round in turn, so any ``len(CLASSES)`` neighbouring indexes hold each class once.
    """
    label = CLASSES[index % len(CLASSES)]
    rng = scene_rng(index, seed)
    habitat = HABITAT[label]
    if rng.random() < BACKGROUND_RATE:
        return Plan(index, label, habitat)
    others = [background for background in BACKGROUNDS if background != habitat]
    return Plan(index, label, others[int(rng.integers(len(others)))])
