"""Makes the golden index of the current format version: `python tests/make_golden.py [FOLDER]`.

FOLDER (default tests/data/golden-vN, N being the version) must not exist yet. It gets `index`, a
small published index that holds everything an index can; `truth.npz`, the dense activations
(N, T, C) float16 it was made of; and `truth.json`, its model, layers, rows and pictures.

A golden index is made once: it proves that later readers read what this writer wrote.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import build

from vitscope.store.manifest import FORMAT_VERSION

DATA = Path(__file__).parent / "data"


def make(folder: Path) -> None:
    """Write the golden index and its truth into the new folder `folder`."""
    folder.mkdir(parents=True)
    truth = build(folder / "index", rows=40, complete=True)
    arrays: dict[str, Any] = dict(truth.activations)
    np.savez_compressed(folder / "truth.npz", **arrays)
    body = {
        "generation": truth.generation,
        "model": asdict(truth.manifest.model),
        "layers": [asdict(layer) for layer in truth.manifest.layers],
        "records": [asdict(record) for record in truth.records],
        "thumbnails": [hashlib.sha256(picture).hexdigest() for picture in truth.thumbnails],
    }
    text = json.dumps(body, ensure_ascii=False, indent=1)
    (folder / "truth.json").write_text(f"{text}\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Exit code 0, or 2 where the folder is there already."""
    folder = Path(arguments[0]) if arguments else DATA / f"golden-v{FORMAT_VERSION}"
    if folder.exists():
        print(f"{folder} exists; a golden index is not made twice.", file=sys.stderr)
        return 2
    make(folder)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
