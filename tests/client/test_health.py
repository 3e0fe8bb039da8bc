"""`vitscope health`: whether a server serves, by the exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from started import ServerProcess, run_vitscope
from synthetic import Synthetic

from vitscope.client import Client, Retries, UnavailableError

Serve = Callable[..., ServerProcess]


def check(code: int, *arguments: str | Path) -> str:
    """Ask, and give the one sentence."""
    done = run_vitscope("health", *arguments)
    assert done.returncode == code, done.stderr
    said, nothing = (done.stdout, done.stderr) if code == 0 else (done.stderr, done.stdout)
    assert nothing == ""
    assert said.endswith(".\n")
    assert said.count("\n") == 1
    return said.removeprefix("vitscope: ")


def test_a_server_that_serves(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path)
    asked = ("--server", server.address)
    assert check(0, *asked) == f"{server.address} serves.\n"
    assert check(0, *asked, "zoo") == f"{server.address} serves zoo.\n"
    assert "holds no index 'sea'" in check(1, *asked, "sea")
    assert server.terminate() == 0
    assert "No vitscope server answers" in check(1, *asked)


def test_all_replicas_have_to_serve(synthetic_server: str) -> None:
    check(0, "--server", f"{synthetic_server},{synthetic_server}")
    said = check(1, "--server", f"{synthetic_server},127.0.0.1:1")
    assert "answers at 127.0.0.1:1;" in said


@contextmanager
def running(*services: Callable[[grpc.Server], None]) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    for add in services:
        add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("status", ["UNKNOWN", "NOT_SERVING", "SERVICE_UNKNOWN"])
def test_a_server_that_does_not_serve_says_so(status: str) -> None:
    checks = health.HealthServicer()
    checks.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    with running(lambda server: health_pb2_grpc.add_HealthServicer_to_server(checks, server)) as at:
        assert "is there but does not serve now" in check(1, "--server", at)


def test_replicas_of_which_none_serves_say_so() -> None:
    checks = health.HealthServicer()
    checks.set("vitscope.v1.ActivationService", health_pb2.HealthCheckResponse.NOT_SERVING)
    with (
        running(lambda server: health_pb2_grpc.add_HealthServicer_to_server(checks, server)) as at,
        Client([at, at], retries=Retries(attempts=1)) as client,
        pytest.raises(UnavailableError, match="says that it does not serve now"),
    ):
        client.indexes()


class Unaware(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Has the health of nothing."""

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say so."""
        context.abort(grpc.StatusCode.NOT_FOUND, "")


def test_a_server_that_does_not_tell_its_own_health() -> None:
    def add(server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(Unaware(), server)

    with running(add) as at:
        assert f"The server at {at} does not tell its health;" in check(1, "--server", at)
        assert "holds no index 'zoo'" in check(1, "--server", at, "zoo")


def test_a_server_of_another_kind() -> None:
    with running() as at:
        assert "does not know this question" in check(1, "--server", at)


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        at = f"127.0.0.1:{listener.getsockname()[1]}"
        assert "did not answer in time" in check(1, "--server", at, "--timeout", "0.2")


def test_over_tls_by_the_name_in_the_certificate(
    synthetic: Synthetic, serve: Serve, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path, "ca"), Authority(tmp_path, "other")
    pair = authority.issue("server", hosts=["vitscope"])
    callers = ("--tls-client-ca", str(other.file))
    server = serve(synthetic.path, options=(*pair.options, *callers))
    asked = ("--server", server.address, "--tls-ca", authority.file, "--tls-name", "vitscope")
    caller = other.issue("caller")
    mine = ("--tls-cert", caller.certificate, "--tls-key", caller.key)
    check(0, *asked, *mine)
    check(1, *asked)
    check(1, "--server", server.address)
    check(1, *asked, *mine, "--tls-name", "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--server", "nowhere"), "is not a server address"),
        (("--tls-ca", __file__), "holds no certificate in PEM"),
        (("--tls-cert", __file__), "go together"),
        (("--timeout", "0"), "give a positive number"),
        (("\udcff",), "is not text that UTF-8 can carry"),
    ],
)
def test_wrong_usage_is_told_from_a_server_that_is_down(
    arguments: tuple[str, ...], word: str
) -> None:
    assert word in check(2, *arguments)


def test_little_is_loaded(synthetic_server: str) -> None:
    """Probes run every few seconds, in images where some of it is not even there."""
    code = (
        "import sys; from vitscope.client.cli import main; "
        f"code = main(['health', '--server', {synthetic_server!r}]); "
        "heavy = ['torch', 'timm', 'faiss', 'tensorstore', 'prometheus_client', 'pandas']; "
        "print(code, [name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
