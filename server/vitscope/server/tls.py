"""Certificates of the server: checked before gRPC sees them, taken up again when they change."""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from vitscope.server.errors import StartError

_log = logging.getLogger("vitscope.server")

_FLIGHTS = 5
"""More than a handshake has."""
# Of X509_V_ERR: what OpenSSL calls the two ends of a certificate's time.
_NOT_YET_VALID, _EXPIRED = 9, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Where the PEM files lie."""

    certificate: Path
    """With the chain below it."""
    key: Path
    client_authority: Path | None = None
    """Asks callers for certificates of these authorities; None asks for none."""


class Tls:
    """What a port is opened with."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises `StartError` where the files cannot serve."""
        self._files = files
        self._stamp = _stamp(files)
        self._first = _load(files)
        if stat.S_IMODE(files.key.stat().st_mode) & stat.S_IROTH:
            _log.warning("--tls-key %s may be read by every user; chmod o-r it.", files.key)

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`; certificates that are replaced on disk serve new connections."""
        renewed: Callable[[], Any] = self._renewed
        return grpc.dynamic_ssl_server_credentials(
            self._first, renewed, self._files.client_authority is not None
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by gRPC before every handshake; None goes on with what there is."""
        stamp = _stamp(self._files)
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            loaded = _load(self._files)
        except (StartError, OSError) as error:
            # Also seen between the writing of a certificate and of its key.
            _log.error("%s The certificate stays as it was.", error)
            return None
        _log.info("The certificate was read again.")
        return loaded


def _stamp(files: TlsFiles) -> tuple[tuple[int, ...], ...]:
    """Changes with any of the files."""
    found = []
    for path in (files.certificate, files.key, files.client_authority):
        with suppress(OSError):
            if path is not None:
                seen = path.stat()
                found.append((seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino, seen.st_size))
    return tuple(found)


def _load(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    certificate = _read("--tls-cert", files.certificate, b"CERTIFICATE")
    key = _read("--tls-key", files.key, b"PRIVATE KEY")
    if b"ENCRYPTED" in key:
        raise StartError(
            f"--tls-key {files.key} has a passphrase; take it off with `openssl pkey -in FILE`."
        )
    _check_pair(files)
    authority = None
    if files.client_authority is not None:
        authority = _read("--tls-client-ca", files.client_authority, b"CERTIFICATE")
        _trusting("--tls-client-ca", files.client_authority)
    again = files.certificate.read_bytes(), files.key.read_bytes()
    if again != (certificate, key):
        raise StartError("The certificate is being written; start when that is done.")
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)


def _read(flag: str, path: Path, kind: bytes) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StartError(
            f"{flag} {path} cannot be read ({error.strerror}); name a file that can."
        ) from None
    if b"-----BEGIN " not in data or kind not in data:
        what = kind.decode().lower()
        raise StartError(f"{flag} {path} holds no {what} in PEM; name the file that does.")
    return data


def _trusting(flag: str, path: Path) -> ssl.SSLContext:
    """A client's side that trusts the certificates of a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise StartError(
            f"{flag} {path} holds no certificate that can be read ({_reason(error)}); make it anew."
        ) from None
    return context


def _check_pair(files: TlsFiles) -> None:
    """Raise `StartError` unless the key is the certificate's, and the certificate of today.

    A handshake in memory says so, by a client that trusts the certificate itself.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = _trusting("--tls-cert", files.certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        server.load_cert_chain(files.certificate, files.key, lambda: "")
        _shake_hands(client, server)
    except ssl.SSLCertVerificationError as error:
        raise StartError(
            f"--tls-cert {files.certificate} {_why_invalid(error)}; have it renewed."
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise StartError(
                f"--tls-key {files.key} is not the key of --tls-cert {files.certificate}; name the "
                "two that were made together."
            ) from None
        raise StartError(
            f"--tls-cert {files.certificate} and --tls-key {files.key} cannot serve "
            f"({_reason(error)}); make them anew."
        ) from None


def _why_invalid(error: ssl.SSLCertVerificationError) -> str:
    # Refused, not warned of: callers that check would turn away from a server that looks well.
    if error.verify_code == _EXPIRED:
        return "has expired"
    if error.verify_code == _NOT_YET_VALID:
        return "is not valid yet"
    return f"is one that callers will refuse ({error.verify_message})"


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unknown").lower().replace("_", " ")


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(_FLIGHTS):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
