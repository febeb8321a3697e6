from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from pipelines.tracking import metric_queue
from pipelines.tracking.metric_queue import MetricPoint, MetricQueue, QueueError


class Store:
    """Keeps lines in memory; ``broken`` makes it fail, ``gate`` makes it wait."""

    def __init__(self) -> None:
        self.lines: list[MetricPoint] = []
        self.calls: list[int] = []
        self.broken: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def write(self, lines: Sequence[MetricPoint]) -> None:
        self.entered.set()
        assert self.gate.wait(60)
        self.calls.append(len(lines))
        if self.broken:
            raise self.broken
        self.lines.extend(lines)

    def written_steps(self, key: str) -> set[int]:
        return {line.step for line in self.lines if line.key == key}

    @property
    def content(self) -> list[tuple[str, int, float]]:
        return [(line.key, line.step, line.value) for line in self.lines]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def make_queue(store: Store) -> Iterator[Callable[..., MetricQueue]]:
    made: list[MetricQueue] = []

    def make(**settings: Any) -> MetricQueue:
        made.append(MetricQueue(store.write, store.written_steps, interval_s=0.01, **settings))
        return made[-1]

    yield make
    store.gate.set()
    store.broken = None
    for queue in made:
        queue.close()


def test_lines_are_written_in_order_and_a_replay_is_left_out(
    store: Store, make_queue: Callable[..., MetricQueue]
) -> None:
    first = make_queue()
    for step in (1, 2, 3):
        first.put({"loss": step / 10}, step)
    first.close()
    second = make_queue()
    for step in (2, 3, 4):
        second.put({"loss": step / 10, "speed": 5.0}, step)
    second.put({"loss": 99.0}, 4)
    second.flush()
    assert [line for line in store.content if line[0] == "loss"] == [
        ("loss", 1, 0.1),
        ("loss", 2, 0.2),
        ("loss", 3, 0.3),
        ("loss", 4, 0.4),
    ]
    assert [line[1] for line in store.content if line[0] == "speed"] == [2, 3, 4]


def test_a_step_before_the_last_one_is_written_if_the_store_lacks_it(
    store: Store, make_queue: Callable[..., MetricQueue]
) -> None:
    store.lines = [MetricPoint("test/accuracy", 0.9, 500, 1)]
    queue = make_queue()
    queue.put({"test/accuracy": 0.8}, 400)
    queue.put({"test/accuracy": 0.7}, 500)
    queue.flush()
    assert store.content == [("test/accuracy", 500, 0.9), ("test/accuracy", 400, 0.8)]


def test_put_returns_while_the_store_is_busy(store: Store, make_queue: Callable[..., MetricQueue]) -> None:
    store.gate.clear()
    queue = make_queue()
    queue.put({"loss": 1.0}, 0)
    assert store.entered.wait(60)
    for step in range(1, 100):
        queue.put({"loss": 1.0}, step)
    assert store.lines == []
    store.gate.set()
    queue.flush()
    assert [line.step for line in store.lines] == list(range(100))


def test_a_failed_write_is_repeated_with_the_same_lines(store: Store, make_queue: Callable[..., MetricQueue]) -> None:
    store.broken = OSError("database is locked")
    queue = make_queue()
    queue.put({"loss": 0.5}, 7)
    with pytest.raises(QueueError, match="1 metric values are not written: database is locked"):
        queue.flush(timeout_s=0.3)
    store.broken = None
    queue.flush()
    assert store.content == [("loss", 7, 0.5)]
    assert len(store.calls) >= 2


def test_large_backlogs_are_written_in_batches(store: Store, make_queue: Callable[..., MetricQueue]) -> None:
    store.gate.clear()
    queue = make_queue(batch=10)
    for step in range(35):
        queue.put({"loss": 0.0}, step)
    store.gate.set()
    queue.flush()
    assert max(store.calls) <= 10
    assert [line.step for line in store.lines] == list(range(35))


def test_closing_with_a_dead_store_says_how_much_is_lost(store: Store) -> None:
    store.broken = OSError("no route to host")
    queue = MetricQueue(store.write, store.written_steps, interval_s=0.01)
    queue.put({"loss": 0.5, "accuracy": 0.1}, 7)
    with pytest.raises(QueueError, match="2 metric values are not written: no route to host"):
        queue.close(timeout_s=0.3)
    queue.close()
    assert [(line.key, line.step) for line in queue.unsent()] == [("loss", 7), ("accuracy", 7)]
    with pytest.raises(QueueError, match="after the tracker was closed"):
        queue.put({"loss": 0.5}, 8)


def test_lines_of_a_previous_process_come_first(store: Store, make_queue: Callable[..., MetricQueue]) -> None:
    queue = make_queue(unsent=[MetricPoint("loss", 0.5, 1, 10), MetricPoint("loss", 0.25, 2, 20)])
    queue.put({"loss": 0.75}, 2)
    queue.put({"loss": 0.125}, 3)
    queue.flush()
    assert store.content == [("loss", 1, 0.5), ("loss", 2, 0.25), ("loss", 3, 0.125)]
    assert queue.unsent() == []


def test_a_full_queue_loses_lines_and_says_how_many(
    store: Store,
    make_queue: Callable[..., MetricQueue],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(metric_queue, "MAX_UNSENT", 2)
    store.broken = OSError("no route to host")
    queue = make_queue()
    for step in range(5):
        queue.put({"loss": 1.0}, step)
    with pytest.raises(QueueError):
        queue.flush(timeout_s=0.3)
    assert queue.is_failing
    store.broken = None
    queue.flush()
    queue.close()
    queue._thread.join(60)
    assert [line.step for line in store.lines] == [0, 1]
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert "stay queued; training continues: no route to host" in told[0]
    assert "3 values were too many to hold and are lost" in told[1]
