"""Who may ask a server, and over what: TLS, tokens, and addresses that others reach."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health

from vitscope.server.calls import current
from vitscope.server.errors import StartError
from vitscope.server.tls import Tls, TlsFiles
from vitscope.server.tokens import TokenFile

_log = logging.getLogger("vitscope.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """As given on the command line; nothing of it lets everybody ask, from this machine."""

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    insecure: bool = False
    """Whether others may reach the server without TLS."""

    @property
    def has_files(self) -> bool:
        """Whether there is anything to be read again at SIGHUP."""
        return self.tls_cert is not None or self.tokens is not None

    def check_address(self, listen: str) -> None:
        """Raise `StartError` where other machines would reach an address without TLS."""
        if self.tls_cert or self.insecure or not _exposed(listen):
            return
        raise StartError(
            f"--listen {listen} is reached from other machines, and {self.what} would go over the "
            "network in the clear; give --tls-cert and --tls-key, or --insecure to allow it."
        )

    def check_metrics(self, listen: str) -> None:
        """Raise `StartError` where other machines would reach the metrics, which have no TLS."""
        if self.insecure or not _exposed(listen):
            return
        raise StartError(
            f"--metrics {listen} is reached from other machines, and who asks what would go over "
            "the network in the clear; give an address of this machine alone, such as "
            "127.0.0.1:9100, or --insecure to allow it."
        )

    @property
    def what(self) -> str:
        """What goes over the network."""
        return "tokens and answers" if self.tokens else "answers"


class Guard:
    """Opens the port of a server and stands before its methods."""

    def __init__(self, options: GuardOptions) -> None:
        """Reads certificates and tokens; raises `StartError`."""
        self._options = options
        files = _tls_files(options)
        self._tls = Tls(files) if files else None
        self._tokens = TokenFile(options.tokens) if options.tokens else None

    def interceptors(self) -> list[aio.ServerInterceptor]:
        """Those that raise where a caller may not ask."""
        return [TokenInterceptor(self._tokens)] if self._tokens else []

    def add_port(self, server: aio.Server, listen: str) -> int:
        """Open the port and give its number; raises what `check_address` and gRPC raise."""
        if self._tls:
            return server.add_secure_port(listen, self._tls.credentials())
        self._options.check_address(listen)
        if _exposed(listen):
            what = self._options.what
            _log.warning("--insecure: %s go from %s over the network in the clear.", what, listen)
        return server.add_insecure_port(listen)

    def follow_signals(self) -> None:
        """Read the tokens again at every SIGHUP; certificates are looked at by every connection."""
        if self._tls or self._tokens:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        if self._tokens:
            self._tokens.reload()


def _tls_files(options: GuardOptions) -> TlsFiles | None:
    certificate, key = options.tls_cert, options.tls_key
    if certificate is None and key is None:
        if options.tls_client_ca is not None:
            raise StartError("--tls-client-ca is for TLS; give --tls-cert and --tls-key too.")
        return None
    if certificate is None or key is None:
        missing = "--tls-cert" if certificate is None else "--tls-key"
        raise StartError(f"TLS takes a certificate and its key; give {missing} too.")
    return TlsFiles(certificate=certificate, key=key, client_authority=options.tls_client_ca)


def _exposed(listen: str) -> bool:
    """Whether an address HOST:PORT is reached from other machines."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        # Nobody can listen there.
        return False
    return not all(_is_loopback(str(address[0])) for *_, address in found)


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    # Not of every version of Python does is_loopback look into ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class TokenInterceptor(aio.ServerInterceptor):
    """Turns callers without a token of the file away before anything of a request is read.

    It raises what `TokenFile` does, for the interceptor in front to make statuses of.
    """

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Give the method's handler."""
        # Supervisors and balancers have no tokens.
        if not handler_call_details.method.startswith(f"/{health.SERVICE_NAME}/"):
            token = self._tokens.find(_bearer(handler_call_details))
            if (call := current.get()) is not None:
                call.token = token.name
            token.take()
        return await continuation(handler_call_details)


def _bearer(details: grpc.HandlerCallDetails) -> str | None:
    given = [value for key, value in details.invocation_metadata if key == "authorization"]
    if len(given) != 1 or not isinstance(given[0], str):
        return None
    scheme, _, token = given[0].strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
