"""Which of the package's extras brings a library that is not installed."""

_EXTRA_OF = {
    "blake3": "store",
    "google_crc32c": "store",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "matplotlib": "bench",
    "numba": "indexer",
    "obstore": "s3",
    "prometheus_client": "server",
    "pyarrow": "arrow",
    "safetensors": "indexer",
    "tensorstore": "store",
    "timm": "indexer",
    "torch": "indexer",
    "torchvision": "indexer",
    "zarr": "bench",
}


def mend_for(error: ModuleNotFoundError, extra: str | None = None) -> tuple[str, str] | None:
    """What is missing, and how to get it; None where that is a bug of ours.

    `extra` brings it where a caller needs more besides, but for FAISS, of which there are two.
    """
    missing = (error.name or "").partition(".")[0]
    if missing == "faiss":
        choice = "(or vitscope[faiss-gpu] where there is a CUDA device)"
        return missing, f"`pip install 'vitscope[faiss-cpu]'` {choice}"
    if missing not in _EXTRA_OF:
        return None
    return missing, f"`pip install 'vitscope[{extra or _EXTRA_OF[missing]}]'`"
