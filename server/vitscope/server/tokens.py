"""Bearer tokens: their file, who holds one, and how often he may ask.

The file has a line `NAME sha256:HEX [RATE]` for each. A token is 256 random bits, so that a plain
hash of it can be kept; neither token nor hash goes into a message or a log.
"""

from __future__ import annotations

import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from vitscope.server.errors import OverloadedError, StartError, UnauthenticatedError

_log = logging.getLogger("vitscope.server")

LOOK_SECONDS = 1.0
"""How often at most a call looks whether the file has changed."""

_UNITS = {"s": 1, "m": 60, "h": 3600}
_PER = {"s": "a second", "m": "a minute", "h": "an hour"}
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Rate:
    """So many calls in a unit of time; as many may come at once."""

    calls: int
    unit: str

    @classmethod
    def of(cls, text: str) -> Rate:
        """The rate that a text such as `50/s` names; raises `ValueError`."""
        found = _RATE.fullmatch(text)
        if not found:
            raise ValueError(f"{text!r} is no rate; write 50/s, 100/m (a minute) or 1000/h.")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.calls}/{self.unit}"

    @property
    def interval(self) -> float:
        """Seconds that a call takes to come back."""
        return _UNITS[self.unit] / self.calls


class Bucket:
    """Calls that a rate has left: full at first, emptied by calls, filled by time."""

    def __init__(self, rate: Rate, clock: Clock = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._left = float(rate.calls)
        self._at = clock()

    def take(self) -> float:
        """Take a call and give 0; or, where none is left, the seconds until there is one."""
        now = self._clock()
        self._left = min(self.rate.calls, self._left + (now - self._at) / self.rate.interval)
        self._at = now
        if self._left < 1:
            return (1 - self._left) * self.rate.interval
        self._left -= 1
        return 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token."""

    name: str
    digest: bytes
    bucket: Bucket | None

    def take(self) -> None:
        """Count a call; raises `OverloadedError` where the rate is used up."""
        if self.bucket and (seconds := self.bucket.take()):
            rate, wait = self.bucket.rate, math.ceil(seconds * 1000)
            raise OverloadedError(
                f"The token's {rate.calls} calls {_PER[rate.unit]} are used up; ask again in "
                f"{wait} ms.",
                wait,
            )


def new_token() -> str:
    """A token that nobody has."""
    return f"vitscope_{secrets.token_urlsafe(32)}"


def line_of(name: str, token: str, rate: Rate | None = None) -> str:
    """The line of a token for the file; raises `ValueError` for a name that cannot be there."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name; take letters, digits and ._@+- (64 at most).")
    return " ".join((name, f"sha256:{_digest(token).hex()}", *([str(rate)] if rate else [])))


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogateescape")).digest()


class TokenFile:
    """The tokens of a file, read again when it changes; a file that is wrong changes nothing."""

    def __init__(self, path: Path, clock: Clock = time.monotonic) -> None:
        """Raises `StartError` where the file cannot be read or a line of it is wrong."""
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._looked = clock()
        self._tokens = _read(path, (), clock)

    def find(self, token: str | None) -> Token:
        """What is kept of the token that a caller brings; raises `UnauthenticatedError`."""
        if self._clock() - self._looked >= LOOK_SECONDS:
            self._looked = self._clock()
            if _stamp(self._path) != self._stamp:
                self.reload()
        if token is None:
            raise UnauthenticatedError(
                "This server asks for a token; give token=… or --token-file FILE, or send the "
                "metadata `authorization: Bearer TOKEN`."
            )
        digest, found = _digest(token), None
        # All of them, or the time would tell where the loop ended.
        for known in self._tokens:
            if hmac.compare_digest(known.digest, digest):
                found = known
        if found is None:
            raise UnauthenticatedError(
                "The token is none of this server's; ask whoever runs it for another."
            )
        return found

    def reload(self) -> None:
        """Read the file again, and keep what was read before where it cannot be."""
        self._stamp = _stamp(self._path)
        try:
            self._tokens = _read(self._path, self._tokens, self._clock)
        except StartError as error:
            _log.error("%s Tokens stay as they were.", error)
        else:
            _log.info("Tokens were read again; there are %d.", len(self._tokens))


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes with the file; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


def _read(path: Path, before: Sequence[Token], clock: Clock) -> tuple[Token, ...]:
    """The tokens of a file; a rate that stays goes on from where it is."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise StartError(
            f"--tokens {path} cannot be read ({error.strerror}); name a file that can."
        ) from None
    except UnicodeDecodeError:
        raise StartError(f"--tokens {path} is not UTF-8; save it so.") from None
    buckets = {(token.digest, token.bucket.rate): token.bucket for token in before if token.bucket}
    found: dict[bytes, Token] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            name, digest, rate = _parse(words)
        except ValueError:
            # The line may hold a token, and is not shown.
            raise StartError(
                f"Line {number} of --tokens {path} is not NAME sha256:HEX [RATE]; make one with "
                "`vitscope token NAME`."
            ) from None
        if digest in found:
            raise StartError(f"Line {number} of --tokens {path} repeats a token; delete it.")
        bucket = (buckets.get((digest, rate)) or Bucket(rate, clock)) if rate else None
        found[digest] = Token(name, digest, bucket)
    if not found:
        raise StartError(f"--tokens {path} has no token; make one with `vitscope token NAME`.")
    return tuple(found.values())


def _parse(words: Sequence[str]) -> tuple[str, bytes, Rate | None]:
    name, digest, *rest = words
    found = _HASH.fullmatch(digest)
    if not found or not _NAME.fullmatch(name) or len(rest) > 1:
        raise ValueError
    return name, bytes.fromhex(found[1]), Rate.of(rest[0]) if rest else None
