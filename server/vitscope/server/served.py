"""The indexes of a server, and how a newly published generation takes the place of the old one.

A call takes the generation that is served when it begins and keeps to it. The next one is opened,
held against its manifest and warmed beside it before it is served; where that fails the old one
stays. The old one goes with the last call that reads it, and may be pruned then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitscope.server.errors import StartError
from vitscope.server.queries.model import LiveModel
from vitscope.store.errors import StoreError
from vitscope.store.generation import Generation, current_name, open_generation

_log = logging.getLogger("vitscope.server")


@dataclass(frozen=True, slots=True)
class Held:
    """What calls about one index are answered from."""

    generation: Generation
    live: LiveModel | None = None


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
        self._complaints: dict[str, str] = {}
        generations = {name: open_generation(path) for name, path in paths.items()}
        self.current = self._with_live(generations)
        """Never changed but exchanged as a whole: who keeps it has a view that stays the same."""

    async def follow(self, every: float) -> None:
        """Serve what is published from now on; looks after each `every` seconds, without end."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "vitscope-renew") as executor:
            while True:
                await asyncio.sleep(every)
                await loop.run_in_executor(executor, self.renew)

    def renew(self) -> list[str]:
        """Serve the published generation of every index, and tell of which it is a new one.

        One that cannot be served is logged once, and tried again the next time.
        """
        renewed = []
        for name, path in self._paths.items():
            try:
                if current_name(path) == self.current[name].generation.name:
                    continue
                self._renew(name, path)
            except (StoreError, StartError, OSError) as error:
                self._complain(name, error)
            else:
                self._complaints.pop(name, None)
                renewed.append(name)
        return renewed

    def _renew(self, name: str, path: Path) -> None:
        new, old = open_generation(path), self.current[name].generation
        new.check_files()
        new.warm(old)
        [(_, held)] = self._with_live({name: new}).items()
        self.current = {**self.current, name: held}
        _log.info("Index %r: generation %s is served, after %s.", name, new.name, old.name)

    def _complain(self, name: str, error: Exception) -> None:
        said = str(error)
        if self._complaints.get(name) != said:
            self._complaints[name] = said
            _log.error(
                "Index %r: generation %s stays, since the next cannot be served: %s",
                name,
                self.current[name].generation.name,
                said,
            )

    def _with_live(self, generations: Mapping[str, Generation]) -> Mapping[str, Held]:
        live = self._load_live(generations) if self._load_live else {}
        return {name: Held(each, live.get(name)) for name, each in generations.items()}
