"""Batches follow the model's pace; passes run side by side, up to a number, on the threads that each has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace

import pytest
import torch

from pipelines.serve.inference import batching
from pipelines.serve.inference.batching import Batcher, InferenceThreadPool, ThreadChoice


class Model:
    """Doubles numbers, ``at_once`` batches at one time, each when it is let."""

    def __init__(self, at_once: int = 1) -> None:
        self.at_once = at_once
        self.batches: list[list[int]] = []
        self.free = asyncio.Semaphore(0)
        self.running = 0

    async def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.running += 1
        assert self.running <= self.at_once
        await self.free.acquire()
        self.running -= 1
        return [2 * item for item in items]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def scenario(test: Callable[[Model], Awaitable[None]]) -> None:
    async def go() -> None:
        await asyncio.wait_for(test(Model()), 10)

    asyncio.run(go())


def test_what_arrives_during_a_pass_forms_the_next_batches() -> None:
    async def go(model: Model) -> None:
        batcher = Batcher(model, max_size=4)
        calls = [asyncio.create_task(batcher.submit(0))]
        await settle()
        for item in range(1, 8):
            calls.append(asyncio.create_task(batcher.submit(item)))
            await settle()
        for _ in range(3):
            model.free.release()
        assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10, 12, 14]
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]

    scenario(go)


def test_two_batches_at_once_and_no_more() -> None:
    async def go() -> None:
        model = Model(at_once=2)
        batcher = Batcher(model, max_size=4, at_once=2)
        calls = []
        for item in range(8):
            calls.append(asyncio.create_task(batcher.submit(item)))
            await settle()
        assert model.batches == [[0], [1]]
        for _ in range(4):
            model.free.release()
        assert await asyncio.gather(*calls) == [0, 2, 4, 6, 8, 10, 12, 14]
        assert model.batches == [[0], [1], [2, 3, 4, 5], [6, 7]]
        model.free.release()
        assert await batcher.submit(9) == 18

    asyncio.run(asyncio.wait_for(go(), 10))


def test_batches_side_by_side_share_what_is_there() -> None:
    async def go() -> None:
        model = Model(at_once=2)
        batcher = Batcher(model, max_size=16, at_once=2)
        calls = [asyncio.create_task(batcher.submit(item)) for item in range(8)]
        await settle()
        assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
        calls += [asyncio.create_task(batcher.submit(item)) for item in range(8, 14)]
        await settle()
        for _ in range(4):
            model.free.release()
        assert await asyncio.gather(*calls) == [2 * item for item in range(14)]
        # Half of the ten that were there then, and the rest.
        assert model.batches[2:] == [[8, 9, 10, 11, 12], [13]]

    asyncio.run(asyncio.wait_for(go(), 10))


def test_requests_that_arrive_together_share_the_first_batch() -> None:
    async def go(model: Model) -> None:
        model.free.release()
        assert await asyncio.gather(*map(Batcher(model, max_size=8).submit, range(5))) == [0, 2, 4, 6, 8]
        assert model.batches == [[0, 1, 2, 3, 4]]

    scenario(go)


def test_a_cancelled_request_costs_no_place_in_a_batch() -> None:
    async def go(model: Model) -> None:
        batcher = Batcher(model, max_size=2)
        first = asyncio.create_task(batcher.submit(0))
        await settle()
        calls = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        await settle()
        calls[0].cancel()
        await settle()
        model.free.release()
        model.free.release()
        assert [await first, await calls[1], await calls[2]] == [0, 4, 6]
        assert model.batches == [[0], [2, 3]]

    scenario(go)


def test_an_item_that_fails_costs_its_neighbours_nothing() -> None:
    batches: list[list[int]] = []

    async def run(items: list[int]) -> list[int]:
        batches.append(items)
        if 13 in items:
            raise ValueError("unlucky")
        return items

    async def go() -> None:
        batcher = Batcher(run, max_size=3)
        results = await asyncio.gather(*map(batcher.submit, (1, 13, 2, 3)), return_exceptions=True)
        assert [str(result) for result in results] == ["1", "unlucky", "2", "3"]
        assert batches == [[1, 13, 2], [1], [13], [2], [3]]
        with pytest.raises(ValueError, match="unlucky"):
            await batcher.submit(13)
        assert batches[5:] == [[13]], "what failed alone is not tried again"
        assert await batcher.submit(4) == 4

    asyncio.run(asyncio.wait_for(go(), 10))


def test_an_item_whose_caller_left_is_not_tried_again() -> None:
    batches: list[list[int]] = []
    started, go_on = asyncio.Event(), asyncio.Event()

    async def run(items: list[int]) -> list[int]:
        batches.append(items)
        if len(items) > 1:
            started.set()
            await go_on.wait()
            raise ValueError("together")
        return items

    async def go() -> None:
        batcher = Batcher(run, max_size=3)
        calls = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        await started.wait()
        calls[1].cancel()
        await settle()
        go_on.set()
        assert [await calls[0], await calls[2]] == [1, 3]
        assert batches == [[1, 2, 3], [1], [3]]

    asyncio.run(asyncio.wait_for(go(), 10))


def test_a_model_that_loses_results_is_an_error_not_a_hang() -> None:
    async def run(items: list[int]) -> list[int]:
        return items[1:]

    with pytest.raises(RuntimeError, match="a batch of 1 items gave 0 results"):
        asyncio.run(asyncio.wait_for(Batcher(run, max_size=2).submit(1), 10))


@pytest.fixture
def thread() -> Iterator[InferenceThreadPool]:
    thread = InferenceThreadPool(passes=1, threads=1)
    yield thread
    thread.close()


def test_passes_follow_one_another_and_their_times_do_not_overlap(thread: InferenceThreadPool) -> None:
    async def go() -> None:
        done = await asyncio.gather(*(thread.run(threading.get_ident) for _ in range(3)))
        assert len({passed.result for passed in done}) == 1
        times = [time for passed in done for time in (passed.started, passed.ended)]
        assert times == sorted(times)

    asyncio.run(go())


def test_it_is_busy_while_a_pass_runs_and_a_warm_up_does_not_count(thread: InferenceThreadPool) -> None:
    async def busy(measured: bool) -> float:
        started, go_on = threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            assert go_on.wait(10)

        running = asyncio.create_task(thread.run(work, measured=measured))
        await asyncio.to_thread(started.wait, 10)
        seconds = thread.longest_running_seconds()
        go_on.set()
        await running
        return seconds

    assert asyncio.run(busy(True)) > 0
    assert asyncio.run(busy(False)) == 0
    assert thread.longest_running_seconds() == 0


def test_pass_errors_are_raised_and_cancelled_passes_are_not_run(thread: InferenceThreadPool) -> None:
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
    assert thread.longest_running_seconds() == 0


class Machine:
    """Passes on it, one after the other, take as long as their number of threads makes them; it is its own clock."""

    def __init__(self, threads: int) -> None:
        self.choice = ThreadChoice(threads)
        self.now = 1000.0

    def passes(self, seconds: dict[int, float], during_s: float) -> list[int]:
        """The threads of each pass within so long."""
        end, taken = self.now + during_s, []
        while self.now < end:
            number = self.choice.choose_threads(self.now)
            self.now += seconds[number]
            self.choice.record(number, seconds[number], self.now)
            taken.append(number)
        return taken


QUIET, BUSY = {2: 0.025, 1: 0.036}, {2: 0.250, 1: 0.037}


def test_lone_pass_uses_all_threads_if_faster() -> None:
    taken = Machine(2).passes(QUIET, 600)
    assert taken.count(1) / len(taken) < 0.001
    assert 1 in taken, "else it could not know"


def test_beside_a_busy_process_passes_use_one_thread() -> None:
    machine = Machine(2)
    machine.passes(QUIET, 60)
    taken = machine.passes(BUSY, 600)
    assert taken[:2] == [2, 1]
    assert 10 <= taken.count(2) <= 20
    assert taken.count(2) * BUSY[2] < 0.01 * 600, "of the time"


def test_passes_use_all_threads_after_the_busy_process_ended() -> None:
    machine = Machine(2)
    machine.passes(BUSY, 600)
    taken = machine.passes(QUIET, 70)
    assert taken[-1] == 2
    assert machine.passes(QUIET, 10).count(1) <= 1


def test_thread_choice_recovers_from_one_slow_pass() -> None:
    machine = Machine(2)
    machine.passes(QUIET, 60)
    machine.choice.record(2, 0.045, machine.now)
    assert machine.choice.choose_threads(machine.now) == 2
    machine.choice.record(2, 1.0, machine.now)
    assert machine.choice.choose_threads(machine.now) == 1
    assert machine.passes(QUIET, 4)[-1] == 2


def test_where_all_are_too_many_all_but_one_may_be_best() -> None:
    machine = Machine(16)
    taken = machine.passes({16: 0.100, 15: 0.010, 1: 0.080}, 600)
    assert taken[:3] == [16, 15, 1]
    assert taken.count(15) / len(taken) > 0.99
    assert Machine(1).passes({1: 0.01}, 1)[-1] == 1


def test_a_pass_that_is_alone_has_all_threads_and_two_share_them() -> None:
    threads = InferenceThreadPool(passes=2, threads=4)
    started, go_on = threading.Event(), threading.Event()

    def first() -> int:
        started.set()
        assert go_on.wait(10)
        return torch.get_num_threads()

    async def go() -> tuple[int, int, int]:
        running = asyncio.create_task(threads.run(first))
        await asyncio.to_thread(started.wait, 10)
        second = await threads.run(torch.get_num_threads)
        go_on.set()
        return (await running).result, second.result, (await threads.run(torch.get_num_threads)).result

    try:
        # The first was not alone to its end, and so says nothing about its number of threads.
        assert asyncio.run(go()) == (4, 2, 4)
    finally:
        threads.close()


def test_passes_of_one_kind_are_measured_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, now = InferenceThreadPool(passes=1, threads=2), [0.0]
    monkeypatch.setattr(batching, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def work() -> int:
        number = torch.get_num_threads()
        now[0] += BUSY[number]
        return number

    async def numbers(kind: str, count: int) -> list[int]:
        return [(await threads.run(work, kind=kind)).result for _ in range(count)]

    try:
        assert asyncio.run(numbers("a", 6)) == [2, 1, 1, 1, 1, 1]
        assert asyncio.run(numbers("b", 1)) == [2]
    finally:
        threads.close()
