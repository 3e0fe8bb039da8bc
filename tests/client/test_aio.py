"""The asynchronous client asks the same questions and gives the same answers as the other one."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from started import ServerProcess
from synthetic import build

from vitscope.client import (
    AsyncClient,
    Client,
    ImageFilter,
    InvalidRequestError,
    NotFoundError,
    NotKeptError,
    UnavailableError,
    UsageError,
)

DENSE, SPARSE = "blocks.0.mlp", "blocks.1.mlp"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, serve: Callable[..., ServerProcess]) -> str:
    folder = tmp_path_factory.mktemp("aio")
    one, two = (build(folder / name, complete=True) for name in ("one", "two"))
    directions = one.path / "directions" / DENSE
    directions.mkdir(parents=True)
    np.save(directions / "probe.npy", np.arange(5, dtype=np.float32))
    return serve(one.path, two.path).address


Ask = Callable[[Any], Any]

QUESTIONS: dict[str, Ask] = {
    "indexes": lambda c: c.indexes(),
    "index": lambda c: c.index("one"),
    "top_images": lambda c: c.top_images(
        DENSE, 3, k=7, maps=True, where=ImageFilter(labels=["fox"]), index="one"
    ),
    "top_images_of_channels": lambda c: c.top_images_of_channels(SPARSE, [3, 1], index="one"),
    "channel_statistics": lambda c: c.channel_statistics(SPARSE, pooling="max", index="one"),
    "top_patches": lambda c: c.top_patches(DENSE, 4, k=9, index="one"),
    "top_channels": lambda c: c.top_channels(3, percentiles=True, index="one"),
    "similar_channels": lambda c: c.similar_channels(SPARSE, 5, layers=[DENSE], index="one"),
    "box_scores": lambda c: c.box_scores(DENSE, index="one"),
    "top_images_by_box": lambda c: c.top_images_by_box(DENSE, 2, order="bottom", index="one"),
    "patch_maps": lambda c: c.patch_maps([(DENSE, 1, 2), (DENSE, 0, 5)], index="one"),
    "patch_map_grid": lambda c: c.patch_map_grid(
        DENSE, [4, 2], [0, 3], encoding="uint8", index="one"
    ),
    "patch_map": lambda c: c.patch_map(DENSE, 4, 9, index="one"),
    "similar_images": lambda c: c.similar_images(SPARSE, 3, index="one"),
    "similar_patches": lambda c: c.similar_patches(DENSE, 3, (1, 0), index="one"),
    "top_images_along": lambda c: c.top_images_along(DENSE, "probe", index="one"),
    "directions": lambda c: c.directions(index="one"),
    "compare_channels": lambda c: c.compare_channels("one", "two", DENSE),
    "compare_images": lambda c: c.compare_images("one", "two", DENSE, 1),
    "scores": lambda c: c.scores(SPARSE, [7, 2], index="one"),
    "scores_stream": lambda c: c.scores_stream(SPARSE, index="one"),
    "images": lambda c: c.images([3, 1], index="one"),
}


def methods(kind: type) -> dict[str, Any]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: method for name, method in found if not name.startswith("_")}


def given(method: Any) -> str:
    """What a method of the synchronous client gives, in words of the other."""
    words = str(inspect.signature(method).return_annotation)
    return re.sub(r"(?<=[. ])Iterator(?=\[)", "AsyncIterator", words)


def test_both_clients_have_the_same_methods() -> None:
    ours, theirs = methods(Client), methods(AsyncClient)
    assert ours.keys() == theirs.keys()
    for name, method in ours.items():
        mine, other = (inspect.signature(each) for each in (method, theirs[name]))
        assert mine.parameters == other.parameters, name
        assert given(method) == str(other.return_annotation), name
        # A stream is iterated over as it is, all else is awaited.
        streams = "Iterator" in given(method)
        assert inspect.iscoroutinefunction(theirs[name]) != streams, name
    made, other = inspect.signature(Client), inspect.signature(AsyncClient)
    assert made.parameters == other.parameters
    assert len(made.parameters) == 5
    # Without a live model there is nothing to compare of the last one.
    assert ours.keys() == QUESTIONS.keys() | {"close", "analyze_image"}


def plain(value: Any) -> Any:
    """Of dataclasses with arrays, what compares."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if is_dataclass(value):
        return [(each.name, plain(getattr(value, each.name))) for each in fields(value)]
    if isinstance(value, list | tuple | Iterator):
        return [plain(each) for each in value]
    return repr(value)


async def awaited(answer: Awaitable[Any] | AsyncIterator[Any]) -> Any:
    if isinstance(answer, AsyncIterator):
        return [each async for each in answer]
    return await answer


@pytest.mark.parametrize("name", QUESTIONS)
def test_both_give_the_same_answer(address: str, name: str) -> None:
    async def ask() -> Any:
        async with AsyncClient(address) as client:
            return plain(await awaited(QUESTIONS[name](client)))

    with Client(address) as client:
        truth = plain(QUESTIONS[name](client))
    found = asyncio.run(ask())
    assert found == truth
    assert len(str(found)) > 20


def test_many_questions_at_a_time(address: str) -> None:
    async def ask() -> list[int]:
        async with AsyncClient(address) as client:
            tops = await asyncio.gather(
                *(client.top_images(SPARSE, channel, index="one") for channel in range(9))
            )
        return [top.channel for top in tops]

    assert asyncio.run(ask()) == list(range(9))


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda c: c.top_images(DENSE, 9, index="one"), NotFoundError),
        (lambda c: c.top_images(DENSE, 1), InvalidRequestError),
        (lambda c: c.similar_patches(SPARSE, 3, (0, 0), index="one"), NotKeptError),
        (lambda c: c.top_images(DENSE, 1, order="up"), UsageError),
        (lambda c: c.scores_stream(DENSE, [5], index="one"), NotFoundError),
        (lambda c: c.patch_maps([(DENSE, 1, 500)], index="one"), NotFoundError),
        (lambda c: c.images([500], index="one"), NotFoundError),
        (lambda c: c.analyze_image(b"picture", index="one"), NotKeptError),
    ],
)
def test_errors_are_those_of_the_other_client(
    address: str, ask: Ask, kind: type[Exception]
) -> None:
    async def fail() -> None:
        async with AsyncClient(address) as client:
            await awaited(ask(client))

    with pytest.raises(kind) as ours:
        asyncio.run(fail())
    with Client(address) as client, pytest.raises(kind) as theirs:
        plain(ask(client))
    assert str(ours.value) == str(theirs.value)


def test_nothing_answers(silent_address: str) -> None:
    async def ask() -> None:
        async with AsyncClient(silent_address) as client:
            await client.indexes()

    with pytest.raises(UnavailableError):
        asyncio.run(ask())


def test_a_loop_that_is_left_ends_the_stream(address: str) -> None:
    async def ask() -> int:
        async with AsyncClient(address) as client:
            async for top in client.top_images_of_channels(SPARSE, index="one"):
                return top.channel
        return -1

    assert asyncio.run(ask()) == 0


def test_what_cannot_be_a_client() -> None:
    async def make(address: str, timeout: float) -> None:
        AsyncClient(address, timeout=timeout)

    for address, timeout in (("nowhere", 1.0), ("127.0.0.1:50051", 0.0)):
        with pytest.raises(UsageError):
            asyncio.run(make(address, timeout))
    with pytest.raises(UsageError, match="belongs to an event loop"):
        AsyncClient("127.0.0.1:50051")
