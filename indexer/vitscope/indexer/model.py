"""Making a timm model with exactly the weights that were asked for."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

import vitscope.indexer.scenes.model  # noqa: F401  (registers the embedded demo model)
from vitscope.indexer.errors import ModelError
from vitscope.indexer.grids import Size
from vitscope.store.text import counted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's weights come from: the hub, unless one of the two is given."""

    checkpoint: Path | None = None
    random: bool = False

    @property
    def source(self) -> str:
        """`pretrained`, `checkpoint` or `random`."""
        if self.checkpoint:
            return "checkpoint"
        return "random" if self.random else "pretrained"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready for inference, and how its input is made."""

    name: str
    module: nn.Module
    weights_sha256: str
    weights_source: str
    input_size: tuple[int, int]
    """Height and width in pixels."""
    dtype: torch.dtype
    """Of the forward; parameters come in float32, as layers are found by."""
    steps: tuple[Callable[[Any], Any], ...]
    """timm's evaluation transform, from a PIL image to a normalised (3, H, W) tensor."""


def load_model(
    name: str,
    weights: Weights,
    *,
    img_size: Size | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> LoadedModel:
    """Make the timm model `name` without its classifier, in evaluation mode on `device`.

    `img_size` is the height and width of its input; None takes the model's own. Raises `ModelError`
    for an unknown name, weights that cannot be had, and weights that leave a parameter unset or
    belong to another architecture.
    """
    _check_name(name)
    if weights.checkpoint and not weights.checkpoint.is_file():
        raise ModelError(f"There is no checkpoint file {weights.checkpoint}.")
    module = _create(name, weights, img_size)
    # Without the argument timm would take the size that the weights were trained at.
    size = {"input_size": (3, *img_size)} if img_size else {}
    data = resolve_model_data_config(module, args=size)  # type: ignore[no-untyped-call]
    if data["input_size"][0] != 3:
        channels = counted(data["input_size"][0], "colour channel")
        raise ModelError(f"{name} takes {channels}; pictures have 3.")
    # Of the weights as they came, before any change of dtype.
    digest = weights_digest(module)
    transform = create_transform(**data, is_training=False)
    return LoadedModel(
        name=name,
        module=module.eval().requires_grad_(False).to(device),
        weights_sha256=digest,
        weights_source=weights.source,
        input_size=(data["input_size"][1], data["input_size"][2]),
        dtype=DTYPES[dtype],
        steps=tuple(transform.transforms),
    )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer, by name."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`vitscope models` lists them."
        raise ModelError(f"timm {timm.__version__} knows no model {name!r}; {hint}")
    tags = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in tags:
        known = ", ".join(sorted(cfg.partition(".")[2] for cfg in tags)) or "none"
        raise ModelError(f"{architecture} has no pretrained weights {tag!r}; it has: {known}.")


def _create(name: str, weights: Weights, img_size: Size | None) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": 0}
    if img_size:
        arguments["img_size"] = img_size
    if weights.checkpoint:
        # Through the overlay timm applies the family's own checkpoint filter to a local file.
        arguments["pretrained_cfg_overlay"] = {"file": str(weights.checkpoint)}
    torch.manual_seed(0)
    if weights.random:
        return build(name, pretrained=False, **arguments)
    # The hub's client tells of every retry; one sentence at the end says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with _recorded_loads() as loads:
        try:
            module = build(name, pretrained=True, **arguments)
        except ModelError:
            raise
        except Exception as error:
            raise _weights_error(name, weights, error) from error
    _check_complete(name, weights, loads)
    return module


def build(name: str, **arguments: Any) -> nn.Module:
    """`timm.create_model`, also with an `img_size` where the model has no such argument.

    Raises `ModelError` for a size that the model cannot have.
    """
    try:
        module: nn.Module = timm.create_model(name, **arguments)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        # It takes pictures of any size as it is, or its first forward will tell.
        del arguments["img_size"]
        module = timm.create_model(name, **arguments)
    except AssertionError as error:
        if "img_size" not in arguments:
            raise
        height, width = arguments["img_size"]
        why = str(error).rstrip(".") or "timm refuses"
        raise ModelError(
            f"{name} cannot be made for {height}x{width} pixels ({why}); give another --img-size."
        ) from error
    return module


_Load = Any


@contextmanager
def _recorded_loads() -> Iterator[list[_Load]]:
    """Collect what `load_state_dict` reports, which timm only writes to a log."""
    original = nn.Module.load_state_dict
    loads: list[_Load] = []

    def load_state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        loads.append(result)
        return result

    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def _check_complete(name: str, weights: Weights, loads: Sequence[_Load]) -> None:
    file = weights.checkpoint or "the hub"
    if not loads:
        raise ModelError(f"No weights were loaded for {name} from {file}.")
    missing = [key for load in loads for key in load.missing_keys]
    # The classifier is left out on purpose; everything else in the file must have a place.
    unexpected = [
        key
        for load in loads
        for key in load.unexpected_keys
        if not key.startswith(("head", "fc.", "classifier"))
    ]
    for keys, what in ((missing, "lacks"), (unexpected, "has no place for")):
        if keys:
            subject = f"The checkpoint {file}" if what == "lacks" else f"{name}"
            other = name if what == "lacks" else f"checkpoint {file}"
            raise ModelError(
                f"{subject} {what} {counted(len(keys), 'tensor')} of {other}, such as {keys[0]}; "
                "it is of another architecture."
            )


def _weights_error(name: str, weights: Weights, error: Exception) -> ModelError:
    if not weights.checkpoint:
        return ModelError(
            f"The pretrained weights of {name} could not be fetched from the hub "
            f"({type(error).__name__}); give a local file with --checkpoint FILE."
        )
    if "size mismatch" in str(error) or "shape" in str(error):
        return ModelError(
            f"The checkpoint {weights.checkpoint} does not fit {name}: its tensors have other "
            "shapes; give the checkpoint of this architecture (and its --img-size)."
        )
    return ModelError(
        f"The checkpoint {weights.checkpoint} cannot be loaded into {name} "
        f"({type(error).__name__}); give a .safetensors or .pth file of this architecture."
    )
