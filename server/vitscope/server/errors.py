"""What can be wrong with a request, and with starting a server.

    QueryError
    ├── InvalidArgumentError      a value that the field cannot take
    ├── NotFoundError             no such index, layer, channel or row
    ├── NotKeptHereError          the index is sound but did not keep what was asked for
    ├── UnauthenticatedError      no token, or none that the server knows
    ├── UnknownMethodError        a question that this server does not know
    └── OverloadedError           more than the server, or the token, takes at a time
    StartError                    the server cannot start

Every message is one sentence that names the field or thing and the mend; none carries a path.
"""


class QueryError(Exception):
    """Base of all errors that a request can cause."""


class InvalidArgumentError(QueryError):
    """INVALID_ARGUMENT on the wire."""


class NotFoundError(QueryError):
    """NOT_FOUND on the wire."""


class NotKeptHereError(QueryError):
    """FAILED_PRECONDITION on the wire."""


class UnauthenticatedError(QueryError):
    """UNAUTHENTICATED on the wire."""


class UnknownMethodError(QueryError):
    """UNIMPLEMENTED on the wire."""


class OverloadedError(QueryError):
    """RESOURCE_EXHAUSTED on the wire, with the time after which asking again may succeed."""

    def __init__(self, sentence: str, pushback_ms: int) -> None:
        super().__init__(sentence)
        self.pushback_ms = pushback_ms


class StartError(Exception):
    """The server cannot start; for the person who typed the command."""

    exit_code = 6
