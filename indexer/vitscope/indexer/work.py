"""The working folder of a run: plan, staged arrays, finished units and their receipts.

INDEX/building/plan.json          what is being made; a resumed run must agree
INDEX/building/staged/…           becomes the generation; units write their score shards into it
INDEX/building/units/000003/…     a unit's row records, pictures and candidates
INDEX/building/units/000003.json  its receipt, written last: the unit is done
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitscope.indexer.errors import OutputError
from vitscope.indexer.plan import Plan, Unit, differences
from vitscope.indexer.topk import Candidates
from vitscope.store import layout
from vitscope.store.boxes import Box
from vitscope.store.files import PARTIAL, sync_directory, write_atomically
from vitscope.store.generation import current_name
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.rows import RowRecord

_PLAN = "plan.json"
_LOCK = "lock"
_REMOVED = ".building.removed"
_OURS = {layout.CURRENT, layout.GENERATIONS, layout.WORK, _REMOVED}
_WORK_ENTRIES = {_PLAN, _LOCK, "staged", "units"}


def check_output(index: Path) -> None:
    """Raise `OutputError` unless `index` is free for a run, or holds an unfinished one."""
    if not index.exists():
        return
    if not index.is_dir():
        raise OutputError(f"{index} is a file; give a folder that does not exist yet with --out.")
    here, inside = _entries(index), _entries(index / layout.WORK)
    unfinished, published = _PLAN in inside, layout.CURRENT in here
    # What is not ours would be in the way, or be removed with the working folder.
    foreign = (here - _OURS) | (inside - _WORK_ENTRIES)
    if foreign or (layout.GENERATIONS in here and not unfinished and not published):
        raise OutputError(f"{index} holds something else; give an empty or new folder with --out.")
    if published and not unfinished:
        raise OutputError(
            f"{index} holds a published index already (generation {current_name(index)}); "
            "give another folder with --out."
        )


def sweep(index: Path) -> None:
    """Remove what is left of a working folder whose run was published and then cut off."""
    if (index / layout.CURRENT).is_file():
        shutil.rmtree(index / _REMOVED, ignore_errors=True)


def _entries(folder: Path) -> set[str]:
    """Names in `folder`, without what an interrupted write left there."""
    if not folder.is_dir():
        return {folder.name} if folder.exists() else set()
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if not name.endswith(PARTIAL)}


class Work:
    """One run's working folder."""

    def __init__(self, index: Path, plan: Plan) -> None:
        self.index = index
        self.plan = plan
        self.path = index / layout.WORK
        self.staged = self.path / "staged"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only writer of the index; raises `OutputError` where another one is."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise OutputError(
                    f"{self.index} is being written by process {file.read().strip() or '?'}; "
                    "wait for it or stop it."
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    @property
    def begun(self) -> bool:
        """Whether an earlier run left its plan here."""
        return (self.path / _PLAN).is_file()

    def begin(self) -> None:
        """Record the plan, or check that the unfinished run here has the same."""
        path = self.path / _PLAN
        mine = self.plan.to_json()
        if path.exists():
            if fields := differences(mine, path.read_bytes()):
                raise OutputError(
                    f"{self.index} holds an unfinished run that differs in {', '.join(fields)}; "
                    "run its own command again to finish it, or give another folder with --out."
                )
        else:
            write_atomically(path, mine)
        (self.path / "units").mkdir(exist_ok=True)

    def done(self, unit: Unit) -> bool:
        """Whether the unit's receipt is there."""
        return self._receipt(unit).is_file()

    def finish_unit(
        self, unit: Unit, records: list[RowRecord], thumbnails: list[bytes], saturated: int
    ) -> None:
        """Write what is left of a unit, then its receipt."""
        folder = self._folder(unit)
        table = {
            "rows": [asdict(record) for record in records],
            "thumbnails": [len(thumbnail) for thumbnail in thumbnails],
        }
        write_atomically(folder / "rows.json", json.dumps(table).encode())
        write_atomically(folder / "thumbnails.bin", b"".join(thumbnails))
        write_atomically(self._receipt(unit), json.dumps({"saturated": saturated}).encode())

    def saturated(self, unit: Unit) -> int:
        """Scores of a finished unit that lie beyond the range of float16."""
        return int(json.loads(self._receipt(unit).read_bytes())["saturated"])

    def records(self, unit: Unit) -> tuple[list[RowRecord], list[int]]:
        """Row records and thumbnail lengths of a finished unit."""
        table = json.loads((self._folder(unit) / "rows.json").read_bytes())
        return [_record(row) for row in table["rows"]], table["thumbnails"]

    def thumbnails(self, unit: Unit) -> bytes:
        """The pictures of a finished unit, joined."""
        return (self._folder(unit) / "thumbnails.bin").read_bytes()

    def write_candidates(
        self, unit: Unit, layer: LayerRecord, pooling: Pooling, found: Candidates
    ) -> None:
        """Store a unit's candidates of one layer and pooling."""
        folder = self._folder(unit)
        folder.mkdir(exist_ok=True)
        for part, values in (("keys", found.keys), ("maps", found.maps)):
            path = folder / f"{layer.name}.{pooling}.{part}.npy"
            with path.open("wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(folder)

    def candidate_keys(
        self, unit: Unit, layer: LayerRecord, pooling: Pooling
    ) -> npt.NDArray[np.void]:
        """Channel, row and score of a finished unit's candidates."""
        keys: npt.NDArray[np.void] = np.load(
            self._folder(unit) / f"{layer.name}.{pooling}.keys.npy"
        )
        return keys

    def candidate_maps(
        self, unit: Unit, layer: LayerRecord, pooling: Pooling
    ) -> npt.NDArray[np.float16]:
        """Patch maps (M, H * W) of a finished unit's candidates, memory-mapped."""
        maps: npt.NDArray[np.float16] = np.load(
            self._folder(unit) / f"{layer.name}.{pooling}.maps.npy", mmap_mode="r"
        )
        return maps

    def remove(self) -> None:
        """Drop the folder once the generation is published.

        It goes in one step: a folder half removed could pass for another run's.
        """
        removed = self.index / _REMOVED
        shutil.rmtree(removed, ignore_errors=True)
        self.path.rename(removed)
        shutil.rmtree(removed)

    def _folder(self, unit: Unit) -> Path:
        return self.path / "units" / unit.name

    def _receipt(self, unit: Unit) -> Path:
        return self.path / "units" / f"{unit.name}.json"


def _record(row: dict[str, Any]) -> RowRecord:
    return RowRecord(**{**row, "boxes": tuple(Box(**box) for box in row["boxes"])})
