"""The client without a server: the same questions to indexes on this machine's disk."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vitscope.client.client import Client
from vitscope.client.errors import LocalIndexError, Server, UsageError, rpc_errors
from vitscope.client.extras import mend_for
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

_GROUP = "vitscope.local"


class Local:
    """Indexes that this process has open, in the place of a server."""

    def __init__(self, *paths: Path) -> None:
        self.told: Mapping[str, Any] = {}
        # Anew, so that an answer keeps no generation from being pruned.
        self.another: Callable[[], Client] = partial(open_local, *paths)
        self._server = Server(", ".join(map(str, paths)))
        self.stub = _opened(*paths)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Those of a server, and of a library that only some questions need."""
        try:
            with rpc_errors(self._server):
                yield
        except ModuleNotFoundError as error:
            raise _missing("This question", error) from None

    def close(self) -> None:
        """Nothing: the indexes go with the last who reads them."""


class LocalClient(Client):
    """A `Client` that reads the indexes itself; made by `open_local`."""

    def __init__(self, *paths: Path) -> None:
        self._ask_of(Local(*paths))


def open_local(*paths: str | os.PathLike[str]) -> Client:
    """The questions of `Client` to the indexes in the folders `paths`, without a server.

    with open_local("my-index") as client:
        client.top_images("blocks.5.mlp", 7)

    Reads the generations that are published now; there is no live model, and no timeout, and calls
    under way at `close` go on to their end. Raises `LocalIndexError` where there is no index, and
    `UsageError` where `pip install 'vitscope[store]'` is missing; what is similar to images and
    patches needs FAISS besides (`vitscope[faiss-cpu]`).
    """
    if not paths:
        raise UsageError("There is no index to open; give the folder of one.")
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise UsageError("An index is opened by the path of its folder.")
    return LocalClient(*map(Path, paths))


def _opened(*paths: Path) -> ActivationServiceStub:
    """What stands in for a stub."""
    points = list(entry_points(group=_GROUP))
    if not points:
        raise UsageError("This installation has no part that opens indexes; install it anew.")
    try:
        stub: ActivationServiceStub = points[0].load()(*paths)
    except ModuleNotFoundError as error:
        raise _missing("Opening an index", error) from None
    except OSError as error:
        named = error.filename or ", ".join(map(str, paths))
        raise LocalIndexError(f"{named} cannot be read: {error.strerror}.") from None
    except Exception as error:
        # What is wrong with an index is one sentence already.
        if not hasattr(error, "exit_code"):
            raise
        raise LocalIndexError(str(error)) from None
    return stub


def _missing(who: str, error: ModuleNotFoundError) -> Exception:
    """One sentence for a library that an extra brings; any other is a bug of ours."""
    mend = mend_for(error)
    return (
        error if mend is None else UsageError(f"{who} needs {mend[0]}; install it with {mend[1]}.")
    )
