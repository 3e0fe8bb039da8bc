"""Addresses to listen on: what they are, and whether they are free."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from typing import Any

from vitscope.server.errors import StartError


def host_and_port(flag: str, text: str) -> tuple[str, int]:
    """HOST and PORT of what `flag` says; raises `StartError` where it is none."""
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise StartError(f"{flag} {text!r} is not HOST:PORT, such as 127.0.0.1:50051.")
    if ":" in host and not re.fullmatch(r"\[[^][]*\]", host):
        # gRPC would take the port for a part of it.
        raise StartError(
            f"{flag} {text!r} has a host with a colon; write brackets around it, such as "
            "[::1]:50051."
        )
    return host, int(port)


def free_address(host: str, port: int) -> tuple[Any, Any, int, Any] | None:
    """Family, type, protocol and address of `host` that are free; None where there are none.

    Asked before gRPC is, which would log lines of its own where it cannot listen.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            # As gRPC does: connections that have just ended do not keep a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return family, kind, protocol, address
    return None


def cannot_listen(address: str) -> StartError:
    """Why a server does not start where `free_address` finds none."""
    return StartError(
        f"Cannot listen on {address}: the port is in use or the host is not this machine's; "
        "choose another with --listen HOST:PORT."
    )
