"""The indexes of a server, and how a newly published generation takes the place of the old one.

A call takes the generation that is served when it begins and keeps to it. The next one is opened,
held against its manifest and warmed beside it before it is served; where that fails the old one
stays. The old one goes with the last call that reads it, and may be pruned then.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

from vitscope.server.errors import StartError
from vitscope.server.queries.model import LiveModel
from vitscope.store.errors import StoreError
from vitscope.store.generation import Generation, current_name, open_generation

_log = logging.getLogger("vitscope.server")

_T = TypeVar("_T")

_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """What calls about one index are answered from."""

    generation: Generation
    live: LiveModel | None = None


@dataclass(frozen=True, slots=True)
class _Failure:
    """What could not be served of an index."""

    generation: str
    """Empty where not even its name is known."""
    said: str
    pause: float
    due: float
    """When it is tried again."""


LoadLive = Callable[[Mapping[str, Generation]], Mapping[str, LiveModel]]
"""The live models of generations, by the names of their indexes; raises `StartError`."""


def index_paths(paths: Iterable[Path]) -> dict[str, Path]:
    """The folders by their names; raises `StartError` where two have the same one."""
    found: dict[str, Path] = {}
    for path in paths:
        name = path.resolve().name
        if name in found:
            raise StartError(f"Two indexes are called {name!r}; rename one of the folders.")
        found[name] = path
    return found


class Served:
    """The indexes by name; exchanged by `renew`, read by calls."""

    def __init__(self, paths: Mapping[str, Path], load_live: LoadLive | None = None) -> None:
        """Open all of them; raises what `open_generation` does, and `StartError`."""
        self._paths = paths
        self._load_live = load_live
        self._failures: dict[str, _Failure] = {}
        generations = {name: _opened(path) for name, path in paths.items()}
        self.current = self._with_live(generations)
        """Never changed but exchanged as a whole: who keeps it has a view that stays the same."""

    async def follow(self, every: float) -> None:
        """Serve what is published from now on; looks after each `every` seconds, without end."""
        while True:
            await asyncio.sleep(every)
            try:
                if await asyncio.wrap_future(_in_daemon(partial(self.renew, every))):
                    settle()
            except Exception:
                # Such as a thread that the system has no room for.
                _log.exception("Looking for new generations failed; it goes on.")

    def renew(self, pause: float = 0.0) -> list[str]:
        """Serve the published generation of every index, and tell of which it is a new one.

        One that cannot be served is logged once, and tried again after `pause` seconds, then
        twice as many, up to a minute; another one is tried at once.
        """
        renewed = []
        for name, path in self._paths.items():
            published = ""
            try:
                published = current_name(path)
                if published == self.current[name].generation.name:
                    self._failures.pop(name, None)
                elif self._is_due(name, published):
                    self._renew(name, path)
                    self._failures.pop(name, None)
                    renewed.append(name)
            except Exception as error:
                # Whatever it is: the next generation may be sound.
                self._complain(name, published, error, pause)
        return renewed

    def _is_due(self, name: str, generation: str) -> bool:
        failure = self._failures.get(name)
        return (
            failure is None or failure.generation != generation or failure.due <= time.monotonic()
        )

    def _renew(self, name: str, path: Path) -> None:
        new, old = _opened(path), self.current[name].generation
        new.warm(old)
        [(_, held)] = self._with_live({name: new}).items()
        self.current = {**self.current, name: held}
        _log.info("Index %r: generation %s is served, after %s.", name, new.name, old.name)

    def _complain(self, name: str, generation: str, error: Exception, pause: float) -> None:
        said, before = str(error), self._failures.get(name)
        if before and before.generation == generation:
            pause = min(_LONGEST_PAUSE, 2 * before.pause)
        self._failures[name] = _Failure(generation, said, pause, time.monotonic() + pause)
        if before is None or before.said != said:
            expected = isinstance(error, (StoreError, StartError, OSError))
            _log.error(
                "Index %r: generation %s stays, since the next cannot be served: %s",
                name,
                self.current[name].generation.name,
                said or type(error).__name__,
                exc_info=None if expected else error,
            )

    def _with_live(self, generations: Mapping[str, Generation]) -> Mapping[str, Held]:
        live = self._load_live(generations) if self._load_live else {}
        return {name: Held(each, live.get(name)) for name, each in generations.items()}


def settle() -> None:
    """Have collections leave out what is here, which stays.

    Most of it is code; to go over it takes 40 ms or more, in which no caller is told anything.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _in_daemon(work: Callable[[], _T]) -> Future[_T]:
    """What `work` gives in a thread that nobody waits for: a renewal may take long, and would keep
    the process from ending, as those of an executor do.
    """
    future: Future[_T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="vitscope-renew", daemon=True).start()
    return future


def _opened(path: Path) -> Generation:
    """The published generation, with all of its files there; raises what `open_generation` does."""
    generation = open_generation(path)
    generation.check_files()
    return generation
