"""An index in a bucket of S3: the requests, and what their failures mean.

Objects lie there as files do in an index directory, each with its BLAKE3 as metadata. Nothing else
tells what an object holds: its ETag is an MD5, or one of MD5s, or neither.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from vitscope.store import layout
from vitscope.store.errors import DamagedIndexError, NotAnIndexError, StoreError
from vitscope.store.generation import POINTER
from vitscope.store.manifest import FileRecord

PART = 8 << 20
"""Bytes of a request at most, as far as S3's 10,000 parts of an object allow."""

_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 2
_COPIED_AT_MOST = 5_000_000_000
"""Larger objects S3 copies part by part only."""
_DIGEST = "blake3"
_URL = re.compile(r"s3://([^/\s?#]+)((?:/(?!\.\.?(?:/|$))[^/\s?#]+)*)/?")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_INSTANCE = "169.254.169.254"
"""Where S3's client looks for credentials when it was given none."""
_UNKNOWN_KEYS = {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


class RemoteError(StoreError):
    """The object store does not take the request: no such bucket, or the credentials are wrong."""

    exit_code = 3


class NotALocationError(RemoteError):
    """The text is no place in a bucket."""

    exit_code = 2


class NoAnswerError(RemoteError):
    """The object store could not be reached, or failed."""

    exit_code = 5


class OtherGenerationError(RemoteError):
    """Another generation is published where this one was to be."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """What the object CURRENT says."""

    generation: str
    tag: str | None
    """Of the object, which another write would change."""


class Remote:
    """The place of an index in a bucket; credentials, endpoint and region are the environment's."""

    def __init__(self, url: str) -> None:
        """Raises `NotALocationError` unless `url` is `s3://BUCKET/PREFIX`; asks nobody yet.

        Raises `RemoteError` where the environment's endpoint is no address.
        """
        match = _URL.fullmatch(url)
        if not match:
            raise NotALocationError(f"{url!r} is not of the form s3://BUCKET/PREFIX.")
        self._bucket, prefix = match[1], match[2][1:]
        self.url = f"s3://{self._bucket}{match[2]}"
        """Without a slash at its end."""
        endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), "")
        # The client takes it for granted.
        if not re.match("https?://", endpoint or "https://"):
            raise RemoteError(
                f"AWS_ENDPOINT_URL is {endpoint!r}; it begins with http:// or https://."
            )
        self._where = endpoint or "Amazon S3"
        with self._told(""):
            # A first request fails soon where a long transfer had better be patient.
            self._hasty = _open(self._bucket, prefix, endpoint, retries=2, seconds=10)
            self._store = _open(self._bucket, prefix, endpoint, retries=10, seconds=180)

    async def pointer(self) -> Pointer | None:
        """The published generation; None where there is none.

        Raises `RemoteError`, and `DamagedIndexError` where CURRENT is damaged.
        """
        try:
            with self._told(layout.CURRENT):
                found = await obstore.get_async(self._hasty, layout.CURRENT)
                data = bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        if not (match := POINTER.fullmatch(data)):
            raise DamagedIndexError(
                f"{self.url}/{layout.CURRENT} is damaged; remove it and push the index again."
            )
        return Pointer(match[1].decode(), found.meta["e_tag"])

    async def point(self, generation: str, before: Pointer | None) -> None:
        """Publish a generation that is there, if none was published since `before`.

        Raises `OtherGenerationError` where one was.
        """
        try:
            with self._told(layout.CURRENT):
                await obstore.put_async(
                    self._store,
                    layout.CURRENT,
                    f"{generation}\n".encode(),
                    mode={"e_tag": before.tag} if before else "create",
                )
        except (AlreadyExistsError, PreconditionError):
            now = await self.pointer()
            # By another push of the same, or by this request when its first answer was lost.
            if now is None or now.generation != generation:
                raise OtherGenerationError(
                    f"{now.generation if now else 'Nothing'} was published at {self.url} meanwhile "
                    f"and stays; pull it, or give --replace to put {generation} in its place."
                ) from None

    async def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of all objects below `folder`, by path from the index on."""
        with self._told(folder):
            stream = obstore.list(self._store, folder, chunk_size=1000)
            return {meta["path"]: meta["size"] async for part in stream for meta in part}

    async def holds(self, path: str, record: FileRecord) -> bool:
        """Whether the object at `path` was put there as `record` says."""
        try:
            with self._told(path):
                found = await obstore.get_async(self._store, path, options={"head": True})
        except FileNotFoundError:
            return False
        known = found.attributes.get(_DIGEST)
        return found.meta["size"] == record.bytes and known == record.blake3

    async def send(self, path: str, data: bytes | AsyncIterable[bytes], record: FileRecord) -> None:
        """Put an object there whole, or not at all where `data` raises."""
        with self._told(path):
            await obstore.put_async(
                self._store,
                path,
                data,
                attributes={_DIGEST: record.blake3, "Content-Type": "application/octet-stream"},
                use_multipart=not isinstance(data, bytes),
                chunk_size=max(PART, -(-record.bytes // _MOST_PARTS)),
                max_concurrency=_PARTS_AT_ONCE,
            )

    async def copy(self, source: str, path: str, record: FileRecord) -> bool:
        """Copy an object over there, if there is one as `record` says; tells whether it was."""
        if record.bytes > _COPIED_AT_MOST or not await self.holds(source, record):
            return False
        with self._told(source):
            await obstore.copy_async(self._store, source, path)
        return True

    async def read(self, path: str, size: int) -> AsyncIterator[memoryview]:
        """The first `size` bytes of an object, piece by piece; fewer where it is shorter.

        Raises `DamagedIndexError` where there is none.
        """
        for start in range(0, size, PART):
            end = min(size, start + PART)
            with self._found(path):
                piece = await obstore.get_range_async(self._store, path, start=start, end=end)
            yield memoryview(piece)

    async def read_whole(self, path: str) -> bytes:
        """All bytes of a small object; raises `DamagedIndexError` where there is none."""
        with self._found(path):
            found = await obstore.get_async(self._store, path)
            return bytes(await found.bytes_async())

    async def published(self) -> tuple[str, bytes]:
        """Name and manifest of the published generation, not checked.

        Raises `NotAnIndexError` where nothing is published.
        """
        pointer = await self.pointer()
        if pointer is None:
            raise NotAnIndexError(
                f"No index is published at {self.url}; `vitscope push` publishes one."
            )
        return pointer.generation, await self.read_whole(
            f"{layout.GENERATIONS}/{pointer.generation}/{layout.MANIFEST}"
        )

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """Raise what the client's errors mean; a missing object and a conflict stay what they are.

        Answers carry S3's own code in their body, but for those to HEAD.
        """
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise
            raise self._meaning(str(error), path) from error
        except BaseError as error:
            raise self._meaning(str(error), path) from error

    @contextmanager
    def _found(self, path: str) -> Iterator[None]:
        """The same for an object that has to be there."""
        try:
            with self._told(path):
                yield
        except FileNotFoundError:
            raise DamagedIndexError(
                f"{self.url}/{path} is missing; push the index again."
            ) from None

    def _meaning(self, text: str, path: str) -> StoreError:
        code = _tag("Code", text)
        if code in ("NoSuchBucket", "InvalidBucketName"):
            return RemoteError(
                f"There is no bucket {self._bucket} at {self._where}; make it or mend its name."
            )
        if _INSTANCE in text:
            return RemoteError(
                f"There are no credentials for {self.url}; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY."
            )
        if code in _UNKNOWN_KEYS or "403 Forbidden" in text or "401 Unauthorized" in text:
            return RemoteError(
                f"{self._where} refuses {self.url} to these credentials ({code or 'forbidden'}); "
                "see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        if code:
            return NoAnswerError(
                f"{self._where} refused a request for {self.url}/{path} "
                f"({code}: {_tag('Message', text).rstrip('.')}); mend that and try again."
            )
        why = text.partition("\n")[0].rpartition(" - ")[2].removeprefix("HTTP error: ").strip(": ")
        return NoAnswerError(
            f"{self._where} does not answer ({why}); see AWS_ENDPOINT_URL and the network, and run "
            "the same command again."
        )


def _tag(name: str, text: str) -> str:
    found = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return found[1] if found else ""


def _open(bucket: str, prefix: str, endpoint: str, *, retries: int, seconds: int) -> S3Store:
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": "3s",
            # For one part of an object, also over a slow line.
            "timeout": "120s",
        },
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=seconds)},
        config={"endpoint": endpoint} if endpoint else {},
    )
