"""The page docs/models.md: which models can be indexed, which are refused and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

import timm

from vitscope.indexer.cost import cost
from vitscope.indexer.survey import FAMILIES, Surveyed

_INTRODUCTION = """\
# Models

Made by `{command}` with timm {timm}. A model of timm can be indexed where

- its forward computes attention, and has feed-forward blocks that end in a projection called
  `fc2` (or `mlp_out_proj`, where attention and feed-forward lie side by side);
- the tokens that come to it are all or none of the model's prefix tokens (`cls`, `dist`, `reg`)
  and then a grid that the model made of the picture, row by row. Grids are read from the forward:
  from the strided convolutions and the picture-shaped inputs that precede a block, never from a
  square root;
- a probe agrees: with tokens kept from looking at each other, every patch token changes with its
  own part of the picture, at the place that its layout says, and every prefix token with its own
  parameter.

No list of names decides. Of the {count} models in the files below, {taken} can be indexed
(refused: {refused}). {probed} were probed with random weights; of the larger ones the shapes of a
forward were looked at (`vitscope index` probes every model that it is given).

Columns: millions of parameters; input in pixels; channels (hidden width) and grids of the layers
from the first to the last; prefix tokens; KB that an image takes under retention `top`; MB that
retention `all` of all layers adds to it; MB of top maps and correlations, whatever the number of
images (`--top-k {top_k}`). All without stored pictures.
"""


def page(surveyed: Sequence[Surveyed], top_k: int) -> str:
    """The whole page, in Markdown."""
    taken = [each for each in surveyed if not each.refused]
    parts = [
        _INTRODUCTION.format(
            command="vitscope models --families --probe --markdown",
            timm=timm.__version__,
            count=len(surveyed),
            taken=len(taken),
            refused=len(surveyed) - len(taken),
            probed=sum(each.probed for each in surveyed),
            top_k=top_k,
        ),
        _summary(surveyed),
    ]
    order = {family: place for place, family in enumerate(FAMILIES)}
    ordered = sorted(surveyed, key=lambda each: (order.get(each.family, len(order)), each.family))
    for family, members in groupby(ordered, key=lambda each: each.family):
        parts.append(_section(family, list(members), top_k))
    return "\n".join(parts)


def _summary(surveyed: Iterable[Surveyed]) -> str:
    indexed, all_ = Counter[str](), Counter[str]()
    for each in surveyed:
        all_[each.family] += 1
        indexed[each.family] += not each.refused
    lines = ["| file of timm | models | can be indexed |", "|---|---|---|"]
    lines += [f"| `{family}` | {count} | {indexed[family]} |" for family, count in all_.items()]
    return "\n".join([*lines, ""])


def _section(family: str, members: Sequence[Surveyed], top_k: int) -> str:
    lines = [
        f"## {family}\n",
        "| model | M | input | layers | channels | grids | prefix | top KB | all MB | once MB |"
        " probed |",
        "|---|--:|---|--:|---|---|---|--:|--:|--:|---|",
    ]
    for each in members:
        if each.refused:
            continue
        bytes_ = cost(each.layers, top_k)
        lines.append(
            f"| `{each.name}` | {each.parameters / 1e6:,.1f} "
            f"| {each.input_size[0]} × {each.input_size[1]} | {len(each.layers)} | {widths(each)} "
            f"| {grids(each)} | {prefixes(each)} | {bytes_.image / 1e3:,.0f} "
            f"| {bytes_.image_all / 1e6:,.1f} | {bytes_.once / 1e6:,.0f} "
            f"| {'yes' if each.probed else ''} |"
        )
    lines += [f"\nRefused: {each.refused}" for each in members if each.refused]
    return "\n".join([*lines, ""])


def widths(each: Surveyed) -> str:
    """Hidden widths of a model's layers, in order, each once where it repeats."""
    return ", ".join(str(width) for width, _ in groupby(layer.channels for layer in each.layers))


def grids(each: Surveyed) -> str:
    """Grids of a model's layers, in the order in which they first come."""
    found = dict.fromkeys((layer.tokens.height, layer.tokens.width) for layer in each.layers)
    return ", ".join(f"{height}x{width}" for height, width in found)


def prefixes(each: Surveyed) -> str:
    """Prefix tokens of a model's layers: `cls+4 reg`, or `none, cls` where one joins late."""
    found = dict.fromkeys(layer.tokens.prefix for layer in each.layers)
    return ", ".join(_prefix(prefix) for prefix in found)


def _prefix(prefix: Sequence[str]) -> str:
    counts = Counter(prefix)
    parts = [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
    return "+".join(parts) or "none"
