"""What can go wrong when a server is asked, and the one place where gRPC's errors become ours.

    VitscopeError                  every error this package raises on purpose
    ├── UsageError                 an argument that cannot work, or a closed client
    ├── RequestError               the server refused the request
    │   ├── InvalidRequestError    a value that the field cannot take
    │   ├── NotFoundError          no such index, layer, channel or row
    │   ├── NotKeptError           the index did not keep what was asked for
    │   └── AccessError            the server does not let this caller ask
    ├── UnavailableError           nothing answers at the address
    ├── DeadlineError              no answer in time
    ├── OverloadedError            the server has no room for the request now
    ├── CancelledError             the call was given up before it was answered
    ├── UnsupportedError           the server does not know this question
    ├── DamagedIndexError          the server found its index damaged
    ├── LocalIndexError            a folder that was to be opened holds no index that can be read
    └── ServerError                the server failed, or its reply makes no sense

Each names an `exit_code` for the command line.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

REQUEST_ID = "x-request-id"
"""Metadata by which a call is known in the server's log."""
SANE = re.compile(r"[!-~]{1,128}")
"""What a server takes for such an id."""


class VitscopeError(Exception):
    """Base of the errors raised on purpose; its text is one sentence for the user.

    try:
        client.top_images("blocks.5.mlp", 7)
    except vitscope.client.VitscopeError as error:
        print(error)
    """

    exit_code = 5
    request_id: str | None = None
    """By which the server's log knows the call; None where no server answered."""


class UsageError(VitscopeError):
    """An argument that cannot work, found before any server was asked, or a closed client."""

    exit_code = 2


class RequestError(VitscopeError):
    """The server refused the request; asking again in the same way will not help."""

    exit_code = 2


class InvalidRequestError(RequestError):
    """A value that the field cannot take, such as k = 0."""


class NotFoundError(RequestError):
    """The server has no such index, layer, channel or row."""


class NotKeptError(RequestError):
    """The index did not keep what was asked for, such as the map of an image outside the top."""


class AccessError(RequestError):
    """The server does not let this caller ask."""


class UnavailableError(VitscopeError):
    """Nothing answers at the address."""


class DeadlineError(VitscopeError):
    """The server did not answer within the client's timeout."""


class OverloadedError(VitscopeError):
    """The server has no room for the request now; asking later may succeed."""


class CancelledError(VitscopeError):
    """The call was given up before it was answered."""


class UnsupportedError(VitscopeError):
    """The server does not know this question: older than this client, or not vitscope."""


class DamagedIndexError(VitscopeError):
    """The server found its index damaged."""

    exit_code = 4


class LocalIndexError(VitscopeError):
    """A folder that was to be opened holds no index that can be read."""

    exit_code = 4


class ServerError(VitscopeError):
    """The server failed, or its reply makes no sense."""


EXCEPTIONS: dict[grpc.StatusCode, type[VitscopeError]] = {
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: ServerError,
    grpc.StatusCode.PERMISSION_DENIED: AccessError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.FAILED_PRECONDITION: NotKeptError,
    grpc.StatusCode.ABORTED: ServerError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DATA_LOSS: DamagedIndexError,
    grpc.StatusCode.UNAUTHENTICATED: AccessError,
}
"""Every status code that is not OK; a test holds it to that."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a caller calls the arguments that a sentence asks for."""

    tls: str = "tls=Tls()"
    roots: str = "Tls(roots=…)"
    pair: str = "Tls(certificate=…, key=…)"
    server_name: str = "Tls(server_name=…)"


PYTHON = Words()


@dataclass(frozen=True, slots=True)
class Server:
    """What sentences have to know of who was asked."""

    name: str
    """HOST:PORT, or several with commas between them; of local indexes their folders."""
    tls: bool = False
    certificate: bool = False
    """Whether it is shown a certificate of this client."""
    words: Words = PYTHON

    @property
    def each(self) -> str:
        """The one server, or whichever of them it was."""
        return f"a server of {self.name}" if ", " in self.name else f"the server at {self.name}"


# What is said in place of, or around, the text that came with the status.
_SENTENCES: dict[type[VitscopeError], Callable[[Server, str], str]] = {
    UnavailableError: lambda server, details: _unavailable(server, details),
    DeadlineError: lambda server, _: (
        f"The server at {server.name} did not answer in time; allow more with a longer timeout."
    ),
    UnsupportedError: lambda server, _: (
        f"The server at {server.name} does not know this question: "
        "it is older than this client, or no vitscope server."
    ),
    CancelledError: lambda server, _: f"The call to {server.name} was cancelled before its answer.",
    ServerError: lambda server, details: f"The server at {server.name} failed: {details}",
}

# How gRPC begins where no connection came about, and what it says of one that was cut meanwhile.
_NO_CONNECTION = ("failed to connect to all addresses", "connections to all backends failing")
_CUT = ("Socket closed", "onnection reset", "roken pipe")
# As gRPC 1.85 says it, and 1.76.
_OTHER_NAME = ("Hostname Verification", "is not in peer certificate")
_UNKNOWN_NAME = ("errors resolving", "DNS resolution failed")
# Of both ends; the one that received it stands before, where gRPC says so.
_TOO_LARGE, _RECEIVED_HERE = "larger than max", "CLIENT:"


def _unavailable(server: Server, details: str) -> str:
    if server.tls and (said := _distrust(server, details)):
        return said
    name, words = server.name, server.words
    if details.startswith(_UNKNOWN_NAME):
        return f"The host of {name} is not known; check the address."
    if details.startswith(_NO_CONNECTION) and any(word in details for word in _CUT):
        mend = f"if it wants TLS, give {words.tls}"
        if server.certificate:
            mend = f"if it does not trust this client's certificate, give another by {words.pair}"
        elif server.tls:
            mend = f"if it wants certificates of its callers, give {words.pair}"
        return f"What answers at {name} cut the connection before any call; {mend}."
    if "backend unhealthy" in details:
        return f"What answers at {name} says that it does not serve now; ask again in a moment."
    if ", " in name:
        return f"None of the servers {name} answers; start one with `vitscope serve INDEX`."
    return (
        f"No vitscope server answers at {name}; "
        f"start one with `vitscope serve INDEX --listen {name}`."
    )


def _distrust(server: Server, details: str) -> str | None:
    """Why there is no TLS with the server; None where that is not what went wrong."""
    words, certificate = server.words, f"The certificate of {server.each}"
    if any(word in details for word in _OTHER_NAME):
        return (
            f"{certificate} has other names; ask by one of them, or give it as {words.server_name}."
        )
    if "certificate has expired" in details:
        return f"{certificate}, or that of its authority, has expired; have it renewed."
    if "not yet valid" in details:
        return (
            f"{certificate}, or that of its authority, is not valid yet; compare its dates with "
            "the clock of this machine."
        )
    if "issuer certificate" in details or "self signed" in details or "self-signed" in details:
        return (
            f"{certificate} is of no authority that this client trusts; give the file of its "
            f"authority as {words.roots}."
        )
    if "WRONG_VERSION_NUMBER" in details:
        return (
            f"What answers at {server.name} speaks no TLS; ask without {words.tls}, or serve with "
            "--tls-cert and --tls-key."
        )
    if any(word in details for word in ("andshake", "erification", "VERIFY")):
        return (
            f"What answers at {server.name} does not do so over the TLS that was asked for "
            f"({details.rstrip('.')}); check the certificates on both sides."
        )
    return None


def from_status(
    code: grpc.StatusCode, details: str, server: Server, request_id: str | None = None
) -> VitscopeError:
    """The exception for a status that is not OK, with one sentence."""
    kind = EXCEPTIONS[code]
    details = _sentence(details) or f"Status {code.name} came without a reason."
    sentence = _SENTENCES.get(kind)
    text = sentence(server, details) if sentence else details
    # Not what a server without room says: it will not do later either.
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        kind, text = _too_large(server, details)
    if kind is ServerError and request_id and request_id not in text:
        text = f"{text[:-1]} (request_id {request_id}){text[-1]}"
    error = kind(text)
    error.request_id = request_id
    return error


def _too_large(server: Server, details: str) -> tuple[type[VitscopeError], str]:
    """Whether the request or the reply was, and the sentence."""
    mend = "ask for fewer rows or channels at a time."
    if _RECEIVED_HERE in details:
        return ServerError, f"The reply of {server.each} is larger than this client takes; {mend}"
    return InvalidRequestError, f"The request is larger than a server takes (4 MiB); {mend}"


def request_id_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The id that a server has sent along; None where there is none to show."""
    found = [value for key, value in metadata or () if key == REQUEST_ID]
    return found[0] if found and isinstance(found[0], str) and SANE.fullmatch(found[0]) else None


def _sentence(text: str) -> str:
    """`text` on one line, with a full stop where it ends in nothing; servers may be of any make."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) or not line else f"{line}."


@contextmanager
def rpc_errors(server: Server) -> Iterator[None]:
    """Turn every `grpc.RpcError` of the block into one of ours."""
    try:
        yield
    except grpc.RpcError as error:
        if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
            raise ServerError(_sentence(f"The call to {server.name} failed: {error}")) from None
        told = request_id_of(error.trailing_metadata())
        raise from_status(error.code(), error.details() or "", server, told) from None
