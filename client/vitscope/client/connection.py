"""How a server is reached: addresses, deadlines, trust, who asks, and what is tried again."""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from vitscope.client.errors import UsageError

_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/,\[\]]+):(?P<port>[0-9]{1,5})",
)
_TOKEN = re.compile(r"[\x21-\x7e]+")
_LONGEST = 1_000_000
"""Seconds; deadlines far beyond overflow in gRPC."""
_SERVICE = "vitscope.v1.ActivationService"
_OPTIONS = [
    # An answer that ranks very many images may pass gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
    # HOST:PORT is dialled as it stands, whatever http_proxy says.
    ("grpc.enable_http_proxy", 0),
    # A request beyond this is not tried again, and a picture is beyond gRPC's 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 4 << 20),
    # A name is looked up again when a server is lost: gRPC's 30 s are longer than new ones take.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a server is trusted, and how it can trust this client.

    Client("gpu-7:50051", tls=Tls(roots="ca.pem"))

    Files are PEM. Without `roots` the authorities are those that gRPC brings. `certificate` and
    `key` go together, for a server that asks for them. `server_name` is the name in the server's
    certificate, where that is not the host of the address.
    """

    roots: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("A certificate and its key go together; give both or neither.")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' contents; raises `UsageError` for one that cannot be read."""
        roots, key, certificate = map(_pem, (self.roots, self.key, self.certificate))
        return grpc.ssl_channel_credentials(roots, key, certificate)


def _pem(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from None
    # gRPC would only say that nothing answers.
    if b"-----BEGIN " not in data:
        raise UsageError(f"{path} is no PEM file; give one that begins with -----BEGIN.")
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a call is made that found no server, or one without room; all are safe to repeat.

    gRPC waits between `first_wait` and `longest_wait` seconds, ever longer, or as long as the
    server said (gRFC A6). A stream is not begun again once its first part is here.
    """

    attempts: int = 4
    """1 to 5, the first one included."""
    first_wait: float = 0.1
    longest_wait: float = 2.0

    def __post_init__(self) -> None:
        if type(self.attempts) is not int or not 1 <= self.attempts <= 5:
            raise UsageError(f"{self.attempts} attempts cannot be; give 1 to 5.")
        # gRPC forgets an attempt that is due in the same millisecond.
        if not 0.01 <= self.first_wait <= self.longest_wait <= 3600:
            raise UsageError(
                "Waits between attempts run from first_wait to longest_wait, of 0.01 to 3600 "
                "seconds; give them in that order."
            )

    def policy(self) -> dict[str, Any]:
        """As gRPC's service config has it."""
        return {
            "maxAttempts": self.attempts,
            "initialBackoff": f"{self.first_wait:.3f}s",
            "maxBackoff": f"{self.longest_wait:.3f}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }


RETRIES = Retries()


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that both clients are told before they ask; raises `UsageError`."""

    address: str | Sequence[str]
    timeout: float = 30.0
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    retries: Retries = RETRIES

    def __post_init__(self) -> None:
        for each in self.addresses:
            checked_address(each)
        if not self.addresses:
            raise UsageError(
                "There is no server address; write HOST:PORT, such as 127.0.0.1:50051."
            )
        if not 0 < self.timeout <= _LONGEST:
            raise UsageError(
                f"A timeout of {self.timeout} seconds cannot be; give a positive number, "
                f"{_LONGEST:,} at most."
            )
        if self.tls and not self.tls.server_name and len(set(map(_host, self.addresses))) > 1:
            # gRPC holds the certificates of all against one name.
            raise UsageError(
                "Replicas over TLS need one name that all their certificates have; give it as "
                "Tls(server_name=…)."
            )
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            raise UsageError("A token has letters, digits and signs without blanks; give it whole.")
        if self.token is not None and self.tls is None and not all(map(_here, self.addresses)):
            raise UsageError(
                f"A token would go to {self.name} for anyone to read; give tls=Tls() with it."
            )

    @property
    def addresses(self) -> tuple[str, ...]:
        """HOST:PORT of every replica."""
        return (self.address,) if isinstance(self.address, str) else tuple(self.address)

    @property
    def name(self) -> str:
        """What errors call the server."""
        return ", ".join(self.addresses)

    @property
    def told(self) -> Mapping[str, Any]:
        """What goes with every call."""
        told: dict[str, Any] = {"timeout": float(self.timeout)}
        if self.token is not None:
            told["metadata"] = (("authorization", f"Bearer {self.token}"),)
        return told

    def channel(self) -> grpc.Channel:
        """A new channel; nothing is sent yet."""
        if self.tls is None:
            return grpc.insecure_channel(self._target(), options=self._options())
        credentials = self.tls.credentials()
        return grpc.secure_channel(self._target(), credentials, options=self._options())

    def aio_channel(self) -> grpc.aio.Channel:
        """The same for the running event loop."""
        if self.tls is None:
            return grpc.aio.insecure_channel(self._target(), options=self._options())
        credentials = self.tls.credentials()
        return grpc.aio.secure_channel(self._target(), credentials, options=self._options())

    def _target(self) -> str:
        """Of one address as it stands, of several the numbers of all."""
        if len(self.addresses) == 1:
            return self.addresses[0]
        found = [number for each in self.addresses for number in _numbers(each)]
        kinds = {kind for kind, _ in found}
        if len(kinds) > 1:
            raise UsageError(
                f"{self.name} are addresses of IPv4 and of IPv6; give replicas of one kind."
            )
        return f"{kinds.pop()}:{','.join(dict.fromkeys(number for _, number in found))}"

    def _options(self) -> list[tuple[str, Any]]:
        config: dict[str, Any] = {
            # No storms at a server that fails, but one replica of two without room is borne. With a
            # decimal point: gRPC takes 1 for a thousandth.
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 1.0},
        }
        method: dict[str, Any] = {"name": [{"service": _SERVICE}]}
        if self.retries.attempts > 1:
            method["retryPolicy"] = self.retries.policy()
        config["methodConfig"] = [method]
        options: list[tuple[str, Any]] = [*_OPTIONS]
        if len(self.addresses) > 1:
            # Of numbers no certificate speaks.
            options.append(("grpc.default_authority", _host(self.addresses[0])))
        # One name may stand for many, and for others later, as Kubernetes has it.
        if len(self.addresses) > 1 or _is_name(_host(self.addresses[0])):
            config["loadBalancingConfig"] = [{"round_robin": {}}]
            config["healthCheckConfig"] = {"serviceName": _SERVICE}
        if self.tls and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return [*options, ("grpc.service_config", json.dumps(config))]


def _numbers(address: str) -> list[tuple[str, str]]:
    """The IP addresses of HOST:PORT, each as gRPC's resolvers `ipv4` and `ipv6` have them."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such name"
        raise UsageError(f"The host of {address} is not known ({reason}).") from None
    kinds = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
    some = [(kinds[kind], where[0]) for kind, _, _, _, where in found if kind in kinds]
    # A name of both kinds counts once.
    least = [each for each in some if each[0] == "ipv4"] or some
    return [(kind, f"{n}:{port}" if kind == "ipv4" else f"[{n}]:{port}") for kind, n in least]


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _here(address: str) -> bool:
    """Whether what is sent there does not leave this machine."""
    host = _host(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_name(host: str) -> bool:
    """Whether it is looked up, and may be found to be several machines."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def checked_address(address: str) -> str:
    """HOST:PORT as it stands; raises `UsageError` for what is none."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(
            f"{address!r} is not a server address; write HOST:PORT, such as 127.0.0.1:50051."
        )
    return address


def picture_bytes(picture: bytes | os.PathLike[str]) -> bytes:
    """Bytes of a picture file, or what is in the file; raises `UsageError`."""
    if isinstance(picture, bytes):
        return picture
    path = Path(picture)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the picture {path}: {error.strerror}.") from None
