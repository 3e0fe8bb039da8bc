"""Bearer tokens against a server process; their rates by a clock of the tests."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from server.refusals import check_sentence, check_start_error, refused
from started import VITSCOPE, ServerProcess, run_vitscope
from synthetic import Synthetic

from vitscope.server.errors import OverloadedError, StartError, UnauthenticatedError
from vitscope.server.tokens import LOOK_SECONDS, Bucket, Rate, TokenFile, line_of
from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]
TOKEN, SLOW, OTHER = (f"vitscope_{letter * 43}" for letter in "abc")
LINES = f"# callers\n\n{line_of('ada', TOKEN)}\n{line_of('slow', SLOW, Rate(3, 'h'))} # by hand\n"


def metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def index_name(stub: ActivationServiceStub, token: str) -> str:
    reply = stub.GetIndex(pb.GetIndexRequest(), timeout=60, metadata=metadata(token))
    return reply.index.name


@pytest.fixture(scope="module")
def server(
    synthetic: Synthetic, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(LINES)
    return serve(synthetic.path, options=("--tokens", str(file), "--reflection"))


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def check_nothing_told(text: str) -> None:
    for token in (TOKEN, SLOW, OTHER):
        assert token not in text
        assert line_of("x", token).partition(":")[2] not in text
    assert "Traceback" not in text


def test_a_token_of_the_file_lets_in(channel: grpc.Channel) -> None:
    assert index_name(ActivationServiceStub(channel), TOKEN) == "zoo"
    stub = ActivationServiceStub(channel)
    asked = pb.GetImagesRequest(rows=[1])
    for scheme in ("Bearer", "bearer"):
        # A stream as well.
        given = (("authorization", f"{scheme} {TOKEN}"),)
        assert len(list(stub.GetImages(asked, timeout=60, metadata=given))) == 1


@pytest.mark.parametrize(
    "given",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization-bin", f"Bearer {TOKEN}".encode()),),
        (*metadata(TOKEN), *metadata(TOKEN)),
        metadata(OTHER),
        metadata(TOKEN[:-1]),
        metadata(f"{TOKEN}x"),
        metadata(f"{TOKEN} {TOKEN}"),
        metadata(line_of("ada", TOKEN).partition(":")[2]),
    ],
)
def test_callers_without_one_are_refused(
    server: ServerProcess, channel: grpc.Channel, given: tuple[tuple[str, Any], ...]
) -> None:
    stub = ActivationServiceStub(channel)
    calls: tuple[Callable[[], object], ...] = (
        lambda: stub.GetIndex(pb.GetIndexRequest(), timeout=60, metadata=given),
        lambda: list(stub.GetImages(pb.GetImagesRequest(rows=[1]), timeout=60, metadata=given)),
    )
    for call in calls:
        code, details = refused(call)
        assert code == StatusCode.UNAUTHENTICATED
        check_sentence(details)
        check_nothing_told(details)
    check_nothing_told(server.errors.read_text())


def test_nothing_of_a_request_is_read_before_the_token(channel: grpc.Channel) -> None:
    """Neither what cannot be parsed, nor what is too large, nor a method that is not there."""
    for method in ("GetIndex", "GetImages", "Nothing"):
        call: Any = channel.unary_unary(f"/vitscope.v1.ActivationService/{method}")
        for data in (b"\xff", bytes(8 << 20)):
            assert refused(lambda: call(data, timeout=60))[0] == StatusCode.UNAUTHENTICATED  # noqa: B023


def test_health_needs_none_and_reflection_one(channel: grpc.Channel) -> None:
    checks = health_pb2_grpc.HealthStub(channel)
    for _ in range(50):
        reply = checks.Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    watch = checks.Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    def reflected(**how: Any) -> int:
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        (reply,) = stub.ServerReflectionInfo(iter(requests), timeout=60, **how)
        return len(reply.list_services_response.service)

    assert refused(reflected)[0] == StatusCode.UNAUTHENTICATED
    assert reflected(metadata=metadata(TOKEN)) == 3


def test_a_token_used_too_often_is_told_when_to_come_back(channel: grpc.Channel) -> None:
    stub = ActivationServiceStub(channel)
    for _ in range(3):
        assert index_name(stub, SLOW) == "zoo"
    with pytest.raises(grpc.RpcError) as caught:
        index_name(stub, SLOW)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == StatusCode.RESOURCE_EXHAUSTED
    check_sentence(caught.value.details() or "")
    assert "3 calls an hour are used up" in (caught.value.details() or "")
    trailing = dict(caught.value.trailing_metadata() or ())
    # Nobody waits for twenty minutes within a call.
    assert trailing["grpc-retry-pushback-ms"] == "-1"
    # Others are not held up, nor are checks.
    assert index_name(stub, TOKEN) == "zoo"
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)


def until(happens: Callable[[], bool]) -> None:
    for _ in range(600):
        if happens():
            return
        sleep(0.1)
    raise AssertionError("It did not happen.")


@pytest.mark.parametrize("hang_up", [False, True])
def test_the_file_is_read_again(
    synthetic: Synthetic, serve: Serve, tmp_path: Path, hang_up: bool
) -> None:
    file = tmp_path / "tokens"
    file.write_text(line_of("ada", TOKEN))
    server = serve(synthetic.path, options=("--tokens", str(file)))

    def change(text: str, said: str) -> None:
        count = server.errors.read_text().count(said)
        file.write_text(text)
        if hang_up:
            server.process.send_signal(signal.SIGHUP)

        def read_again() -> bool:
            admitted(TOKEN)
            return server.errors.read_text().count(said) > count

        until(read_again)

    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)

        def admitted(token: str) -> bool:
            asked = pb.GetIndexRequest()
            call: Any = stub.GetIndex.future(asked, timeout=60, metadata=metadata(token))
            code = call.code()
            assert code in (StatusCode.OK, StatusCode.UNAUTHENTICATED)
            return bool(code == StatusCode.OK)

        assert (admitted(TOKEN), admitted(OTHER)) == (True, False)
        change(line_of("grace", OTHER), "Tokens were read again; there are 1.")
        assert (admitted(TOKEN), admitted(OTHER)) == (False, True)
        for broken in (f"ada {TOKEN}\n", "", f"{line_of('ada', TOKEN)} often\n"):
            change(broken, "Tokens stay as they were.")
            assert (admitted(TOKEN), admitted(OTHER)) == (False, True)
        both = f"{line_of('ada', TOKEN)}\n{line_of('grace', OTHER)}\n"
        change(both, "Tokens were read again; there are 2.")
        assert (admitted(TOKEN), admitted(OTHER)) == (True, True)
    check_nothing_told(server.errors.read_text())
    assert server.terminate() == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no token"),
        ("# nobody\n", "has no token"),
        (f"ada {TOKEN}\n", "Line 1 of"),
        (f"\n{TOKEN}\n", "Line 2 of"),
        (f"ada sha256:{'0' * 63}\n", "is not NAME sha256:HEX [RATE]"),
        (f"ada sha256:{'G' * 64}\n", "is not NAME sha256:HEX [RATE]"),
        (f"ada sha256:{'0' * 64} 5\n", "is not NAME sha256:HEX [RATE]"),
        (f"ada sha256:{'0' * 64} 0/s\n", "is not NAME sha256:HEX [RATE]"),
        (f"ada sha256:{'0' * 64} 5/s 6/s\n", "is not NAME sha256:HEX [RATE]"),
        (f"ada sha256:{'0' * 64}\nbob sha256:{'0' * 64}\n", "Line 2 of"),
        ("\udcff", "is not UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_files_that_a_server_does_not_start_with(
    synthetic: Synthetic, tmp_path: Path, text: str | None, sentence: str
) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    arguments: list[str | Path] = [synthetic.path, "--listen", "127.0.0.1:0", "--tokens", file]
    said = check_start_error(arguments, 6)
    assert sentence in said
    check_nothing_told(said)
    assert "0000" not in said


def test_the_command_gives_a_line_that_serves(
    synthetic: Synthetic, serve: Serve, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    tokens = []
    with file.open("w") as lines:
        for options in ((), ("--rate", "2/h")):
            done = run_vitscope("token", "ada", *options)
            assert done.returncode == 0
            lines.write(done.stdout)
            tokens.append(done.stderr.strip())
            assert tokens[-1] not in done.stdout
    assert len(set(tokens)) == 2
    server = serve(synthetic.path, options=("--tokens", str(file)))
    with grpc.insecure_channel(server.address) as channel:
        stub = ActivationServiceStub(channel)
        for token in (*tokens, *tokens):
            assert index_name(stub, token) == "zoo"
        code, _ = refused(lambda: index_name(stub, tokens[1]))
        assert code == StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "NAME"),
        (("two words",), "is no name"),
        (("#",), "is no name"),
        (("ada", "--rate", "often"), "'often' is no rate; write 50/s"),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], sentence: str) -> None:
    done = run_vitscope("token", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "vitscope_" not in done.stderr


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    rate=st.builds(Rate, st.integers(1, 50), st.sampled_from("smh")),
    steps=st.lists(st.floats(0, 4000), max_size=200),
)
def test_no_stretch_of_time_has_more_calls_than_the_rate(rate: Rate, steps: list[float]) -> None:
    """In T seconds a full bucket and what flows in: never more."""
    clock = Clock()
    bucket = Bucket(rate, clock)
    taken: list[float] = []
    for step in steps:
        clock.now += step
        wait = bucket.take()
        if not wait:
            taken.append(clock.now)
            continue
        assert 0 < wait <= rate.interval * (1 + 1e-9)
        clock.now += wait + 1e-6
        assert bucket.take() == 0
        taken.append(clock.now)
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            flowed = (taken[last] - begin) / rate.interval
            assert last - first + 1 <= rate.calls + flowed + 1e-6


@given(st.builds(Rate, st.integers(1, 9_999_999), st.sampled_from("smh")))
def test_a_rate_is_read_as_it_is_written(rate: Rate) -> None:
    assert Rate.of(str(rate)) == rate


def name_of(tokens: TokenFile, token: str) -> str:
    """The name of a token that has a call left."""
    found = tokens.find(token)
    found.take()
    return found.name


def test_a_rate_goes_on_over_a_change_of_the_file(tmp_path: Path) -> None:
    file, clock = tmp_path / "tokens", Clock()
    file.write_text(line_of("slow", SLOW, Rate(1, "h")))
    tokens = TokenFile(file, clock)
    assert name_of(tokens, SLOW) == "slow"
    file.write_text(f"{line_of('slower', SLOW, Rate(1, 'h'))}\n{line_of('ada', TOKEN)}\n")
    clock.now += LOOK_SECONDS
    with pytest.raises(OverloadedError):
        name_of(tokens, SLOW)
    assert name_of(tokens, TOKEN) == "ada"
    file.write_text(line_of("slow", SLOW, Rate(2, "h")))
    # It does not look at every call.
    assert name_of(tokens, TOKEN) == "ada"
    clock.now += LOOK_SECONDS
    with pytest.raises(UnauthenticatedError):
        name_of(tokens, TOKEN)
    assert name_of(tokens, SLOW) == "slow"
    file.unlink()
    clock.now += LOOK_SECONDS
    assert name_of(tokens, SLOW) == "slow"
    with pytest.raises(StartError):
        TokenFile(file)


def test_a_line_that_cannot_be_written_shows_no_token() -> None:
    command = [str(VITSCOPE), "token", "ada"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert "The token's line cannot be written (No space left on device)" in done.stderr
    assert done.stderr.count("\n") == 1
