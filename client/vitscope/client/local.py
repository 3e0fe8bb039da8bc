"""The client without a server: the same questions to indexes on this machine's disk."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from vitscope.client.client import Client
from vitscope.client.errors import LocalIndexError, UsageError

_GROUP = "vitscope.local"
_T = TypeVar("_T")


class _Closed:
    """In place of the indexes, once they were let go of."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise UsageError("This client is closed; open the index again.")


class LocalClient(Client):
    """A `Client` that reads the indexes itself; made by `open_local`."""

    def __init__(self, *paths: Path) -> None:
        points = list(entry_points(group=_GROUP))
        if not points:
            raise UsageError("This installation has no part that opens indexes; install it anew.")
        try:
            self._stub = points[0].load()(*paths)
        except ModuleNotFoundError as error:
            raise _missing(error) from None
        except OSError as error:
            raise LocalIndexError(
                f"{error.filename or self._names(paths)} cannot be read: {error.strerror}."
            ) from None
        except Exception as error:
            # What is wrong with an index is one sentence already.
            if not hasattr(error, "exit_code"):
                raise
            raise LocalIndexError(str(error)) from None
        self._name = self._names(paths)
        self._told = {}
        self._close = self._let_go
        # Anew, so that an answer keeps no generation from being pruned.
        self._another = partial(open_local, *paths)

    def _let_go(self) -> None:
        self._stub = cast(Any, _Closed())

    @staticmethod
    def _names(paths: Sequence[Path]) -> str:
        return ", ".join(map(str, paths))

    def _ask(self, method: Callable[..., _T], request: Message) -> _T:
        try:
            return super()._ask(method, request)
        except ModuleNotFoundError as error:
            raise _missing(error) from None


def open_local(*paths: str | os.PathLike[str]) -> Client:
    """The questions of `Client` to the indexes in the folders `paths`, without a server.

    with open_local("my-index") as client:
        client.top_images("blocks.5.mlp", 7)

    Reads the generations that are published now; there is no live model, and no timeout. Raises
    `LocalIndexError` where there is no index, and `UsageError` where a library is missing, which
    `pip install 'vitscope[store,faiss-cpu]'` brings.
    """
    if not paths:
        raise UsageError("There is no index to open; give the folder of one.")
    return LocalClient(*map(Path, paths))


def _missing(error: ModuleNotFoundError) -> UsageError:
    return UsageError(
        f"Opening an index needs {error.name}; install it with "
        "`pip install 'vitscope[store,faiss-cpu]'`."
    )
