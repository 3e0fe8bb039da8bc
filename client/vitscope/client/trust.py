"""Certificates of the client's side: what is wrong with them is said before any server is asked."""

import os
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from vitscope.client.errors import UsageError

_FLIGHTS = 5
"""More than a handshake has."""
# Of X509_V_ERR: what OpenSSL calls the two ends of a certificate's time.
_NOT_YET_VALID, _EXPIRED = 9, 10
# What it says of a key that is not the certificate's; the last two of one of another kind.
_OTHER_KEY = ("key values mismatch", "key type mismatch", "no certificate assigned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a server is trusted, and how it can trust this client.

    Client("gpu-7:50051", tls=Tls(roots="ca.pem"))

    Files are PEM. Without `roots` the authorities are those that gRPC brings. `certificate` and
    `key`, which has no passphrase, go together, for a server that asks for them. `server_name` is
    the name in the server's certificate, where that is not the host of the address.

    A client raises `UsageError` for files that cannot be read, a key of another certificate, and
    certificates that have expired. Of authorities one at least has to be valid: a collection often
    has old ones.
    """

    roots: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("A certificate and its key go together; give both or neither.")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' contents; raises `UsageError` for what cannot be trusted or shown."""
        roots = certificate = key = None
        if self.roots is not None:
            roots = _pem(self.roots, b"CERTIFICATE")
            _check_roots(self.roots, roots)
        if self.certificate is not None and self.key is not None:
            certificate, key = _pem(self.certificate, b"CERTIFICATE"), _pem(self.key, b"KEY")
            if b"ENCRYPTED" in key:
                raise UsageError(
                    f"{self.key} has a passphrase; take it off with `openssl pkey -in FILE`."
                )
            # What comes through a pipe can be read only once.
            if Path(self.certificate).is_file() and Path(self.key).is_file():
                _check_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(roots, key, certificate)


def _pem(path: str | os.PathLike[str], kind: bytes) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None
    # gRPC would only say that nothing answers.
    if b"-----BEGIN " not in data or kind + b"-----" not in data:
        what = "certificate" if kind == b"CERTIFICATE" else "private key"
        raise UsageError(f"{path} holds no {what} in PEM; name the file that does.")
    return data


def _check_roots(path: str | os.PathLike[str], data: bytes) -> None:
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # Between certificates stands what people like, in any encoding.
        context.load_verify_locations(cadata=data.decode("ascii", "ignore"))
    except ssl.SSLError as error:
        raise UsageError(
            f"{path} holds a certificate that cannot be read ({_reason(error)}); fetch it anew."
        ) from None
    now = time.time()
    # A certificate that is no authority's is not among these; the handshake judges it.
    found = context.get_ca_certs()
    if found and not any(_begin(each) <= now <= _end(each) for each in found):
        raise UsageError(
            f"{path} holds no authority that is valid today; give one that has not expired."
        )


def _begin(certificate: Mapping[str, object]) -> int:
    return ssl.cert_time_to_seconds(str(certificate["notBefore"]))


def _end(certificate: Mapping[str, object]) -> int:
    return ssl.cert_time_to_seconds(str(certificate["notAfter"]))


def _check_pair(certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
    """Raise `UsageError` unless the key is the certificate's, and the certificate of today.

    A handshake in memory says so, with a server that trusts the certificate itself.
    """
    caller, server = _context(ssl.PROTOCOL_TLS_CLIENT), _context(ssl.PROTOCOL_TLS_SERVER)
    caller.check_hostname = False
    caller.verify_mode = ssl.CERT_NONE
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        for context in (caller, server):
            context.load_cert_chain(certificate, key, lambda: "")
        server.load_verify_locations(certificate)
    except OSError as error:
        reason = _reason(error) if isinstance(error, ssl.SSLError) else error.strerror
        if reason in _OTHER_KEY:
            raise UsageError(
                f"{key} is not the key of {certificate}; name the two that were made together."
            ) from None
        raise UsageError(
            f"{certificate} and {key} cannot be used together ({reason}); make them anew."
        ) from None
    try:
        _shake_hands(caller, server)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            raise UsageError(f"{certificate} has expired; have it renewed.") from None
        if error.verify_code == _NOT_YET_VALID:
            raise UsageError(
                f"{certificate} is not valid yet; compare its dates with the clock of this machine."
            ) from None
    except ssl.SSLError:
        # What else there may be is for the server to judge.
        pass


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    # gRPC's own library takes keys that a system may hold to be too short.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unknown").lower().replace("_", " ")


def _shake_hands(caller: ssl.SSLContext, server: ssl.SSLContext) -> None:
    to_caller, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        caller.wrap_bio(to_caller, to_server),
        server.wrap_bio(to_server, to_caller, server_side=True),
    )
    for _ in range(_FLIGHTS):
        for end in ends:
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
