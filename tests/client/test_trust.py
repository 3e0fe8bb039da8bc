"""TLS of the client's side: files that cannot do, and handshakes that fail, each in a sentence."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from certificates import FUTURE, PAST, Authority, Pair
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from started import ServerProcess
from synthetic import Synthetic

from vitscope.client import AsyncClient, Client, Tls, UnavailableError, UsageError
from vitscope.client.cli import main

Serve = Callable[..., ServerProcess]
Captured = pytest.CaptureFixture[str]

PATIENCE = 60.0


@dataclass(frozen=True)
class Files:
    """Of two authorities, and of what one of them signed."""

    folder: Path
    ours: Authority
    theirs: Authority
    server: Pair
    caller: Pair
    stranger: Pair

    def write(self, name: str, *parts: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(b"\n".join(parts))
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("trust")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    return Files(folder, ours, theirs, ours.issue("server"), ours.issue("ada"), theirs.issue("eve"))


def torn(pem: bytes) -> bytes:
    """A PEM block of which most is missing."""
    lines = pem.splitlines()
    return b"\n".join([lines[0], lines[1][:20], lines[-1]])


def rsa_key(file: Path) -> Path:
    """A key of another kind than those of `certificates`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return file


def spoiled(folder: Path, files: Files) -> dict[str, tuple[Tls, str]]:
    """What a client does not begin with, and the sentence."""
    late, early = files.ours.issue("late", PAST), files.ours.issue("early", FUTURE)
    locked = files.ours.issue("locked", passphrase=b"secret")
    old, young = Authority(folder, "old", PAST), Authority(folder, "young", FUTURE)
    authority, caller = files.ours.file.read_bytes(), files.caller
    other_kind = rsa_key(folder / "rsa.key")
    half = files.write("half.pem", torn(authority))
    second = files.write("second.pem", authority, torn(authority))
    torn_certificate = files.write("torn.crt", torn(caller.certificate.read_bytes()))
    torn_key = files.write("torn.key", torn(caller.key.read_bytes()))
    of_today = "holds no authority that is valid today; give one that has not expired."
    no_certificate = "holds no certificate in PEM; name the file that does."
    unreadable = "holds a certificate that cannot be read"
    return {
        "no file": (Tls(roots=folder / "none.pem"), "Cannot read"),
        "a key": (Tls(roots=caller.key), f"{caller.key} {no_certificate}"),
        "no PEM": (Tls(roots=__file__), no_certificate),
        "torn": (Tls(roots=half), f"{half} {unreadable}"),
        "torn behind a whole one": (Tls(roots=second), f"{second} {unreadable}"),
        "expired": (Tls(roots=old.file), f"{old.file} {of_today}"),
        "not begun": (Tls(roots=young.file), f"{young.file} {of_today}"),
        "certificate torn": (
            Tls(certificate=torn_certificate, key=caller.key),
            "cannot be used together",
        ),
        "key torn": (
            Tls(certificate=caller.certificate, key=torn_key),
            f"{caller.certificate} and {torn_key} cannot be used together",
        ),
        "key of another": (
            Tls(certificate=caller.certificate, key=files.stranger.key),
            f"{files.stranger.key} is not the key of {caller.certificate}; name the two that were",
        ),
        "key of another kind": (
            Tls(certificate=caller.certificate, key=other_kind),
            f"{other_kind} is not the key of {caller.certificate}; name the two that were made",
        ),
        "key with a passphrase": (
            Tls(certificate=locked.certificate, key=locked.key),
            f"{locked.key} has a passphrase; take it off with `openssl pkey -in FILE`.",
        ),
        "certificate for a key": (
            Tls(certificate=caller.certificate, key=caller.certificate),
            f"{caller.certificate} holds no private key in PEM",
        ),
        "certificate expired": (
            Tls(certificate=late.certificate, key=late.key),
            f"{late.certificate} has expired; have it renewed.",
        ),
        "certificate not begun": (
            Tls(certificate=early.certificate, key=early.key),
            f"{early.certificate} is not valid yet",
        ),
    }


def test_files_that_cannot_do_are_refused_at_once(files: Files, tmp_path: Path) -> None:
    async def make(tls: Tls) -> None:
        AsyncClient("127.0.0.1:1", tls=tls)

    for case, (tls, sentence) in spoiled(tmp_path, files).items():
        with pytest.raises(UsageError, match=re.escape(sentence)) as found:
            Client("127.0.0.1:1", tls=tls)
        assert str(found.value).endswith("."), case
        assert str(found.value).count(". ") == 0, case
        with pytest.raises(UsageError, match=re.escape(sentence)):
            asyncio.run(make(tls))


@pytest.fixture(scope="module")
def tls_server(synthetic: Synthetic, files: Files, serve: Serve) -> str:
    return serve(synthetic.path, options=files.server.options).address


@pytest.fixture(scope="module")
def mutual_server(synthetic: Synthetic, files: Files, serve: Serve) -> str:
    options = (*files.server.options, "--tls-client-ca", str(files.ours.file))
    return serve(synthetic.path, options=options).address


def test_a_collection_may_have_an_old_authority(
    tls_server: str, files: Files, tmp_path: Path
) -> None:
    old = Authority(tmp_path, "old", PAST).file.read_bytes()
    notes = "Főtanúsítvány\n".encode("iso8859-2")
    roots = files.write("collection.pem", notes, old, notes, files.ours.file.read_bytes())
    with Client(tls_server, tls=Tls(roots=roots)) as client:
        assert client.index().name == "zoo"


def test_a_certificate_of_the_caller_is_shown(mutual_server: str, files: Files) -> None:
    tls = Tls(roots=files.ours.file, certificate=files.caller.certificate, key=files.caller.key)
    with Client(mutual_server, tls=tls) as client:
        assert client.index().name == "zoo"


def test_files_may_come_through_a_pipe(mutual_server: str, files: Files, tmp_path: Path) -> None:
    """As `<(command)` of a shell gives them: to be read once."""
    pipe = tmp_path / "key"
    os.mkfifo(pipe)
    tls, found = Tls(roots=files.ours.file, certificate=files.caller.certificate, key=pipe), []

    def write() -> None:
        pipe.write_bytes(files.caller.key.read_bytes())

    def ask() -> None:
        with Client(mutual_server, tls=tls) as client:
            found.append(client.index().name)

    # Who reads it twice waits for another writer.
    threads = [threading.Thread(target=each, daemon=True) for each in (write, ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert found == ["zoo"]


@contextmanager
def showing(pair: Pair) -> Iterator[str]:
    """A server with a certificate that `vitscope serve` would not begin with."""
    server = grpc.server(ThreadPoolExecutor(1))
    shown = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(shown))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def said(address: str | list[str], tls: Tls | None) -> str:
    """What both clients say of a server that they do not come to terms with."""

    async def ask() -> None:
        async with AsyncClient(address, tls=tls) as client:
            await client.indexes()

    with Client(address, tls=tls) as client, pytest.raises(UnavailableError) as found:
        client.indexes()
    with pytest.raises(UnavailableError) as other:
        asyncio.run(ask())
    assert str(other.value) == str(found.value)
    return str(found.value)


def told(line: list[str], capsys: Captured) -> str:
    """What the command says of it."""
    assert main(["layers", *line]) == 5
    return capsys.readouterr().err


def test_an_authority_that_is_not_trusted(tls_server: str, files: Files, capsys: Captured) -> None:
    sentence = (
        f"The certificate of the server at {tls_server} is of no authority that this client "
        "trusts; give the file of its authority as "
    )
    for tls in (Tls(), Tls(roots=files.theirs.file)):
        assert said(tls_server, tls) == f"{sentence}Tls(roots=…)."
    assert told(["--server", tls_server, "--tls"], capsys) == (
        f"vitscope: {sentence}--tls-ca FILE.\n"
    )


def test_a_certificate_of_another_name(tls_server: str, files: Files, capsys: Captured) -> None:
    sentence = (
        f"The certificate of the server at {tls_server} has other names; ask by one of them, or "
        "give it as "
    )
    tls = Tls(roots=files.ours.file, server_name="gpu-7.example")
    assert said(tls_server, tls) == f"{sentence}Tls(server_name=…)."
    line = ["--server", tls_server, "--tls-ca", str(files.ours.file), "--tls-name", "gpu-7.example"]
    assert told(line, capsys) == f"vitscope: {sentence}--tls-name NAME.\n"


@pytest.mark.parametrize(("days", "what"), [(PAST, "has expired"), (FUTURE, "is not valid yet")])
def test_a_certificate_of_another_day(files: Files, days: tuple[int, int], what: str) -> None:
    with showing(files.ours.issue("another-day", days)) as address:
        sentence = said(address, Tls(roots=files.ours.file))
    assert sentence.startswith(
        f"The certificate of the server at {address}, or that of its authority, {what}; "
    )


def test_plain_text_to_a_port_with_tls(tls_server: str, capsys: Captured) -> None:
    sentence = (
        f"What answers at {tls_server} cut the connection before any call; if it wants TLS, give "
    )
    assert said(tls_server, None) == f"{sentence}tls=Tls()."
    assert told(["--server", tls_server], capsys) == f"vitscope: {sentence}--tls.\n"


def test_tls_to_a_port_without(synthetic_server: str, files: Files, capsys: Captured) -> None:
    sentence = f"What answers at {synthetic_server} speaks no TLS; ask without "
    serve = ", or serve with --tls-cert and --tls-key."
    assert said(synthetic_server, Tls(roots=files.ours.file)) == f"{sentence}tls=Tls(){serve}"
    assert told(["--server", synthetic_server, "--tls"], capsys) == (
        f"vitscope: {sentence}--tls{serve}\n"
    )


def test_a_caller_without_a_certificate(mutual_server: str, files: Files, capsys: Captured) -> None:
    sentence = (
        f"What answers at {mutual_server} cut the connection before any call; if it wants "
        "certificates of its callers, give "
    )
    assert said(mutual_server, Tls(roots=files.ours.file)) == (
        f"{sentence}Tls(certificate=…, key=…)."
    )
    line = ["--server", mutual_server, "--tls-ca", str(files.ours.file)]
    assert told(line, capsys) == f"vitscope: {sentence}--tls-cert FILE --tls-key FILE.\n"


def test_a_caller_whose_certificate_is_not_trusted(mutual_server: str, files: Files) -> None:
    stranger = files.stranger
    tls = Tls(roots=files.ours.file, certificate=stranger.certificate, key=stranger.key)
    assert said(mutual_server, tls) == (
        f"What answers at {mutual_server} cut the connection before any call; if it does not trust "
        "this client's certificate, give another by Tls(certificate=…, key=…)."
    )


def test_replicas_are_not_trusted_either(
    synthetic: Synthetic, tls_server: str, files: Files, serve: Serve
) -> None:
    """Of one host they need no name in common."""
    both = [tls_server, serve(synthetic.path, options=files.server.options).address]
    with Client(both, tls=Tls(roots=files.ours.file)) as client:
        assert {client.index().name for _ in range(4)} == {"zoo"}
    assert said(both, Tls(roots=files.theirs.file)).startswith(
        f"The certificate of a server of {', '.join(both)} is of no authority"
    )
    assert said(both, None).startswith(f"What answers at {', '.join(both)} cut the connection")
