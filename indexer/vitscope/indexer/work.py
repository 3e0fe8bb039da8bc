"""The working folder of a run: plan, staged arrays, finished units and their receipts.

INDEX/building/plan.json          what is being made; a resumed run must agree
INDEX/building/staged/…           becomes the generation; units write their score shards into it
INDEX/building/units/000003/…     a unit's row records, pictures and candidates
INDEX/building/units/000003.json  its receipt with the digests of all it wrote, written last
INDEX/building/shards/0-of-3      held by the run that does every third unit from the first on
INDEX/building/beginning          held by a shard while it makes what is missing of all this
INDEX/building/actors/…           each held by an actor on a Ray cluster as long as it may write
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from vitscope.indexer.differences import differences
from vitscope.indexer.errors import OutputError
from vitscope.indexer.largefile import LargeFile
from vitscope.indexer.plan import Plan, Shard, Unit
from vitscope.indexer.topk import KEY, Candidates
from vitscope.store import layout
from vitscope.store.boxes import Box
from vitscope.store.files import (
    PARTIAL,
    digest_bytes,
    digest_file,
    sync_directory,
    write_atomically,
)
from vitscope.store.generation import current_name, generation_names
from vitscope.store.lock import holding, in_turn
from vitscope.store.manifest import LayerRecord, Pooling
from vitscope.store.rows import RowRecord
from vitscope.store.seals import Seal, seal_files

_PLAN = "plan.json"
_STAGED = "staged"
_REMOVED = ".building.removed"
_OURS = {
    *(layout.CURRENT, layout.GENERATIONS, layout.LOCK, layout.WORK, layout.DIRECTIONS),
    _REMOVED,
}
_SHARDS = "shards"
_SHARD_NAME = re.compile(r"(\d+)-of-(\d+)")
_BEGINNING = "beginning"
_ACTORS = "actors"
_ACTORS_END_SECONDS = 30.0
_WORK_ENTRIES = {_PLAN, _STAGED, _SHARDS, _BEGINNING, _ACTORS, "units"}


def check_output(index: Path, *, append: bool = False) -> None:
    """Raise `OutputError` unless `index` is free for a run, or holds an unfinished one.

    To append to, it has to hold a published index.
    """
    if index.exists() and not index.is_dir():
        raise OutputError(f"{index} is a file; give a folder that does not exist yet with --out.")
    here, inside = _entries(index), _entries(index / layout.WORK)
    unfinished, published = _PLAN in inside, layout.CURRENT in here
    # What is not ours would be in the way, or be removed with the working folder.
    foreign = (here - _OURS) | (inside - _WORK_ENTRIES)
    if append and not published:
        raise OutputError(
            f"{index} holds no published index that pictures could be added to; finish or make one "
            "without --append."
        )
    lost = layout.GENERATIONS in here and not unfinished and not published
    if foreign or (lost and not generation_names(index / layout.GENERATIONS)):
        raise OutputError(f"{index} holds something else; give an empty or new folder with --out.")
    if lost:
        raise OutputError(
            f"{layout.CURRENT} of the index {index} is missing; restore it from a copy, or give "
            "another folder with --out."
        )
    if published and not unfinished and not append:
        raise OutputError(
            f"{index} holds a published index already (generation {current_name(index)}); "
            "add pictures to it with --append, or give another folder with --out."
        )


def left_over(index: Path) -> bool:
    """Whether a run that was published was cut off while it removed its working folder."""
    return (index / layout.CURRENT).is_file() and (index / _REMOVED).exists()


def sweep(index: Path) -> None:
    """Remove what such a run left."""
    shutil.rmtree(index / _REMOVED, ignore_errors=True)


def recorded_plan(index: Path) -> dict[str, Any] | None:
    """The plan of the unfinished run at `index`, as JSON; None where there is none."""
    path = index / layout.WORK / _PLAN
    if not path.is_file():
        return None
    try:
        plan: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError:
        raise OutputError(
            f"The plan of the unfinished run in {index} is damaged; remove {path.parent} to start "
            "it anew."
        ) from None
    return plan


def open_work(index: Path) -> Work:
    """The unfinished run at `index`; raises `OutputError` where there is none."""
    recorded = recorded_plan(index)
    if recorded is None and (index / layout.CURRENT).is_file():
        raise OutputError(
            f"{index} has nothing to merge: generation {current_name(index)} is published."
        )
    if recorded is None:
        raise OutputError(
            f"{index} has no units to merge; `vitscope index --shard` with --out {index} makes "
            "them."
        )
    try:
        work = Work(index, Plan.from_json(recorded))
        if not work.plan.units:
            raise ValueError("a run without units")
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise OutputError(
            f"The plan of the unfinished run in {index} is of another vitscope, or damaged; finish "
            f"it with that vitscope, or remove {index / layout.WORK} to start it anew."
        ) from None
    return work


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
        self.staged = self.path / _STAGED

    def begin(self) -> None:
        """Record the plan, or check that the unfinished run here has the same."""
        path = self.path / _PLAN
        self._wait_for_actors()
        mine = self.plan.to_json()
        base = self.plan.base
        if base and not path.exists() and (newest := current_name(self.index)) != base:
            raise OutputError(
                f"Another run has published {newest} in {self.index} meanwhile; run the same "
                "command again to add to that."
            )
        if path.exists():
            if others := differences(mine, path.read_bytes()):
                raise OutputError(
                    f"{self.index} holds an unfinished run with {', '.join(others)}; run its own "
                    "command again to finish it, or give another folder with --out."
                )
        else:
            self.path.mkdir(exist_ok=True)
            write_atomically(path, mine)
        (self.path / "units").mkdir(exist_ok=True)

    def finished(self, of: Sequence[Unit]) -> tuple[list[Unit], dict[Unit, str]]:
        """Units whose receipt is there and right, and what is wrong with those whose is not.

        Every byte that a receipt speaks of is read; a unit that fails is to be done again.
        """
        units = [unit for unit in of if self._receipt(unit).is_file()]
        with ThreadPoolExecutor() as pool:
            wrong = list(pool.map(self._wrong, units))
        damaged = {unit: why for unit, why in zip(units, wrong, strict=True) if why}
        for unit in damaged:
            self._receipt(unit).unlink()
        return [unit for unit in units if unit not in damaged], damaged

    def _wrong(self, unit: Unit) -> str:
        """What is wrong with a unit's files; empty where they are as its receipt says."""
        try:
            for name, seal in self._seals(unit):
                path = self.path / name
                if not path.is_file():
                    return f"{name} is missing"
                if path.stat().st_size != seal.bytes or digest_file(path) != seal.blake3:
                    return f"{name} has changed"
        except (ValueError, KeyError, TypeError):
            return "their receipt cannot be read"
        return ""

    def finish_unit(
        self,
        unit: Unit,
        records: Sequence[RowRecord],
        thumbnails: Sequence[bytes],
        *,
        saturated: int,
        shards: Iterable[str],
        sealed: Mapping[str, Seal],
    ) -> None:
        """Write what is left of a unit, then its receipt.

        `shards` are files below `staged`; `sealed` are the seals of all candidates.
        """
        folder = self._folder(unit)
        table = {
            "rows": [asdict(record) for record in records],
            "thumbnails": [len(thumbnail) for thumbnail in thumbnails],
        }
        write_atomically(folder / "rows.json", json.dumps(table).encode())
        write_atomically(folder / "thumbnails.bin", b"".join(thumbnails))
        sync_directory(folder.parent)
        mine = sorted({f"units/{unit.name}/{path.name}" for path in folder.iterdir()} - set(sealed))
        seals = seal_files(self.path, [*(f"{_STAGED}/{name}" for name in shards), *mine])
        seals |= sealed
        receipt = {
            "unit": unit.number,
            "saturated": saturated,
            "files": {name: asdict(seal) for name, seal in seals.items()},
        }
        body = json.dumps(receipt).encode()
        write_atomically(self._receipt(unit), digest_bytes(body).encode() + b"\n" + body)

    def start_unit(self, unit: Unit) -> None:
        """Make an empty folder for a unit; what an interrupted try left goes."""
        shutil.rmtree(self._folder(unit), ignore_errors=True)
        self._folder(unit).mkdir(parents=True)

    def saturated(self, unit: Unit) -> int:
        """Scores of a finished unit that lie beyond the range of float16."""
        return int(self._read_receipt(unit)["saturated"])

    def seals(self) -> dict[str, Seal]:
        """What finished units wrote below `staged`, by name there."""
        prefix = f"{_STAGED}/"
        return {
            name.removeprefix(prefix): seal
            for unit in self.plan.units
            for name, seal in self._seals(unit)
            if name.startswith(prefix)
        }

    def records(self, unit: Unit) -> list[RowRecord]:
        """Row records of a finished unit."""
        return [_record(row) for row in self._table(unit)["rows"]]

    def thumbnail_lengths(self, unit: Unit) -> list[int]:
        """Lengths in bytes of the pictures of a finished unit."""
        lengths: list[int] = self._table(unit)["thumbnails"]
        return lengths

    def thumbnails(self, unit: Unit) -> bytes:
        """The pictures of a finished unit, joined."""
        return (self._folder(unit) / "thumbnails.bin").read_bytes()

    def write_candidates(
        self, unit: Unit, layer: LayerRecord, pooling: Pooling, found: Candidates
    ) -> dict[str, Seal]:
        """Store a unit's candidates of one layer and pooling; gives the seals of the files."""
        folder = self._folder(unit)
        shape = len(found.keys), found.kept.shape[1]
        keys, maps = (f"{layer.name}.{pooling}.{part}.npy" for part in ("keys", "maps"))
        return {
            f"units/{unit.name}/{keys}": _write_npy(
                folder / keys, [found.keys], found.keys.shape, KEY
            ),
            f"units/{unit.name}/{maps}": _write_npy(
                folder / maps, found.blocks(), shape, np.float16
            ),
        }

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

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Wait until no other shard begins, so that one makes what the others find."""
        self.path.mkdir(exist_ok=True)
        with in_turn(self.path / _BEGINNING):
            yield

    @contextmanager
    def held(self, shard: Shard) -> Iterator[int]:
        """Be the only run that does this shard; gives the descriptor that holds it.

        Raises `OutputError` where another does, or others share the run out otherwise. Only to be
        entered while `beginning`.
        """
        folder = self.path / _SHARDS
        folder.mkdir(exist_ok=True)
        named = ((path, _SHARD_NAME.fullmatch(path.name)) for path in folder.iterdir())
        for path in [path for path, name in named if name and int(name[2]) != shard.count]:
            with holding(path) as free:
                if free is None:
                    raise OutputError(
                        f"Shard {path.name.replace('-of-', '/')} of {self.index} is being done by "
                        f"another process; wait for it, or share out {shard} likewise."
                    )
                path.unlink()
        with holding(folder / f"{shard.number}-of-{shard.count}") as held:
            if held is None:
                raise OutputError(
                    f"Shard {shard} of {self.index} is being done by another process; wait for it "
                    "or stop it."
                )
            yield held

    @contextmanager
    def actor(self, name: str) -> Iterator[None]:
        """Be the actor of that name, which may write as long as it holds a file.

        Raises `OutputError` where it was given up, or the run's folder is not to be seen here.
        """
        try:
            with holding(self._actors / name) as held:
                if held is None:
                    raise OutputError(f"Actor {name} was given up.")
                yield
        except FileNotFoundError:
            raise OutputError(
                f"{self.path} is not on every node of the cluster; give a folder for --out that "
                "all of them share."
            ) from None

    @contextmanager
    def gone(self, name: str) -> Iterator[bool]:
        """Whether the actor of that name has ended; inside the block it cannot begin either."""
        self._actors.mkdir(exist_ok=True)
        with holding(self._actors / name) as held:
            yield held is not None

    def remove(self) -> None:
        """Drop the folder once the generation is published.

        It goes in one step: a folder half removed could pass for another run's.
        """
        removed = self.index / _REMOVED
        shutil.rmtree(removed, ignore_errors=True)
        self.path.rename(removed)
        shutil.rmtree(removed)

    @property
    def _actors(self) -> Path:
        return self.path / _ACTORS

    def _wait_for_actors(self) -> None:
        """Wait until no actor of an earlier run writes; they end soon after their run."""
        deadline = time.monotonic() + _ACTORS_END_SECONDS
        for path in self._actors.glob("*"):
            while True:
                with holding(path) as held:
                    if held is not None:
                        path.unlink()
                        break
                if time.monotonic() > deadline:
                    raise OutputError(
                        f"Workers of an earlier run still write in {self.index}; stop that Ray "
                        "cluster, or wait, and run the same command again."
                    )
                time.sleep(0.05)

    def _seals(self, unit: Unit) -> Iterator[tuple[str, Seal]]:
        files: Mapping[str, Any] = self._read_receipt(unit)["files"]
        return ((name, Seal(**seal)) for name, seal in files.items())

    def _read_receipt(self, unit: Unit) -> dict[str, Any]:
        digest, _, body = self._receipt(unit).read_bytes().partition(b"\n")
        if digest != digest_bytes(body).encode():
            raise ValueError("the receipt is not what was written")
        receipt: dict[str, Any] = json.loads(body)
        if receipt["unit"] != unit.number:
            raise ValueError("the receipt is another unit's")
        return receipt

    def _table(self, unit: Unit) -> dict[str, Any]:
        table: dict[str, Any] = json.loads((self._folder(unit) / "rows.json").read_bytes())
        return table

    def _folder(self, unit: Unit) -> Path:
        return self.path / "units" / unit.name

    def _receipt(self, unit: Unit) -> Path:
        return self.path / "units" / f"{unit.name}.json"


def _write_npy(
    path: Path, blocks: Iterable[npt.NDArray[Any]], shape: tuple[int, ...], dtype: npt.DTypeLike
) -> Seal:
    """Write an array block by block as `np.save` does, and seal it on the way."""
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, {**described, "shape": shape})
    digest = blake3()
    with path.open("wb") as file:
        large = LargeFile(file)
        parts: Iterator[memoryview] = (block.reshape(-1).view(np.uint8).data for block in blocks)
        for data in chain([memoryview(header.getvalue())], parts):
            large.write(data)
            digest.update(data)
        large.finish()
        os.fsync(file.fileno())
        return Seal(large.size, digest.hexdigest(), "")


def rows_of(unit: Unit) -> str:
    """`Rows 8 to 11 are`, for a sentence."""
    last = unit.stop - 1
    return f"Row {last} is" if unit.start == last else f"Rows {unit.start} to {last} are"


def _record(row: dict[str, Any]) -> RowRecord:
    view = None if row["view"] is None else tuple(row["view"])
    return RowRecord(**{**row, "boxes": tuple(Box(**box) for box in row["boxes"]), "view": view})
