"""How a server is reached: addresses, deadlines, trust, who asks, and what is tried again."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import grpc

from vitscope.client.addresses import checked_address, host_of, is_here, is_name, target
from vitscope.client.errors import PYTHON, REQUEST_ID, SANE, Server, UsageError, Words
from vitscope.client.trust import Tls

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
            raise UsageError(f"{self.attempts!r} attempts cannot be; give 1 to 5.")
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


def check_token(token: str, what: str) -> None:
    """Raise `UsageError` for what is no token; `what` it was given as."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise UsageError(
            f"{what} is no token; give the whole of one: letters, digits and signs without blanks."
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything that both clients are told before they ask; raises `UsageError`."""

    address: str | Sequence[str]
    timeout: float = 30.0
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    retries: Retries = RETRIES
    words: Words = PYTHON
    _credentials: grpc.ChannelCredentials | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.address, Iterable):
            raise UsageError(
                f"{self.address!r} is no server address; write HOST:PORT, such as 127.0.0.1:50051."
            )
        for each in self.addresses:
            checked_address(each)
        if not self.addresses:
            raise UsageError(
                "There is no server address; write HOST:PORT, such as 127.0.0.1:50051."
            )
        if not isinstance(self.timeout, Real) or not 0 < self.timeout <= _LONGEST:
            raise UsageError(
                f"A timeout of {self.timeout!r} seconds cannot be; give a positive number, "
                f"{_LONGEST:,} at most."
            )
        if not isinstance(self.tls, Tls | None):
            raise UsageError(f"tls {self.tls!r} cannot be; write Tls() or Tls(roots=FILE).")
        if not isinstance(self.retries, Retries):
            raise UsageError(f"retries {self.retries!r} cannot be; write Retries(attempts=3).")
        if self.tls and not self.tls.server_name and len(set(map(host_of, self.addresses))) > 1:
            # gRPC holds the certificates of all against one name.
            raise UsageError(
                "Replicas over TLS need one name that all their certificates have; give it as "
                f"{self.words.server_name}."
            )
        if self.token is not None:
            check_token(self.token, "The value of token")
            if self.tls is None and not all(map(is_here, self.addresses)):
                raise UsageError(
                    f"A token would go to {self.name} for anyone to read; give "
                    f"{self.words.tls} with it."
                )
        if self.tls is not None:
            # Now, so that what is wrong with a file is said before the first question.
            object.__setattr__(self, "_credentials", self.tls.credentials())

    @property
    def addresses(self) -> tuple[str, ...]:
        """HOST:PORT of every replica."""
        return (self.address,) if isinstance(self.address, str) else tuple(self.address)

    @property
    def name(self) -> str:
        """What errors call the server."""
        return ", ".join(self.addresses)

    @property
    def server(self) -> Server:
        """What else they say of it."""
        shown = self.tls is not None and self.tls.certificate is not None
        return Server(self.name, self.tls is not None, shown, self.words)

    @property
    def told(self) -> Mapping[str, Any]:
        """What goes with every call."""
        told: dict[str, Any] = {"timeout": float(self.timeout)}
        if self.token is not None:
            told["metadata"] = (("authorization", f"Bearer {self.token}"),)
        return told

    def target(self) -> str:
        """What gRPC dials: one address as it stands; several are looked up, which may take long."""
        several = len(self.addresses) > 1
        return target(self.addresses, self.timeout) if several else self.addresses[0]

    def channel(self, target: str | None = None) -> grpc.Channel:
        """A new channel, to `target()` unless that is known; nothing is sent yet."""
        target = target or self.target()
        if self._credentials is None:
            return grpc.insecure_channel(target, options=self._options())
        return grpc.secure_channel(target, self._credentials, options=self._options())

    def aio_channel(self, target: str) -> grpc.aio.Channel:
        """The same for the running event loop."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(target, options=self._options())
        return grpc.aio.secure_channel(target, self._credentials, options=self._options())

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
            # Of numbers no certificate speaks, nor of a scope.
            host = host_of(self.addresses[0]).partition("%")[0]
            options.append(("grpc.default_authority", host))
        # One name may stand for many, and for others later, as Kubernetes has it.
        if len(self.addresses) > 1 or is_name(self.addresses[0]):
            config["loadBalancingConfig"] = [{"round_robin": {}}]
            config["healthCheckConfig"] = {"serviceName": _SERVICE}
        if self.tls and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return [*options, ("grpc.service_config", json.dumps(config))]


_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@contextmanager
def request_id(text: str) -> Iterator[None]:
    """Have calls that begin in the block known by `text` in the server's log, as by your own.

    with request_id("import-4711"):
        client.top_images("blocks.5.mlp", 7)

    1 to 128 printable characters of ASCII without blanks, or `UsageError`. Holds for this thread
    or task. Without, the server makes one of each call; errors have it as `request_id`.
    """
    if not SANE.fullmatch(text):
        raise UsageError(
            f"{text[:80]!r} is no request id; give 1 to 128 letters, digits and signs of ASCII."
        )
    before = _request_id.set(text)
    try:
        yield
    finally:
        _request_id.reset(before)


def with_request_id(told: Mapping[str, Any]) -> Mapping[str, Any]:
    """What goes with a call, and the id where one was given."""
    given = _request_id.get()
    if given is None:
        return told
    return {**told, "metadata": (*told.get("metadata", ()), (REQUEST_ID, given))}
