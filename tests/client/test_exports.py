"""What the package shows, and what it must not bring along."""

import json
import subprocess
import sys
import types

import pytest

import vitscope.client
from vitscope.client import aio, client, entries, errors, filters, pictures, results

EVERY_MODULE = """
import importlib, json, pkgutil, sys
import vitscope.client
for module in pkgutil.walk_packages(vitscope.client.__path__, "vitscope.client."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


def defined_in(module: types.ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_all_names_every_public_class() -> None:
    # What sentences are made of is no exception.
    expected = defined_in(errors) - {"Server", "Words"}
    expected |= defined_in(results) | defined_in(entries) | defined_in(client) | defined_in(aio)
    expected |= defined_in(filters) | {"Retries", "Tls", "open_local", "request_id"}
    assert set(vitscope.client.__all__) == expected


@pytest.mark.parametrize("module", [vitscope.client, pictures])
def test_all_is_sorted_and_there(module: types.ModuleType) -> None:
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_no_heavy_library_and_no_other_room_is_imported() -> None:
    run = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert "vitscope.client.commands.gallery" in loaded
    assert not loaded & {
        "torch",
        "faiss",
        "zarr",
        "tensorstore",
        "blake3",
        "timm",
        "pyarrow",
        "pandas",
    }
    assert not loaded & {"vitscope.store", "vitscope.indexer", "vitscope.server"}
