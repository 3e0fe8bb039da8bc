"""Where everything lies in an index directory, and how each array is stored.

INDEX/CURRENT                     name of the published generation
INDEX/generations/NAME/           immutable
    manifest.json
    arrays.zarr/rows/…            one group: the row table
    arrays.zarr/layers/LAYER/…    one group per layer: scores and top images with maps
    faiss/LAYER.faiss             nearest images by mean-pooled activations
    faiss/LAYER.patches.faiss     nearest patches, where all activations are kept
    seals/LAYER.npz, rows.npz     checksums of all chunks of a group's arrays
INDEX/building/                   an indexing run that has not been published yet
INDEX/directions/LAYER/NAME.npy   directions that were put beside the index
"""

from __future__ import annotations

from pathlib import Path

from vitscope.store.arrays import ArraySpec, leading_spec
from vitscope.store.manifest import QUANTILES, LayerRecord, Pooling

CURRENT = "CURRENT"
GENERATIONS = "generations"
PULLING = ".pull.partial"
"""Folder beside the generations, of one that is being brought from elsewhere."""
WORK = "building"
DIRECTIONS = "directions"
LOCK = "lock"
MANIFEST = "manifest.json"
ARRAYS = "arrays.zarr"
SEALS = "seals"
BOX_EDGES = f"{ARRAYS}/rows/box_edge/zarr.json"
"""Metadata of an array that is there where any row has a box."""
VIEWS = f"{ARRAYS}/rows/view/zarr.json"
"""Metadata of an array that indexes of format version 1 do not have."""

CORRELATION = "correlation_mean"
"""Array of the correlation between the channels of a layer, by mean-pooled score."""
ACTIVATIONS = "activations"
"""Array of all activations of a layer, where they are all kept."""
PREFIX = "prefix_activations"
"""Array of the prefix tokens' activations of a layer, where they are kept."""

# Images that share an inner chunk of the row-major scores, and of dense activations.
_SCORE_ROWS = 8
_DENSE_ROWS = 1
_DENSE_CHANNELS = 64
# Tokens before channels within a chunk, as the model gives them: writing exchanges no axes, and
# reading does it for the few maps that were asked for.
_DENSE_ORDER = (0, 2, 1)
# Images of a shard of dense activations.
_DENSE_SHARD_ROWS = 64

# Channels that share an inner chunk of scores: one channel over 1,024 rows is 2 KB, too little
# to read or check at once.
SCORE_CHANNELS = 8


def rows_path(generation: Path) -> Path:
    """The group of the row table."""
    return generation / ARRAYS / "rows"


def layer_path(generation: Path, layer: str) -> Path:
    """The group of a layer's arrays."""
    return generation / ARRAYS / "layers" / layer


def faiss_file(layer: str) -> str:
    """A layer's FAISS index, relative to the generation's folder."""
    return f"faiss/{layer}.faiss"


def patches_faiss_file(layer: str) -> str:
    """The FAISS index of a layer's patches, relative to the generation's folder."""
    return f"faiss/{layer}.patches.faiss"


def seals_file(group: str) -> str:
    """The seals of a group (`rows` or a layer), relative to the generation's folder."""
    return f"{SEALS}/{group}.npz"


def group_of(file: str) -> str:
    """The group, `rows` or a layer, to whose arrays a file of a generation belongs; else empty."""
    top, *rest = file.split("/")
    if top == ARRAYS and rest[0] == "rows" and len(rest) > 2:
        return "rows"
    return rest[1] if top == ARRAYS and rest[0] == "layers" and len(rest) > 3 else ""


def scores_name(pooling: Pooling) -> str:
    """Array of all images' scores."""
    return f"scores_{pooling}"


def row_scores_name(pooling: Pooling) -> str:
    """Array of the same scores the other way round: all channels of an image together."""
    return f"row_scores_{pooling}"


def statistic_name(name: str, pooling: Pooling) -> str:
    """Array of a statistic (`mean`, `variance`, `active`, `quantiles`) of the scores."""
    return f"score_{name}_{pooling}"


def top_rows_name(pooling: Pooling) -> str:
    """Array of the rows of the top images; -1 where there are fewer images than ranks."""
    return f"top_rows_{pooling}"


def top_scores_name(pooling: Pooling) -> str:
    """Array of the scores of the top images."""
    return f"top_scores_{pooling}"


def top_maps_name(pooling: Pooling) -> str:
    """Array of the patch maps of the top images."""
    return f"top_maps_{pooling}"


def scores_spec(layer: LayerRecord, rows: int, unit_rows: int) -> ArraySpec:
    """Scores (C, N): a shard is all channels of one unit of rows."""
    padded = -(-layer.channels // SCORE_CHANNELS) * SCORE_CHANNELS
    return ArraySpec(
        "float16",
        (layer.channels, rows),
        ("channel", "row"),
        (padded, unit_rows),
        (SCORE_CHANNELS, unit_rows),
    )


def row_scores_spec(layer: LayerRecord, rows: int, unit_rows: int) -> ArraySpec:
    """Scores (N, C): a shard is one unit of rows with all channels."""
    chunk = _divisor(unit_rows, _SCORE_ROWS)
    return ArraySpec(
        "float16",
        (rows, layer.channels),
        ("row", "channel"),
        (unit_rows, layer.channels),
        (chunk, layer.channels),
    )


def activations_spec(layer: LayerRecord, rows: int, unit_rows: int) -> ArraySpec:
    """All activations (N, C, T), tokens in the order of the layout; shards of whole images."""
    shard = _divisor(unit_rows, _DENSE_SHARD_ROWS)
    tokens = layer.tokens.tokens
    padded = -(-layer.channels // _DENSE_CHANNELS) * _DENSE_CHANNELS
    return ArraySpec(
        "float16",
        (rows, layer.channels, tokens),
        ("row", "channel", "token"),
        (shard, padded, tokens),
        (_divisor(shard, _DENSE_ROWS), _DENSE_CHANNELS, tokens),
        _DENSE_ORDER,
    )


def prefix_spec(layer: LayerRecord, rows: int, unit_rows: int) -> ArraySpec:
    """Activations of the prefix tokens (N, P, C), in the order of the layout."""
    rest = (len(layer.tokens.prefix), layer.channels)
    return ArraySpec(
        "float16",
        (rows, *rest),
        ("row", "prefix_token", "channel"),
        (unit_rows, *rest),
        (_divisor(unit_rows, _SCORE_ROWS), *rest),
    )


def layer_shapes(layer: LayerRecord, rows: int) -> dict[str, tuple[int, ...]]:
    """All arrays of a layer by name, with their shapes."""
    channels, tokens = layer.channels, layer.tokens
    kept = (channels, layer.top_k)
    shapes: dict[str, tuple[int, ...]] = {CORRELATION: (channels, channels)}
    for pooling in layer.poolings:
        shapes |= {
            scores_name(pooling): (channels, rows),
            row_scores_name(pooling): (rows, channels),
            top_rows_name(pooling): kept,
            top_scores_name(pooling): kept,
            top_maps_name(pooling): (*kept, tokens.height, tokens.width),
            statistic_name("quantiles", pooling): (channels, len(QUANTILES)),
        }
        for name in ("mean", "variance", "active"):
            shapes[statistic_name(name, pooling)] = (channels,)
    if layer.dense:
        shapes[ACTIVATIONS] = (rows, channels, tokens.tokens)
    if layer.dense_prefix:
        shapes[PREFIX] = (rows, len(tokens.prefix), channels)
    return shapes


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(most, 0, -1) if number % divisor == 0)


def top_rows_spec(layer: LayerRecord) -> ArraySpec:
    """Rows of the top images (C, K), best first."""
    return leading_spec("int64", (layer.channels, layer.top_k), ("channel", "rank"), 16)


def top_scores_spec(layer: LayerRecord) -> ArraySpec:
    """Scores of the top images (C, K), best first."""
    return leading_spec("float16", (layer.channels, layer.top_k), ("channel", "rank"), 16)


def top_maps_spec(layer: LayerRecord) -> ArraySpec:
    """Patch maps of the top images (C, K, H, W); a channel is one inner chunk."""
    shape = (layer.channels, layer.top_k, layer.tokens.height, layer.tokens.width)
    return leading_spec("float16", shape, ("channel", "rank", "y", "x"), 1)
