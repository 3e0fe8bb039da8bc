"""Fixtures of the store: an S3 server, and indexes to push there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from buckets import BUCKET, KEY, SECRET, BucketServer
from remotes import add_large, grow
from synthetic import build

_places = count()


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    """The S3 server of all tests; each has a place of its own."""
    with BucketServer(tmp_path_factory.mktemp("bucket") / "data") as started:
        yield started


@pytest.fixture
def environment(bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bucket's server and its credentials are."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*bucket_server.address))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def url(environment: None) -> str:
    """A place in the bucket that nothing is at."""
    return f"s3://{BUCKET}/some/where-{next(_places)}"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of one generation, with every kind of array."""
    return build(tmp_path_factory.mktemp("made") / "index", rows=6, complete=True).path


@pytest.fixture(scope="session")
def grown(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a second generation, and a third that has a large file besides."""
    path = tmp_path_factory.mktemp("grown") / "index"
    shutil.copytree(made, path)
    grow(path, 1)
    add_large(path)
    return path


@pytest.fixture(scope="session")
def rival(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another second generation."""
    path = tmp_path_factory.mktemp("rival") / "index"
    shutil.copytree(made, path)
    grow(path, 2)
    return path
