"""Batches follow the model's pace."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pipelines.serve.inference.batching import Batcher


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
