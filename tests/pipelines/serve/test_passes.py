"""Passes side by side, up to a number, and the threads that each has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from pipelines.serve.passes import ModelThreads


@pytest.fixture
def thread() -> Iterator[ModelThreads]:
    thread = ModelThreads(passes=1, threads=1)
    yield thread
    thread.close()


def test_passes_follow_one_another_and_their_times_do_not_overlap(thread: ModelThreads) -> None:
    async def go() -> None:
        done = await asyncio.gather(*(thread.run(threading.get_ident) for _ in range(3)))
        assert len({passed.result for passed in done}) == 1
        times = [time for passed in done for time in (passed.started, passed.ended)]
        assert times == sorted(times)

    asyncio.run(go())


def test_it_is_busy_while_a_pass_runs_and_a_warm_up_does_not_count(thread: ModelThreads) -> None:
    async def busy(watched: bool) -> float:
        begun, go_on = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            assert go_on.wait(10)

        running = asyncio.create_task(thread.run(work, watched=watched))
        await asyncio.to_thread(begun.wait, 10)
        seconds = thread.busy_s()
        go_on.set()
        await running
        return seconds

    assert asyncio.run(busy(True)) > 0
    assert asyncio.run(busy(False)) == 0
    assert thread.busy_s() == 0


def test_what_fails_is_raised_and_what_is_cancelled_before_its_turn_is_never_done(thread: ModelThreads) -> None:
    done: list[str] = []

    def fail() -> None:
        raise ValueError("unlucky")

    async def go() -> None:
        with pytest.raises(ValueError, match="unlucky"):
            await thread.run(fail)
        go_on = threading.Event()
        first = asyncio.create_task(thread.run(lambda: go_on.wait(10)))
        second = asyncio.create_task(thread.run(lambda: done.append("second")))
        third = asyncio.create_task(thread.run(lambda: done.append("third")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, third)

    asyncio.run(go())
    assert done == ["third"]
    assert thread.busy_s() == 0


def test_a_pass_that_is_alone_has_all_threads_but_one_and_two_share_them() -> None:
    threads = ModelThreads(passes=2, threads=4)
    begun, go_on = threading.Event(), threading.Event()

    def first() -> int:
        begun.set()
        assert go_on.wait(10)
        return torch.get_num_threads()

    async def go() -> tuple[int, int, int]:
        running = asyncio.create_task(threads.run(first))
        await asyncio.to_thread(begun.wait, 10)
        second = await threads.run(torch.get_num_threads)
        go_on.set()
        return (await running).result, second.result, (await threads.run(torch.get_num_threads)).result

    try:
        assert asyncio.run(go()) == (3, 2, 3)
    finally:
        threads.close()
