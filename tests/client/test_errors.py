"""One tree of exceptions, and a place in it for every status that a server can send."""

from __future__ import annotations

import asyncio
import re

import grpc
import pytest
from client.test_connection import Failing, quick, serving

from vitscope.client import AsyncClient, Client, errors
from vitscope.client.errors import EXCEPTIONS, Server, VitscopeError, from_status, rpc_errors

NOT_OK = sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK}, key=lambda code: code.name)

SERVER = Server("127.0.0.1:1")


def kinds() -> list[type[VitscopeError]]:
    """All exceptions of the package."""
    found = vars(errors).values()
    return [each for each in found if isinstance(each, type) and issubclass(each, VitscopeError)]


def test_every_status_that_is_not_ok_has_its_exception() -> None:
    assert set(EXCEPTIONS) == set(NOT_OK)
    assert len(EXCEPTIONS) == 16


@pytest.mark.parametrize("code", NOT_OK)
def test_every_status_of_a_server_is_raised_by_both_clients(code: grpc.StatusCode) -> None:
    async def ask(address: str) -> None:
        async with AsyncClient(address, retries=quick(1)) as client:
            await client.indexes()

    with serving(Failing(code, 2)) as address:
        with Client(address, retries=quick(1)) as client, pytest.raises(VitscopeError) as ours:
            client.indexes()
        with pytest.raises(VitscopeError) as theirs:
            asyncio.run(ask(address))
    assert type(ours.value) is type(theirs.value) is EXCEPTIONS[code]
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("code", NOT_OK)
@pytest.mark.parametrize("details", ["", "k is 0;\n give  1 to 5"])
def test_every_status_becomes_one_sentence(code: grpc.StatusCode, details: str) -> None:
    error = from_status(code, details, SERVER)
    assert type(error) is EXCEPTIONS[code]
    assert str(error).endswith(".")
    assert "\n" not in str(error)


def test_a_refusal_keeps_the_servers_sentence() -> None:
    error = from_status(grpc.StatusCode.INVALID_ARGUMENT, "k is 0; give 1 to 5.", SERVER)
    assert str(error) == "k is 0; give 1 to 5."
    assert error.exit_code == 2


def test_silence_names_the_address_and_the_mend() -> None:
    error = from_status(grpc.StatusCode.UNAVAILABLE, "failed to connect", Server("10.0.0.1:9"))
    assert "10.0.0.1:9" in str(error)
    assert "`vitscope serve INDEX --listen 10.0.0.1:9`" in str(error)
    assert error.exit_code == 5


@pytest.mark.parametrize(
    ("details", "sentence"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Custom "
            "verification check failed with error: UNAUTHENTICATED: Hostname Verification Check "
            "failed.",
            "has other names",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Peer name "
            "gpu-7.example is not in peer certificate",
            "has other names",
        ),
        (
            "errors resolving nowhere:1: [field:hostname lookup error:address lookup failed]",
            "is not known",
        ),
        ("DNS resolution failed for nowhere:1: C-ares status is not ARES_SUCCESS", "is not known"),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls "
            "handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: NO_SHARED_CIPHER",
            "NO_SHARED_CIPHER",
        ),
        # A server that is killed during a call is no matter of trust.
        ("Socket closed", "No vitscope server answers"),
    ],
)
def test_what_versions_of_grpc_say(details: str, sentence: str) -> None:
    said = str(from_status(grpc.StatusCode.UNAVAILABLE, details, Server("127.0.0.1:1", tls=True)))
    assert sentence in said
    assert said.endswith(".")


def test_exit_codes_are_the_documented_ones() -> None:
    assert {kind.exit_code for kind in kinds()} == {2, 4, 5}


def test_the_tree_in_the_docstring_is_the_one_that_there_is() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in str(errors.__doc__).splitlines():
        if match := re.match(r"    ([│├└─ ]*)([A-Z]\w*Error)\b", line):
            depth = len(match[1]) // 4
            del above[depth:]
            drawn[match[2]] = above[-1] if above else "Exception"
            above.append(match[2])
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in kinds() if kind.__base__}
    assert set(EXCEPTIONS.values()) <= set(kinds())


def test_an_rpc_error_without_a_status_is_converted_too() -> None:
    with pytest.raises(errors.ServerError, match=r"no status\.$"), rpc_errors(SERVER):
        raise grpc.RpcError("no status")


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), rpc_errors(SERVER):
        raise KeyError("ours")
