"""How two plans differ, in the words of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscope.store.text import counted

_SHORT = 40
"""Characters of a value that a sentence has room for."""

_WEIGHTS = {"checkpoint": "--checkpoint", "random": "--random-weights", "pretrained": "the hub"}


def _shown(value: Any) -> str:
    """A value as it is typed; the values of all layers, once each."""
    if isinstance(value, list):
        return ",".join(dict.fromkeys(map(_shown, value))) or "none"
    return str(value)


def _size(value: Sequence[int]) -> str:
    return "x".join(map(str, dict.fromkeys(value)))


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the plan, for people."""

    name: str
    """The option that decides it, where there is one."""
    shown: Callable[[Any], str] = _shown
    after: tuple[str, ...] = ()
    """Fields that it follows from: where one of them differs, nothing is said of this one."""


_MODEL = ("model.name",)
_SIZE = (*_MODEL, "model.input_size")
_BASE = ("base", "base_rows")

FIELDS: Mapping[str, Field] = {
    "model.name": Field("--model"),
    "model.weights_source": Field("weights from", lambda source: _WEIGHTS.get(source, source)),
    "model.weights_sha256": Field(
        "--checkpoint (or weights of the hub)", after=(*_SIZE, "model.weights_source")
    ),
    "model.input_size": Field("--img-size", _size, _MODEL),
    "model.dtype": Field("--dtype"),
    "base": Field("--append", lambda name: f"to {name}" if name else "without it"),
    "base_rows": Field("number of images to add to", after=("base",)),
    "rows": Field("--data (and --limit) of", lambda rows: counted(rows, "picture"), _BASE),
    "rows_sha256": Field(
        "--data (other names, sizes, labels or boxes of pictures)", after=(*_BASE, "rows")
    ),
    "layers.top_k": Field("--top-k"),
    "layers.poolings": Field("--poolings", after=_MODEL),
    "layers.dense": Field("--retain-all"),
    "layers.patch_search": Field("--patch-search for", after=("layers.dense",)),
    "layers.dense_prefix": Field("--retain-prefix", after=("layers.dense",)),
    "batch_size": Field("--batch-size"),
    "unit_rows": Field("--unit-rows"),
    "device": Field("--device"),
    "threads": Field("--threads", after=("device",)),
    "thumbnail_size": Field("--thumbnail-size"),
    "model.decoder": Field("--decoder"),
    # What no option decides comes with the model or the libraries.
    "model.transform": Field("transform of the pictures", after=_SIZE),
    "model.exif": Field("treatment of EXIF orientation"),
    "layers.name": Field("list of layers", after=_MODEL),
    "layers.depth": Field("order of layers", after=(*_MODEL, "layers.name")),
    "layers.channels": Field("width of layers", after=_MODEL),
    "layers.tokens.prefix": Field("list of prefix tokens", after=_MODEL),
    "layers.tokens.height": Field("height of the patch grid", after=_SIZE),
    "layers.tokens.width": Field("width of the patch grid", after=_SIZE),
    "layers.tokens.cell_height": Field("height of patches", after=_SIZE),
    "layers.tokens.cell_width": Field("width of patches", after=_SIZE),
    "layers.tokens.top": Field("place of the patch grid", after=_SIZE),
    "layers.tokens.left": Field("place of the patch grid", after=_SIZE),
}
"""By path in the plan, in the order in which they are named; `device` is what `threads` tells."""


def differences(mine: bytes, other: bytes) -> list[str]:
    """What a serialised plan has otherwise than `mine`, such as `--top-k 32 (not 8)`."""
    here, there = _flat(json.loads(mine)), _flat(json.loads(other))
    rows = min(flat["rows"] + flat.get("base_rows", 0) for flat in (here, there))
    left, right = _cut(here, rows), _cut(there, rows)
    differing = {key for key in left | right if left.get(key) != right.get(key)}
    # A plan of another version may have fields that are not known here.
    fields = {**FIELDS, **{key: Field(key) for key in sorted(differing - FIELDS.keys())}}
    return [
        _phrase(field, here.get(key), there.get(key))
        for key, field in fields.items()
        if key in differing and differing.isdisjoint(field.after)
    ]


def _phrase(field: Field, mine: Any, other: Any) -> str:
    values = [field.shown(value) for value in (other, mine) if value is not None]
    if len(values) < 2 or max(map(len, values)) > _SHORT:
        return f"another {field.name}"
    return f"{field.name} {values[0]} (not {values[1]})"


def _cut(flat: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The fields as they are with so many rows: what exceeds them follows from their number."""
    top_k = [min(k, rows) for k in flat["layers.top_k"]]
    return {**flat, "layers.top_k": top_k, "unit_rows": min(flat.get("unit_rows", 0), rows)}


def _flat(plan: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan by path, with what follows from options as the options have it."""
    flat = _by_path(plan)
    names = flat.get("layers.name", [])
    for key in ("layers.dense", "layers.dense_prefix", "layers.patch_search"):
        kept = [name for name, chosen in zip(names, flat.get(key, []), strict=False) if chosen]
        flat[key] = ["all"] if kept == names else kept
    # One option for all layers, however many there are; not all may have a class token.
    flat["layers.top_k"] = _once(flat.get("layers.top_k", []))
    poolings = [name for each in flat.get("layers.poolings", []) for name in each]
    flat["layers.poolings"] = _once(poolings)
    flat["device"] = "cpu" if flat.get("threads") else "cuda"
    flat["rows"] = flat.get("rows", 0) - flat.get("base_rows", 0)
    return flat


def _once(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _by_path(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        # Layers: by field, so that a difference names the field.
        value = {key: [item.get(key) for item in value] for key in value[0]}
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _by_path(inner, f"{path}.{key}" if path else key)
    return flat
