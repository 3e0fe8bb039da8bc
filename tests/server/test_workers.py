"""Several processes on one port: they start and end together, and one that dies comes back."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import grpc
import pytest
from permissions import locked, public_folder
from processes import children_of
from started import VITSCOPE, ServerProcess, run_vitscope
from synthetic import Synthetic, build

from vitscope.server.app import Settings
from vitscope.server.tokens import line_of, new_token
from vitscope.server.workers import _Parent, _work
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]

LAYER = "blocks.0.mlp"
PATIENCE = 60.0


def workers_of(server: ServerProcess) -> list[int]:
    """Processes that were started by the server to serve."""
    return children_of(server.process.pid)


def wait_for(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def has_started(parent: int, many: int) -> bool:
    return len(children_of(parent)) >= many


def has_said(server: ServerProcess, what: str, times: int) -> bool:
    return server.errors.read_text().count(what) == times


def has_another(server: ServerProcess, victim: int) -> bool:
    now = workers_of(server)
    return victim not in now and len(now) == 2


def ask(address: str, truth: Synthetic) -> None:
    """One question on a connection of its own, which any of the workers may get."""
    # Channels to one address share a connection unless they are told not to.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        reply = ActivationServiceStub(channel).TopImages(
            pb.TopImagesRequest(layer=LAYER, channel=4, k=9),
            timeout=PATIENCE,
            wait_for_ready=True,
        )
    ranking = truth.ranking(LAYER, "mean", 4)[:9]
    assert [(image.row, image.score) for image in reply.images] == ranking


def test_a_worker_that_is_killed_comes_back(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--workers", "2"))
    first = workers_of(server)
    assert len(first) == 2
    for victim in first:
        os.kill(victim, signal.SIGKILL)
        for _ in range(10):
            ask(server.address, synthetic)
        wait_for(partial(has_another, server, victim))
    assert not set(first) & set(workers_of(server))
    for _ in range(10):
        ask(server.address, synthetic)
    assert server.errors.read_text().count("ended by itself (killed by SIGKILL)") == 2
    assert server.terminate() == 0


@pytest.mark.parametrize("how", ["terminate", "interrupt"])
def test_a_signal_ends_all(synthetic: Synthetic, serve: Serve, how: str) -> None:
    server = serve(synthetic.path, options=("--workers", "3"))
    there = workers_of(server)
    assert len(there) == 3
    assert (server.terminate() if how == "terminate" else server.interrupt()) == 0
    assert server.errors.read_text() == ""
    assert not [pid for pid in there if Path(f"/proc/{pid}").exists()]


def test_ctrl_c_in_a_terminal_reaches_all_and_ends_all(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--workers", "2"))
    for pid in workers_of(server):
        os.kill(pid, signal.SIGINT)
    assert server.interrupt() == 0
    assert "Traceback" not in server.errors.read_text()


def test_ctrl_c_at_the_start_is_not_lost(synthetic: Synthetic) -> None:
    command = [str(VITSCOPE), "serve", str(synthetic.path), "--listen", "127.0.0.1:0"]
    for many in (1, 3):
        with subprocess.Popen(
            [*command, "--workers", "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as server:
            wait_for(partial(has_started, server.pid, many))
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=PATIENCE)
        assert (server.returncode, errors) == (0, b"")


def test_a_signal_without_a_name_ends_a_worker_alone(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--workers", "2"))
    victim = workers_of(server)[0]
    os.kill(victim, signal.SIGRTMIN + 6)
    wait_for(partial(has_another, server, victim))
    assert "ended by itself (killed by Real-time signal 6)" in server.errors.read_text()
    assert server.terminate() == 0


def test_a_worker_that_the_system_has_no_room_for_is_tried_again(
    synthetic: Synthetic, serve: Serve
) -> None:
    server = serve(synthetic.path, options=("--workers", "2"))
    victim, parent = workers_of(server)[0], server.process.pid
    _, most = before = resource.prlimit(parent, resource.RLIMIT_NOFILE)
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (6, most))
    os.kill(victim, signal.SIGKILL)
    sentence = "cannot be started (Too many open files); it is tried again"
    wait_for(lambda: sentence in server.errors.read_text())
    resource.prlimit(parent, resource.RLIMIT_NOFILE, before)
    wait_for(partial(has_another, server, victim))
    assert "Traceback" not in server.errors.read_text()
    assert server.terminate() == 0


def test_pauses_grow_to_the_longest_and_end_with_what_served() -> None:
    parent = _Parent(Settings(indexes=[]), 1)
    pauses = [parent._later(0, 0.0) for _ in range(2000)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.2, 30.0)
    assert parent._later(0, 11.0) == 0.1


def test_a_reload_is_passed_on_to_all(synthetic: Synthetic, serve: Serve, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(line_of("ada", new_token()) + "\n")
    server = serve(synthetic.path, options=("--workers", "2", "--tokens", str(tokens)))
    for times in (1, 2):
        server.process.send_signal(signal.SIGHUP)
        wait_for(partial(has_said, server, "Tokens were read again; there are 1.", 2 * times))
    assert server.terminate() == 0


def test_a_file_that_a_worker_may_not_read_is_told_by_its_name() -> None:
    told, tells = Pipe(duplex=False)
    with public_folder() as folder:
        path = build(folder / "zoo").path
        with locked(path / "CURRENT"):
            _work(Settings(indexes=[path], listen="127.0.0.1:0"), tells, 0)
    said = told.recv()
    assert (type(said), said.filename) == (PermissionError, str(path / "CURRENT"))


def test_workers_do_not_outlive_their_parent(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--workers", "2"))
    there = workers_of(server)
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not [pid for pid in there if Path(f"/proc/{pid}").exists()])


def test_another_server_cannot_take_the_port(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--workers", "2"))
    for more in ([], ["--workers", "2"]):
        done = run_vitscope("serve", synthetic.path, "--listen", server.address, *more)
        assert done.returncode == 6
        assert f"Cannot listen on {server.address}: the port is in use" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        done = run_vitscope("serve", synthetic.path, "--listen", address, "--workers", "2")
        assert done.returncode == 6


def test_what_cannot_start_is_one_sentence(tmp_path: Path, synthetic: Synthetic) -> None:
    listen = ("--listen", "127.0.0.1:0")
    cases: list[tuple[list[str | Path], int, str]] = [
        ([tmp_path, *listen, "--workers", "2"], 4, "is not an index"),
        ([synthetic.path, *listen, "--workers", "0"], 6, "--workers 0 cannot be"),
        ([synthetic.path, "--listen", "nowhere", "--workers", "2"], 6, "is not HOST:PORT"),
        ([synthetic.path, "--listen", "::1:0", "--workers", "2"], 6, "write brackets around it"),
        ([synthetic.path, "--listen", "::1:0"], 6, "write brackets around it"),
        ([synthetic.path, *listen, "--grace", "inf", "--workers", "2"], 6, "--grace inf cannot be"),
        ([synthetic.path, *listen, "--grace", "nan"], 6, "--grace nan cannot be"),
        ([synthetic.path, *listen, "--grace", "1e300"], 6, "--grace 1e+300 cannot be"),
        ([synthetic.path, *listen, "--grace", "-1"], 6, "--grace -1.0 cannot be"),
        ([synthetic.path, *listen, "--follow", "nan"], 6, "--follow is a number"),
    ]
    for arguments, code, word in cases:
        done = run_vitscope("serve", *arguments)
        assert (done.returncode, done.stdout) == (code, "")
        assert word in done.stderr
        assert done.stderr.count("\n") == 1
