"""TLS over real sockets: who gets in, who does not, and what a server refuses to start with."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from certificates import FUTURE, PAST, Authority, Pair
from grpc import StatusCode
from server.refusals import check_start_error, refused
from started import ServerProcess
from synthetic import Synthetic

from vitscope.v1 import query_pb2 as pb
from vitscope.v1.service_pb2_grpc import ActivationServiceStub

Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def stranger(folder: Path) -> Authority:
    return Authority(folder, "stranger")


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture(scope="module")
def server(synthetic: Synthetic, pair: Pair, serve: Serve) -> ServerProcess:
    return serve(synthetic.path, options=pair.options)


@pytest.fixture(scope="module")
def mutual(synthetic: Synthetic, pair: Pair, authority: Authority, serve: Serve) -> ServerProcess:
    options = (*pair.options, "--tls-client-ca", str(authority.file))
    return serve(synthetic.path, options=options)


def name_over(channel: grpc.Channel) -> str:
    with channel:
        request = pb.GetIndexRequest()
        return ActivationServiceStub(channel).GetIndex(request, timeout=60).index.name


def check_turned_away(server: ServerProcess, channel: grpc.Channel) -> None:
    """The caller is told nothing, and the server does not mind."""
    code, details = refused(lambda: name_over(channel))
    assert code == StatusCode.UNAVAILABLE
    for text in (details, server.errors.read_text()):
        assert "Traceback" not in text
        assert "certificates" not in text
        assert ".pem" not in text
        assert ".key" not in text


def test_a_caller_that_trusts_the_authority_is_answered(
    server: ServerProcess, authority: Authority
) -> None:
    assert name_over(authority.channel(server.address)) == "zoo"


def test_a_caller_that_trusts_another_authority_turns_away(
    server: ServerProcess, authority: Authority, stranger: Authority
) -> None:
    check_turned_away(server, stranger.channel(server.address))
    assert name_over(authority.channel(server.address)) == "zoo"


def test_plain_text_to_a_port_with_tls(server: ServerProcess, authority: Authority) -> None:
    check_turned_away(server, grpc.insecure_channel(server.address))
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: zoo\r\n\r\n")
        received = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(4096):
                received += data
        # An alert at most.
        assert len(received) < 64
    assert name_over(authority.channel(server.address)) == "zoo"


def test_tls_to_a_port_without(synthetic: Synthetic, serve: Serve, authority: Authority) -> None:
    plain = serve(synthetic.path)
    check_turned_away(plain, authority.channel(plain.address))
    assert name_over(grpc.insecure_channel(plain.address)) == "zoo"


def test_a_certificate_of_the_authority_lets_a_caller_in(
    mutual: ServerProcess, authority: Authority
) -> None:
    assert name_over(authority.channel(mutual.address, authority.issue("caller"))) == "zoo"


def test_callers_whose_certificate_does_not_do(
    mutual: ServerProcess, authority: Authority, stranger: Authority
) -> None:
    check_turned_away(mutual, grpc.insecure_channel(mutual.address))
    for caller in (
        None,
        authority.issue("late", PAST),
        authority.issue("early", FUTURE),
        stranger.issue("other"),
    ):
        check_turned_away(mutual, authority.channel(mutual.address, caller))
    assert name_over(authority.channel(mutual.address, authority.issue("again"))) == "zoo"


def presented(address: str) -> str:
    """The certificate that a server shows to a new connection."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=60)


def test_a_certificate_that_is_replaced_serves_new_connections(
    synthetic: Synthetic, serve: Serve, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    pair, second, late = (authority.issue(name) for name in ("server", "second", "late"))
    first, new = pair.certificate.read_text(), second.certificate.read_text()
    server = serve(synthetic.path, options=pair.options)
    assert presented(server.address) == first
    with authority.channel(server.address) as kept:
        stub = ActivationServiceStub(kept)
        stub.GetIndex(pb.GetIndexRequest(), timeout=60)
        # A certificate without its key is not taken up, nor is what cannot be read.
        shutil.copy(second.certificate, pair.certificate)
        assert presented(server.address) == first
        shutil.copy(second.key, pair.key)
        assert presented(server.address) == new
        pair.certificate.write_text("nothing")
        assert presented(server.address) == new
        pair.certificate.unlink()
        assert presented(server.address) == new
        shutil.copy(late.certificate, pair.certificate)
        shutil.copy(late.key, pair.key)
        assert presented(server.address) == late.certificate.read_text()
        # Connections that are there go on.
        assert stub.GetIndex(pb.GetIndexRequest(), timeout=60).index.name == "zoo"
    assert name_over(authority.channel(server.address)) == "zoo"
    log = server.errors.read_text()
    assert "is not the key of --tls-cert" in log
    assert "Traceback" not in log
    assert server.terminate() == 0


def test_a_hangup_does_not_end_a_server_with_tls(
    synthetic: Synthetic, serve: Serve, authority: Authority, pair: Pair
) -> None:
    server = serve(synthetic.path, options=pair.options)
    server.process.send_signal(signal.SIGHUP)
    assert name_over(authority.channel(server.address)) == "zoo"
    assert server.terminate() == 0


def test_callers_authorities_are_replaced_too(
    synthetic: Synthetic, serve: Serve, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    callers = tmp_path / "callers.pem"
    shutil.copy(authority.file, callers)
    options = (*authority.issue("server").options, "--tls-client-ca", str(callers))
    server = serve(synthetic.path, options=options)
    old, new = authority.issue("old"), other.issue("new")
    assert name_over(authority.channel(server.address, old)) == "zoo"
    shutil.copy(other.file, callers)
    assert name_over(authority.channel(server.address, new)) == "zoo"
    check_turned_away(server, authority.channel(server.address, old))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("cert:crt",), "give --tls-key too"),
        (("key:key",), "give --tls-cert too"),
        (("client-ca:pem",), "--tls-client-ca is for TLS"),
        (("cert:missing", "key:key"), "cannot be read (No such file or directory)"),
        (("cert:crt", "key:missing"), "cannot be read (No such file or directory)"),
        (("cert:crt", "key:key", "client-ca:missing"), "--tls-client-ca"),
        (("cert:key", "key:key"), "holds no certificate in PEM"),
        (("cert:crt", "key:crt"), "holds no private key in PEM"),
        (("cert:crt", "key:key", "client-ca:key"), "holds no certificate in PEM"),
        (("cert:torn", "key:key"), "holds no certificate that can be read"),
        (("cert:crt", "key:torn-key"), "cannot serve"),
        (("cert:crt", "key:key", "client-ca:torn"), "holds no certificate that can be read"),
        (("cert:crt", "key:other"), "is not the key of --tls-cert"),
        (("cert:crt", "key:locked"), "has a passphrase"),
        (("cert:late", "key:late-key"), "has expired; have it renewed"),
        (("cert:early", "key:early-key"), "is not valid yet"),
    ],
)
def test_what_a_server_does_not_start_with(
    synthetic: Synthetic, tmp_path: Path, flags: tuple[str, ...], sentence: str
) -> None:
    authority = Authority(tmp_path, "authority")
    pair, other = authority.issue("server"), authority.issue("other")
    late, early = authority.issue("late", PAST), authority.issue("early", FUTURE)
    torn, torn_key = tmp_path / "torn.crt", tmp_path / "torn.key"
    for whole, path in ((pair.certificate, torn), (pair.key, torn_key)):
        lines = whole.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:20], lines[-1]]))
    files = {
        "crt": pair.certificate,
        "key": pair.key,
        "pem": authority.file,
        "missing": tmp_path / "nothing",
        "torn": torn,
        "torn-key": torn_key,
        "other": other.key,
        "locked": authority.issue("locked", passphrase=b"secret").key,
        "late": late.certificate,
        "late-key": late.key,
        "early": early.certificate,
        "early-key": early.key,
    }
    options: list[str | Path] = []
    for flag in flags:
        name, _, file = flag.partition(":")
        options += [f"--tls-{name}", files[file]]
    assert sentence in check_start_error([synthetic.path, "--listen", "127.0.0.1:0", *options], 6)


def test_a_key_that_everybody_may_read_is_warned_of(
    synthetic: Synthetic, serve: Serve, tmp_path: Path
) -> None:
    pair = Authority(tmp_path, "authority").issue("server")
    pair.key.chmod(0o644)
    server = serve(synthetic.path, options=pair.options)
    (line,) = server.errors.read_text().splitlines()
    assert line.endswith(f"WARNING --tls-key {pair.key} may be read by every user; chmod o-r it.")


EVERYWHERE = "0.0.0.0:0"


def test_other_machines_are_not_let_in_without_tls(synthetic: Synthetic, tmp_path: Path) -> None:
    text = check_start_error([synthetic.path, "--listen", EVERYWHERE], 6)
    assert "--listen 0.0.0.0:0 is reached from other machines" in text
    assert "give --tls-cert and --tls-key, or --insecure" in text
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ada sha256:{'0' * 64}\n")
    arguments: list[str | Path] = [synthetic.path, "--listen", EVERYWHERE, "--tokens", tokens]
    assert "tokens and answers would go over the network" in check_start_error(arguments, 6)


def test_insecure_allows_it_and_warns(synthetic: Synthetic, serve: Serve) -> None:
    server = serve(synthetic.path, options=("--listen", EVERYWHERE, "--insecure"))
    port = server.address.rpartition(":")[2]
    assert name_over(grpc.insecure_channel(f"127.0.0.1:{port}")) == "zoo"
    assert "WARNING --insecure: answers go from 0.0.0.0:0" in server.errors.read_text()


def test_tls_allows_it(
    synthetic: Synthetic, serve: Serve, authority: Authority, pair: Pair
) -> None:
    server = serve(synthetic.path, options=("--listen", EVERYWHERE, *pair.options))
    port = server.address.rpartition(":")[2]
    assert name_over(authority.channel(f"127.0.0.1:{port}")) == "zoo"
    assert server.errors.read_text() == ""


def test_localhost_is_this_machine(synthetic: Synthetic, serve: Serve) -> None:
    said = serve(synthetic.path, options=("--listen", "localhost:0")).errors.read_text()
    # gRPC itself tells where one of the two addresses has no such port free.
    assert "--insecure" not in said
