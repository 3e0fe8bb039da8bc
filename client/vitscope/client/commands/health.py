"""Tell whether a server serves, as supervisors ask: by the exit code, 0 or 1."""

import argparse

from google.protobuf import wrappers_pb2

from vitscope.client import fields
from vitscope.client.commands import _common
from vitscope.client.connection import Connection
from vitscope.client.errors import NotFoundError, VitscopeError, rpc_errors
from vitscope.v1 import service_pb2

_METHOD = "/grpc.health.v1.Health/Check"
_SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"].full_name
_SERVING = 1


class NotServingError(VitscopeError):
    """A server that does not answer, or says that it does not serve."""

    exit_code = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "index",
        metavar="INDEX",
        nargs="?",
        default="",
        help="an index that has to be served (default: all that it began with)",
    )
    _common.add_address(parser, "the server to ask, or its replicas, which all have to serve")
    _common.add_trust(parser)
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=3.0,
        help="the longest that a server may take (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    index = fields.as_text("index", args.index)
    tls = _common.tls_from(args)
    addresses = _common.addresses_from(args)
    for address in addresses:
        check(Connection(address, args.timeout, tls, words=_common.FLAGS), index)
    print(f"{', '.join(addresses)} serves{f' {index}' if index else ''}.")
    return 0


def check(connection: Connection, index: str) -> None:
    """Raise `NotServingError` unless the server, or the index where one is named, is served."""
    asked = wrappers_pb2.StringValue(value=f"{_SERVICE}/{index}" if index else "")
    try:
        with connection.channel() as channel, rpc_errors(connection.server):
            # Of the health protocol's two messages these have the numbers and types; its own are
            # in a package that the client does without.
            ask = channel.unary_unary(
                _METHOD,
                request_serializer=wrappers_pb2.StringValue.SerializeToString,
                response_deserializer=wrappers_pb2.Int32Value.FromString,
            )
            status = ask(asked, timeout=connection.timeout).value
    except NotFoundError:
        if not index:
            raise NotServingError(
                f"The server at {connection.name} does not tell its health; name an index of it, "
                "or ask a server of vitscope."
            ) from None
        raise NotServingError(
            f"The server at {connection.name} holds no index {index!r}; `vitscope layers` lists "
            "what it holds."
        ) from None
    except VitscopeError as error:
        raise NotServingError(str(error)) from None
    if status != _SERVING:
        raise NotServingError(f"The server at {connection.name} is there but does not serve now.")
