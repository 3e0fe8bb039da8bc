"""Writing beside the forward: in order, with a bound on what waits, nothing after a failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing
from functools import partial

import pytest

from vitscope.indexer.stages import Stages
from vitscope.indexer.writing import Writing


def test_work_is_done_in_order_and_to_the_end() -> None:
    done: list[int] = []
    with closing(Writing(Stages(), threads=1)) as writing:
        for number in range(50):
            writing.hand_over(noting(done, number), 1)
        writing.finish()
        assert done == list(range(50))


def noting(done: list[int], number: int) -> Callable[[], None]:
    return lambda: done.append(number)


def test_who_hands_over_waits_while_too_much_is_held() -> None:
    done: list[int] = []
    released = threading.Event()
    handed = threading.Event()
    with closing(Writing(Stages(), bytes_waiting=10, threads=1)) as writing:
        # More than there is room for, but nothing else is held.
        writing.hand_over(lambda: hold(released), 20)

        def second() -> None:
            writing.hand_over(noting(done, 2), 1)
            handed.set()

        thread = threading.Thread(target=second)
        thread.start()
        assert not handed.wait(0.2)
        released.set()
        thread.join()
        writing.finish()
    assert done == [2]


def hold(released: threading.Event) -> None:
    released.wait()


def test_a_failure_is_told_without_waiting_for_what_goes_on() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with closing(Writing(Stages(), threads=1)) as writing:
        writing.check()
        failed = writing.hand_over(fail, 1)
        assert failed.exception(timeout=60)
        with pytest.raises(OSError, match="No space left"):
            writing.check()


def test_several_threads_begin_nothing_after_a_failure() -> None:
    """Nor does what waits for those before it, as a receipt does, end well."""
    done: list[int] = []
    released = threading.Event()

    def fail() -> None:
        released.wait()
        raise OSError(28, "No space left on device")

    def receipt(before: list[Future[None]]) -> None:
        for each in before:
            each.result()
        done.append(0)

    with closing(Writing(Stages(), threads=3)) as writing:
        before = [writing.hand_over(work, 1) for work in (fail, noting(done, 1))]
        last = writing.hand_over(partial(receipt, before), 1)
        wait(before[1:], timeout=60)
        released.set()
        with pytest.raises(OSError, match="No space left"):
            last.result(timeout=60)
        with pytest.raises(OSError, match="No space left"):
            writing.hand_over(noting(done, 2), 1)
    assert done == [1]


def test_what_was_not_begun_does_not_end_well() -> None:
    """Or a receipt would take a file for written that no thread had begun."""
    released = threading.Event()

    def fail() -> None:
        released.wait()
        raise OSError(28, "No space left on device")

    with closing(Writing(Stages(), threads=1)) as writing:
        writing.hand_over(fail, 1)
        after = writing.hand_over(noting([], 1), 1)
        released.set()
        with pytest.raises(OSError, match="No space left"):
            after.result(timeout=60)


def test_nothing_is_done_after_a_failure() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    with closing(Writing(Stages(), bytes_waiting=100, threads=1)) as writing:
        writing.hand_over(noting(done, 1), 1)
        writing.hand_over(fail, 1)
        writing.hand_over(noting(done, 3), 1)
        with pytest.raises(OSError, match="No space left"):
            writing.finish()
    assert done == [1]


def test_a_failure_reaches_who_hands_over_more() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with closing(Writing(Stages(), bytes_waiting=1, threads=1)) as writing:
        writing.hand_over(fail, 1)
        with pytest.raises(OSError, match="No space left"):
            writing.hand_over(fail, 1)


def test_stages_are_shares_of_the_time_of_all_workers() -> None:
    stages = Stages()
    stages.add({"total": 10.0, "decode": 15.0, "forward": 8.0})
    stages.add({"total": 10.0, "decode": 5.0, "write": 1.0})
    assert stages.shares() == {
        "decode": 1.0,
        "forward": 0.4,
        "reduce": 0.0,
        "write": 0.05,
        "starved": 0.0,
        "held": 0.0,
    }
    assert str(stages).startswith("Busy: decoding 1.00 threads, model 40%, reduction 0%")
