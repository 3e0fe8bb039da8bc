"""How servers are reached: what is tried again, several of them, and what is refused beforehand."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from started import ServerProcess
from synthetic import Synthetic

from vitscope.client import (
    Client,
    InvalidRequestError,
    OverloadedError,
    Retries,
    Tls,
    UnavailableError,
    UsageError,
)
from vitscope.client.connection import Connection
from vitscope.v1 import query_pb2 as pb

Serve = Callable[..., ServerProcess]


def quick(attempts: int) -> Retries:
    return Retries(attempts=attempts, first_wait=0.01, longest_wait=0.02)


class Failing:
    """Fails with a status so many times, and then answers; notes what it was told."""

    def __init__(self, code: StatusCode, times: int, pushback_ms: int | None = None) -> None:
        self._code = code
        self._pushback = pushback_ms
        self._left = times
        self.calls = 0
        self.told: list[dict[str, Any]] = []

    def analyze_image(self, request: pb.AnalyzeImageRequest, context: Any) -> Any:
        """Fail or answer."""
        self.list_indexes(None, context)
        return pb.AnalyzeImageResponse()

    def list_indexes(self, request: Any, context: Any) -> Any:
        """Fail or answer."""
        self.calls += 1
        self.told.append(dict(context.invocation_metadata()))
        if self._left:
            self._left -= 1
            if self._pushback is not None:
                pushback = (("grpc-retry-pushback-ms", str(self._pushback)),)
                context.set_trailing_metadata(pushback)
            context.abort(self._code, "Not now.")
        return pb.ListIndexesResponse()


@contextmanager
def serving(service: Failing, at: str = "127.0.0.1:0") -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ListIndexes": grpc.unary_unary_rpc_method_handler(
            service.list_indexes,
            request_deserializer=pb.ListIndexesRequest.FromString,
            response_serializer=pb.ListIndexesResponse.SerializeToString,
        ),
        "AnalyzeImage": grpc.unary_unary_rpc_method_handler(
            service.analyze_image,
            request_deserializer=pb.AnalyzeImageRequest.FromString,
            response_serializer=pb.AnalyzeImageResponse.SerializeToString,
        ),
    }
    name = "vitscope.v1.ActivationService"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = server.add_insecure_port(at)
    server.start()
    try:
        yield f"{at.rpartition(':')[0]}:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("code", [StatusCode.UNAVAILABLE, StatusCode.RESOURCE_EXHAUSTED])
def test_what_may_succeed_later_is_tried_again(code: StatusCode) -> None:
    service = Failing(code, 2)
    with serving(service) as address:
        with Client(address, retries=quick(3)) as client:
            assert client.indexes() == []
        assert service.calls == 3
        # gRPC tells a server of the attempts before.
        assert [told.get("grpc-previous-rpc-attempts") for told in service.told] == [None, "1", "2"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (StatusCode.UNAVAILABLE, UnavailableError),
        (StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
    ],
)
@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_so_often_and_no_more(code: StatusCode, kind: type, attempts: int) -> None:
    service = Failing(code, 9)
    with serving(service) as address:
        with Client(address, retries=quick(attempts)) as client, pytest.raises(kind):
            client.indexes()
        assert service.calls == attempts


def test_a_large_request_is_tried_again_too() -> None:
    service = Failing(StatusCode.RESOURCE_EXHAUSTED, 1)
    with serving(service) as address, Client(address, retries=quick(2)) as client:
        client.analyze_image(bytes(2_000_000))
    assert service.calls == 2


def test_a_server_may_forbid_to_try_again() -> None:
    service = Failing(StatusCode.RESOURCE_EXHAUSTED, 1, pushback_ms=-1)
    with serving(service) as address, Client(address, retries=quick(5)) as client:
        with pytest.raises(OverloadedError):
            client.indexes()
        assert service.calls == 1
        assert client.indexes() == []


def test_one_replica_without_room_is_borne() -> None:
    full, idle = Failing(StatusCode.RESOURCE_EXHAUSTED, 10**6, 10), Failing(StatusCode.OK, 0)
    with serving(full) as first, serving(idle) as second, Client([first, second]) as client:
        while not (full.calls and idle.calls):
            # Until both are connected.
            with suppress(OverloadedError):
                client.indexes()
        for _ in range(200):
            assert client.indexes() == []
    assert full.calls > 50


def test_a_refusal_is_not_tried_again() -> None:
    service = Failing(StatusCode.INVALID_ARGUMENT, 9)
    with serving(service) as address:
        with Client(address) as client, pytest.raises(InvalidRequestError):
            client.indexes()
        assert service.calls == 1


def test_a_token_goes_with_every_call() -> None:
    service = Failing(StatusCode.UNAVAILABLE, 1)
    with serving(service) as address:
        with Client(address, token="secret-7", retries=quick(2)) as client:
            client.indexes()
        assert [told["authorization"] for told in service.told] == ["Bearer secret-7"] * 2


def test_replicas_take_calls_in_turn_and_for_each_other(synthetic: Synthetic, serve: Serve) -> None:
    servers = [serve(synthetic.path) for _ in range(3)]
    with Client([server.address for server in servers]) as client:
        seen: Counter[int] = Counter()
        for number in range(120):
            if number == 40:
                servers[0].process.kill()
                servers[0].process.wait()
            if number == 80:
                # One that ends in good order says so before.
                assert servers[1].terminate() == 0
            seen[number] += len(client.top_images("blocks.0.mlp", number % 11, k=5).images)
    assert list(seen.values()) == [5] * 120


def test_a_replica_that_is_not_there_is_passed_over(synthetic_server: str) -> None:
    with Client(["127.0.0.1:1", synthetic_server]) as client:
        for _ in range(10):
            assert client.index().name == "zoo"


_ASKING = """
import subprocess, sys
from vitscope.client import Client
hosts, address = sys.argv[1:]
subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
print("mounted", flush=True)
with Client(address) as client:
    while line := sys.stdin.readline():
        for _ in range(int(line)):
            client.indexes()
        print("asked", flush=True)
"""


def test_a_name_that_stands_for_several_is_all_of_them(tmp_path: Path) -> None:
    """As headless services of Kubernetes do, also where others come in place of the first."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 replicas.test\n127.0.0.2 replicas.test\n")
    first, second, third = (Failing(StatusCode.OK, 0) for _ in range(3))
    with ExitStack() as old, ExitStack() as older, ExitStack() as rest:
        address = older.enter_context(serving(first))
        port = address.rpartition(":")[2]
        old.enter_context(serving(second, f"127.0.0.2:{port}"))
        command = [
            "unshare",
            "-rm",
            sys.executable,
            "-c",
            _ASKING,
            str(hosts),
            f"replicas.test:{port}",
        ]
        asking = rest.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        rest.callback(asking.kill)
        assert asking.stdout is not None
        if asking.stdout.readline() != "mounted\n":
            pytest.skip("nothing can be mounted here")

        def ask(times: int) -> None:
            assert asking.stdin is not None
            assert asking.stdout is not None
            print(times, file=asking.stdin, flush=True)
            assert asking.stdout.readline() == "asked\n"

        ask(1)
        while not (first.calls and second.calls):
            # Until both are connected.
            ask(1)
        before = first.calls, second.calls
        ask(20)
        assert (first.calls, second.calls) == (before[0] + 10, before[1] + 10)
        # One after another is replaced, and no call fails.
        rest.enter_context(serving(third, f"127.0.0.3:{port}"))
        hosts.write_text("127.0.0.2 replicas.test\n127.0.0.3 replicas.test\n")
        older.close()
        while not third.calls:
            ask(1)
        hosts.write_text("127.0.0.3 replicas.test\n")
        old.close()
        found = third.calls
        ask(20)
        assert third.calls == found + 20


def any_(value: Any) -> Any:
    """Of whatever type."""
    return value


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Connection([]), "no server address"),
        (lambda: Connection(any_(None)), "None is no server address"),
        (lambda: Connection(any_([5])), "5 is not a server address"),
        (lambda: Connection("a:1", timeout=any_(None)), "A timeout of None seconds cannot be"),
        (lambda: Connection("a:1", timeout=any_("3")), "A timeout of '3' seconds cannot be"),
        (lambda: Connection("a:1", tls=any_("ca.crt")), r"tls 'ca.crt' cannot be; write Tls\(\)"),
        (lambda: Connection("a:1", token=any_(b"x")), "token is no token"),
        (lambda: Connection("a:1", retries=any_(3)), "retries 3 cannot be; write Retries"),
        (lambda: Retries(attempts=any_("a")), "'a' attempts cannot be"),
        (lambda: Connection("a:1,b:2"), "not a server address"),
        (lambda: Connection(["127.0.0.1:1", "b"]), "'b' is not a server address"),
        (lambda: Connection("10.0.0.1:1", token="x"), "for anyone to read"),
        (lambda: Connection("127.0.0.1:1", token="a b"), "without blanks"),
        (lambda: Connection("127.0.0.1:1", token=""), "without blanks"),
        (lambda: Retries(attempts=0), "give 1 to 5"),
        (lambda: Retries(attempts=6), "give 1 to 5"),
        (lambda: Retries(attempts=True), "give 1 to 5"),
        (lambda: Retries(first_wait=0.001), "of 0.01 to 3600 seconds"),
        (lambda: Connection("127.0.0.1:1", timeout=1e7), "1,000,000 at most"),
        (lambda: Connection(["a:1", "b:1"], tls=Tls()), "one name that all their certificates"),
        (lambda: Retries(first_wait=3.0), "in that order"),
        (lambda: Retries(longest_wait=float("inf")), "in that order"),
        (lambda: Tls(certificate="c.pem"), "go together"),
    ],
)
def test_what_cannot_be_is_said_beforehand(make: Callable[[], object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make()


def test_servers_that_are_not_there_are_named() -> None:
    none = r"^None of the servers 127.0.0.1:1, 127.0.0.1:2 answers"
    with (
        Client(["127.0.0.1:1", "127.0.0.1:2"]) as client,
        pytest.raises(UnavailableError, match=none),
    ):
        client.indexes()


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Connection("127.0.0.1:1", token="secret"))
