"""What an indexing run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitscope.indexer import decoders
from vitscope.indexer.errors import IndexingError, OutputError
from vitscope.indexer.grids import Size
from vitscope.indexer.model import DTYPES, Weights
from vitscope.store.manifest import POOLINGS

_LONGEST_SIDE = 4096
"""Of a model's input in pixels: more is a slip of the hand, and takes a machine's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is asked to do; picklable, for its worker processes."""

    model: str
    data: Path
    out: Path
    append: bool = False
    """Add the pictures to the index that `out` holds."""
    weights: Weights = field(default_factory=Weights)
    img_size: Size | None = None
    """Height and width of the model's input in pixels; None takes the model's own."""
    limit: int | None = None
    """Index the first so many images of the list only."""
    split: str | None = None
    """Which split of a Hugging Face data set; None where it has one only."""
    boxes: Path | None = None
    """Folder of PASCAL VOC annotations, as ImageNet has them."""
    top_k: int = 32
    poolings: tuple[str, ...] = ()
    """Which poolings to keep, `mean` among them; empty for all that a layer can have."""
    retain_all: tuple[str, ...] = ()
    """Layers of which all activations are kept; `all` means every layer."""
    patch_search: bool = True
    """Make FAISS indexes of the patches of these layers."""
    retain_prefix: tuple[str, ...] = ()
    """Layers of which the prefix tokens' activations are kept; `all` means every layer."""
    batch_size: int | None = None
    """Images of a forward; None takes 32 on a processor, elsewhere what the device has memory for,
    or what an unfinished run or the index to append to had."""
    unit_rows: int | None = None
    """Rows per unit, a multiple of `batch_size`; None takes 1,024, or 4,096 of many rows."""
    decoder: str = "pillow"
    """How pictures are read, one of `vitscope.indexer.decoders.NAMES`."""
    dtype: str = "float32"
    device: str = ""
    """`cpu`, `cuda`, `cuda:1`; empty takes CUDA where there is one."""
    workers: int | None = None
    """Processes that index units side by side; None takes one, or all that a cluster has room for.
    """
    ray: str = ""
    """`local`, or the address of a Ray cluster that the workers run on."""
    threads: int | None = None
    """CPU threads of each; None shares the cores out, or takes what an unfinished run had."""
    thumbnail_size: int = 256
    """Longer side of the stored pictures in pixels; 0 stores none."""

    @property
    def processes(self) -> int:
        """Workers on this machine."""
        return self.workers or 1

    def check(self) -> None:
        """Raise `IndexingError` for values that cannot be meant."""
        for name in ("top_k", "batch_size", "unit_rows", "workers", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise IndexingError(f"--{name.replace('_', '-')} must be at least 1.")
        check_img_size(self.img_size)
        if self.thumbnail_size < 0:
            raise IndexingError("--thumbnail-size must be 0 or more pixels.")
        if self.dtype not in DTYPES:
            raise IndexingError(f"--dtype must be one of {', '.join(DTYPES)}.")
        decoders.check(self.decoder)
        for name in self.poolings:
            if name not in POOLINGS:
                raise IndexingError(
                    f"--poolings names {name!r}, which is no pooling; choose from "
                    f"{', '.join(POOLINGS)}."
                )
        if self.poolings and "mean" not in self.poolings:
            raise IndexingError(
                "--poolings must have mean among them: similar images and correlations rest on it."
            )
        if self.unit_rows and self.batch_size and self.unit_rows % self.batch_size:
            raise IndexingError(
                f"--unit-rows ({self.unit_rows}) must be a multiple of "
                f"--batch-size ({self.batch_size})."
            )
        parent = self.out.absolute().parent
        if not parent.is_dir():
            raise OutputError(f"The folder {parent} for --out does not exist.")


def check_img_size(size: Size | None) -> None:
    """Raise `IndexingError` for an input of no pixels, or of more than any model takes."""
    if size is None:
        return
    if min(size) < 1:
        raise IndexingError("--img-size must be at least 1 pixel.")
    if max(size) > _LONGEST_SIDE:
        raise IndexingError(f"--img-size must be at most {_LONGEST_SIDE} pixels a side.")
