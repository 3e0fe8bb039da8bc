"""Units done by actors of a Ray cluster, on any number of nodes that share the output's folder.

An actor takes units and tells of them as a worker process does (`vitscope.indexer.workers`). Where
one is lost, with its process or its node, its units are done by others, once it is sure that it
writes no more: as long as it could, it holds a file of the working folder.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitscope.indexer.errors import IndexingError
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Plan, Unit
from vitscope.indexer.stages import Stages
from vitscope.indexer.work import Work, rows_of
from vitscope.indexer.workers import WorkerError, portable, serve
from vitscope.store.progress import Progress
from vitscope.store.stopping import check

try:
    import ray
except ImportError:
    raise IndexingError(
        "--ray needs Ray; install it on every node with: pip install 'vitscope[ray]'"
    ) from None

_LOST_IN_A_ROW = 5
"""Losses without a unit done in between: something is wrong that no other try mends."""
_SECONDS = 1.0


class Actor:
    """A worker on a node of the cluster; also what its own thread knows as its parent."""

    def __init__(
        self, name: str, folder: str, options: Options, plan: bytes, finished: Sequence[Unit]
    ) -> None:
        """`folder` is that of the run, from which its paths are meant."""
        self._units: queue.Queue[Unit | None] = queue.Queue()
        self._said: queue.Queue[Any] = queue.Queue()
        given = (name, folder, options, plan, finished)
        threading.Thread(target=self._work, args=given, daemon=True).start()

    def give(self, unit: Unit | None) -> None:
        """Another unit to do; None where there is none."""
        self._units.put(unit)

    def hear(self) -> list[Any]:
        """What was said since, as soon as there is something."""
        said = [self._said.get()]
        while not self._said.empty():
            said.append(self._said.get())
        return said

    def send(self, said: Any) -> None:
        """Say something to whoever hears."""
        self._said.put(said)

    def recv(self) -> Unit | None:
        """Wait for a unit."""
        return self._units.get()

    def _work(
        self, name: str, folder: str, options: Options, plan: bytes, finished: Sequence[Unit]
    ) -> None:
        # Where all paths are absolute, the folder may be missing.
        with suppress(OSError):
            os.chdir(folder)
        try:
            with Work(options.out, Plan.from_json(json.loads(plan))).actor(name):
                # The first unit is given to who is there to do it.
                self.send(None)
                serve(options, 0, plan, finished, self)
        # Whatever it is: who hears nothing waits for ever.
        except Exception as error:
            self.send(portable(error))


@dataclass
class Hired:
    """An actor as the run knows it."""

    name: str
    handle: Any
    units: list[Unit] = field(default_factory=list)
    """All that were given to it."""
    images: int = 0
    """That it told of."""


def run_on_ray(
    options: Options,
    work: Work,
    finished: Sequence[Unit],
    units: Sequence[Unit],
    progress: Progress,
) -> Mapping[str, float]:
    """Index `units` on the cluster `options.ray`; gives the seconds of each stage.

    Raises `IndexingError` where there is no such cluster, or no room on it, and `WorkerError` where
    actors are lost again and again.
    """
    with _connected(options.ray):
        crew = Crew(options, work, finished, units, progress)
        try:
            return crew.run()
        except SystemError:
            # So compiled code of Ray tells of a signal that came while it had a result already.
            check()
            raise
        finally:
            crew.dismiss()


@contextmanager
def _connected(address: str) -> Iterator[None]:
    if address != "local":
        _require_reachable(address)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # Ray raises plain exceptions too, as where a busy machine takes long to start its processes.
    except Exception as error:
        raise _not_joined(address, error) from error
    finally:
        # Ray would end the process in its own way.
        for number, handler in before.items():
            if threading.current_thread() is threading.main_thread():
                signal.signal(number, handler)
    # Ray prints the logs of lost nodes among what was asked for; it keeps them in files as well.
    with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
        try:
            yield
        finally:
            ray.shutdown()


def _require_reachable(address: str) -> None:
    """Raise at once what Ray finds out after minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address) from error


def _no_cluster(address: str) -> IndexingError:
    return IndexingError(
        f"There is no Ray cluster at {address}; start one with `ray start --head` and give the "
        "HOST:PORT that it says, or give --ray local."
    )


def _not_joined(address: str, error: Exception) -> IndexingError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if address == "local":
        return IndexingError(
            f"Ray cannot start a cluster on this machine ({why}); run the same command again, or "
            "give --workers instead."
        )
    return IndexingError(
        f"The Ray cluster at {address} cannot be joined ({why}); it needs the same versions of Ray "
        "and Python on every node."
    )


class Crew:
    """The actors of a run, and what is left for them to do."""

    def __init__(
        self,
        options: Options,
        work: Work,
        finished: Sequence[Unit],
        units: Sequence[Unit],
        progress: Progress,
    ) -> None:
        plan = work.plan
        self._work = work
        self._progress = progress
        self._finished = finished
        self._left = deque(units)
        self._stages = Stages()
        self._actors: dict[Any, Hired] = {}
        """By what is waited for: what an actor says next."""
        self._dying: list[Hired] = []
        """Lost ones that may write still."""
        self._fences = ExitStack()
        self._hired = self._lost_in_a_row = 0
        needs = {"num_cpus": plan.threads} if plan.threads else {"num_gpus": 1, "num_cpus": 1}
        self._size = options.workers or _room(options.ray, needs)
        # Ray says which card an actor has, and nodes may have other cores than this one.
        device = "cpu" if plan.threads else "cuda"
        self._options = replace(options, threads=plan.threads or None, workers=None, device=device)
        self._kind = ray.remote(Actor).options(max_concurrency=3, **needs)

    def run(self) -> Mapping[str, float]:
        """Do all units."""
        while self._left or self._dying or any(hired.units for hired in self._actors.values()):
            check()
            while self._left and len(self._actors) < self._size:
                self._hire()
            self._bury()
            if not self._actors:
                time.sleep(_SECONDS)
                continue
            ready, _ = ray.wait(list(self._actors), num_returns=1, timeout=_SECONDS)
            for said in ready:
                self._listen(said)
        return self._stages.seconds

    def dismiss(self) -> None:
        """Stop what still runs."""
        for hired in self._actors.values():
            ray.kill(hired.handle)
        self._fences.close()

    def _hire(self) -> None:
        name = f"{os.getpid()}-{self._hired}"
        self._hired += 1
        with self._work.gone(name):
            pass
        plan = self._work.plan.to_json()
        handle = self._kind.remote(name, os.getcwd(), self._options, plan, self._finished)
        self._wait_for(Hired(name, handle))

    def _wait_for(self, hired: Hired) -> None:
        self._actors[hired.handle.hear.remote()] = hired

    def _give(self, hired: Hired) -> None:
        unit = self._left.popleft() if self._left else None
        if unit:
            hired.units.append(unit)
        hired.handle.give.remote(unit)

    def _listen(self, heard: Any) -> None:
        hired = self._actors.pop(heard)
        try:
            messages = ray.get(heard)
        except ray.exceptions.RayError as error:
            self._lose(hired, error)
            return
        for said in messages:
            if isinstance(said, Exception):
                raise said
            if isinstance(said, int):
                hired.images += said
                self._progress.advance(said)
            elif said is None:
                self._lost_in_a_row = 0
                self._give(hired)
            else:
                self._stages.add(said)
                ray.kill(hired.handle)
                return
        self._wait_for(hired)

    def _lose(self, hired: Hired, error: Exception) -> None:
        self._lost_in_a_row += 1
        if self._lost_in_a_row > _LOST_IN_A_ROW:
            raise WorkerError(
                f"Ray loses one worker after the other ({type(error).__name__}); see `ray status` "
                "and its logs, and run the same command again to go on."
            ) from error
        ray.kill(hired.handle)
        self._dying.append(hired)
        print(
            f"Worker {hired.name} was lost; its units wait until it has certainly ended.",
            file=sys.stderr,
        )

    def _bury(self) -> None:
        """Take back the units of lost actors that certainly write no more."""
        for hired in list(self._dying):
            with ExitStack() as fence:
                if not fence.enter_context(self._work.gone(hired.name)):
                    continue
                self._fences.enter_context(fence.pop_all())
            self._dying.remove(hired)
            done, _ = self._work.finished(hired.units)
            again = [unit for unit in hired.units if unit not in done]
            self._left.extendleft(reversed(again))
            self._progress.advance(sum(map(self._work.plan.new_rows, done)) - hired.images)
            for unit in again:
                print(f"{rows_of(unit)} indexed again: a worker was lost.", file=sys.stderr)


def _room(address: str, needs: Mapping[str, int]) -> int:
    """How many actors the cluster has room for."""
    has: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kinds = {"num_cpus": "CPU", "num_gpus": "GPU"}
    room = min(int(has.get(kinds[kind], 0) // count) for kind, count in needs.items())
    if not room:
        wanted = " and ".join(f"{count} {kinds[kind]}" for kind, count in needs.items())
        raise IndexingError(
            f"The Ray cluster at {address} has no room for a worker of {wanted}; see `ray status`, "
            "and give --threads or --device."
        )
    return room
