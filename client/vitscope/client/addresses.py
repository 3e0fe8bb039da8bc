"""HOST:PORT: what is one, and what is dialled for several of them."""

import ipaddress
import re
import socket
import time
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

from vitscope.client.errors import DeadlineError, UnavailableError, UsageError

_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+(?:%[\w.-]+)?\]|[^\s:/,\[\]]+):(?P<port>[0-9]{1,5})",
)
_PATIENCE = 5.0
"""Seconds from the first look-up on, for which others are waited for where one name is known."""


def checked_address(address: str) -> str:
    """HOST:PORT as it stands; raises `UsageError` for what is none."""
    match = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(
            f"{address!r} is not a server address; write HOST:PORT, such as 127.0.0.1:50051."
        )
    return address


def host_of(address: str) -> str:
    """The HOST of HOST:PORT."""
    return address.rpartition(":")[0].strip("[]")


def is_here(address: str) -> bool:
    """Whether what is sent there does not leave this machine."""
    host = host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_name(address: str) -> bool:
    """Whether its HOST is looked up, and may be found to be several machines."""
    host = host_of(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def target(addresses: Sequence[str], timeout: float) -> str:
    """What gRPC is to dial for several addresses: the numbers of all whose names are known.

    Of several gRPC takes numbers alone, and of one kind only. But a number of IPv4 has a place
    among those of IPv6 (::ffff:a.b.c.d), and gRPC dials it as the former. So a name counts with
    all it stands for, and twice where a server answers by both kinds.

    Names are looked up side by side, for `timeout` seconds at most, in threads that hold up no
    process that ends. Raises `UnavailableError` where none is known, and `DeadlineError` where
    that is not sure by then.
    """
    # The answers are counted by address.
    addresses = list(dict.fromkeys(addresses))
    answers: SimpleQueue[tuple[str, list[str]]] = SimpleQueue()
    for address in addresses:
        Thread(target=_look_up, args=(address, answers), daemon=True).start()
    found: dict[str, list[str]] = {}
    begun = time.monotonic()
    while len(found) < len(addresses):
        patience = min(_PATIENCE, timeout) if any(found.values()) else timeout
        try:
            address, numbers = answers.get(timeout=max(0.0, begun + patience - time.monotonic()))
        except Empty:
            break
        found[address] = numbers
    numbers = [number for address in addresses for number in found.get(address, [])]
    waiting = [address for address in addresses if address not in found]
    if not numbers and waiting:
        raise DeadlineError(
            f"The look-up of {', '.join(waiting)} did not end in time; allow more with a longer "
            "timeout."
        )
    if not numbers:
        raise UnavailableError(
            f"None of the hosts of {', '.join(addresses)} is known; check the addresses."
        )
    return _joined(numbers)


def _look_up(address: str, answers: SimpleQueue[tuple[str, list[str]]]) -> None:
    """Put the numbers of an address, none for one that is not known."""
    numbers: list[str] = []
    host, port = host_of(address), int(address.rpartition(":")[2])
    try:
        for kind, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if kind == socket.AF_INET:
                numbers.append(f"{where[0]}:{port}")
            elif kind == socket.AF_INET6:
                # Without its scope a link-local number leads nowhere.
                scope = f"%25{where[3]}" if len(where) > 3 and where[3] else ""
                numbers.append(f"[{where[0]}{scope}]:{port}")
    except (OSError, UnicodeError):
        # The others may serve.
        pass
    finally:
        answers.put((address, numbers))


def _joined(numbers: Iterable[str]) -> str:
    once = list(dict.fromkeys(numbers))
    if not any(number.startswith("[") for number in once):
        return f"ipv4:{','.join(once)}"
    return f"ipv6:{','.join(map(_as_ipv6, once))}"


def _as_ipv6(number: str) -> str:
    host, _, port = number.rpartition(":")
    return number if number.startswith("[") else f"[::ffff:{host}]:{port}"
