"""Drill: good requests at a steady rate, and between them every kind that no service should answer; a replica is killed
meanwhile. SOAK_S seconds long.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from pipelines.serve.deployment import deploy
from tests.faults.load import Answer, open_loop, percentile_ms, question_about
from tests.faults.malformed import Malformed, malformed, pictures_of_100_megapixels, statuses_of, unfinished_bodies
from tests.faults.services import Service, cluster, replicas, seconds_until
from tests.pipelines.registry.conftest import QUESTION, picture

SOAK_S = float(os.environ.get("SOAK_S", "60"))
RATE = 20.0  # good requests/s
BAD_RATE = 5.0  # others/s; one of each kind in about five seconds
# At once: more than the places that both replicas' queues have by default, and more pixels than they may hold.
UNFINISHED = 300
HUGE = 8
WARM_UP = 200
# One picture of 100 megapixels takes as much when it is decoded to RGB. What decoders and allocators keep is far less.
GROWTH_MB = 10_000 * 10_000 * 3 / 2**20
# Fewer than one of each kind that is sent to a replica leaves behind. HAProxy keeps some connections for a while.
FILES = 8
BACK_S = 120.0


@dataclass(frozen=True)
class Refusal:
    """What came of a bad request, from ``sent`` to ``ended`` in seconds of the monotonic clock."""

    request: Malformed
    status: int
    sent: float
    ended: float


@dataclass
class Resources:
    """Of processes, by their ids: memory (RSS, MB) when first seen, at most and at last; open files at last."""

    first_mb: dict[int, float] = field(default_factory=dict)
    peak_mb: dict[int, float] = field(default_factory=dict)
    last_mb: dict[int, float] = field(default_factory=dict)
    files: dict[int, int] = field(default_factory=dict)

    def look(self) -> None:
        for pid in replicas():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                process = psutil.Process(pid)
                used_mb = process.memory_info().rss / 2**20
                self.first_mb.setdefault(pid, used_mb)
                self.peak_mb[pid] = max(used_mb, self.peak_mb.get(pid, 0))
                self.last_mb[pid], self.files[pid] = used_mb, process.num_fds()


@contextmanager
def watched() -> Iterator[Resources]:
    """What the replicas use while the block runs."""
    resources, enough = Resources(), threading.Event()

    def look() -> None:
        while not enough.wait(0.25):
            resources.look()

    resources.look()
    with ThreadPoolExecutor(1, "watch") as aside:
        running = aside.submit(look)
        try:
            yield resources
        finally:
            enough.set()
            running.result()


class Crowd:
    """Sends bad requests to a port, some at one time, and keeps what came of them."""

    def __init__(self, port: int, pool: ThreadPoolExecutor) -> None:
        self._port, self._pool = port, pool
        self._sent: list[Future[list[Refusal]]] = []

    def send(self, requests: Sequence[Malformed]) -> None:
        """Begin to send some, all at once."""
        self._sent.append(self._pool.submit(self._send, requests))

    def send_steadily(self, requests: Iterator[Malformed], seconds: float) -> None:
        """Send one after the other for so long, whatever comes back."""
        started, number = time.monotonic(), 0
        while time.monotonic() - started < seconds:
            self.send([next(requests)])
            number += 1
            time.sleep(max(0, started + number / BAD_RATE - time.monotonic()))

    def refusals(self) -> list[Refusal]:
        """What came of all, once it has."""
        return [refusal for sent in self._sent for refusal in sent.result()]

    def _send(self, requests: Sequence[Malformed]) -> list[Refusal]:
        sent = time.monotonic()
        statuses = statuses_of(requests, self._port)
        ended = time.monotonic()
        return [Refusal(one, status, sent, ended) for one, status in zip(requests, statuses, strict=True)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Two replicas with the default limits, which take corrections too."""
    with cluster():
        service = Service(tmp_path, replicas=2, feedback={"folder": str(tmp_path / "feedback")})
        service.promote(service.register(seed=1))
        service.deploy()
        seconds_until(service.is_whole, BACK_S)
        yield service
        deploy.stop_service()


def test_good_requests_between_bad_ones_with_bounded_memory(service: Service, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"soak: {SOAK_S:g} s, the bad requests are drawn with seed {seed}")
    victim, survivor = sorted(replicas())
    body, port = question_about(picture(0)), service.config.serve.port
    # Bodies without end and the like are answered when the time for a request is over, and a thread waits for each.
    with ThreadPoolExecutor(64, "crowd") as pool:
        # What is allocated once, for every kind, is there before.
        warm_up = Crowd(port, pool)
        for request in malformed(0, WARM_UP):
            warm_up.send([request])
        warm_up.refusals()
        with open_loop(service.address, RATE, body):
            time.sleep(5)
        crowd, bad = Crowd(port, pool), malformed(seed, 2**31, with_unfinished=True)
        with watched() as resources, open_loop(service.address, RATE, body, retries=1) as answers:
            files_before = max(resources.files.values())
            for half in range(2):
                crowd.send(unfinished_bodies(seed, UNFINISHED))
                crowd.send(pictures_of_100_megapixels(HUGE))
                if half == 1:
                    killed = time.monotonic()
                    os.kill(victim, signal.SIGKILL)
                    # The kernel takes requests for it until its memory is given back.
                    gone = killed + seconds_until(lambda: is_dead(victim), BACK_S)
                crowd.send_steadily(bad, SOAK_S / 2)
            refusals = crowd.refusals()
            back_s = seconds_until(lambda: victim not in replicas() and service.is_whole(), BACK_S)
        # Connections are kept for a while.
        with suppress(AssertionError):  # it is judged below, with the figures
            seconds_until(lambda: leaked(resources, files_before) == {}, 30)

    by_kind: dict[str, Counter[int]] = {refusal.request.kind: Counter() for refusal in refusals}
    for refusal in refusals:
        by_kind[refusal.request.kind][refusal.status] += 1
    for kind, statuses in sorted(by_kind.items()):
        print(f"  {kind:20} {dict(sorted(statuses.items()))}")

    def was_in_flight(one: Answer | Refusal) -> bool:
        return one.sent <= gone and killed <= one.ended

    retried = [answer for answer in answers if answer.failed]
    before_mb, now = max(resources.first_mb[pid] for pid in (victim, survivor)), replicas()
    print(
        f"soak: {len(answers)} good requests, {dict(Counter(a.status for a in answers))}, p50 "
        f"{percentile_ms(answers, 50):.0f} ms, p99 {percentile_ms(answers, 99):.0f} ms, {len(retried)} tried twice "
        f"{[a.failed for a in retried]}; {len(refusals)} bad ones {dict(Counter(r.status for r in refusals))}; memory "
        f"of a replica {before_mb:.0f} MB before, at most {max(resources.peak_mb.values()):.0f}, "
        f"{max(resources.last_mb[pid] for pid in now):.0f} after; open files {files_before} before, "
        f"{max(resources.files[pid] for pid in now)} after; both replicas were there again by {back_s:.1f} s after "
        "the last bad answer"
    )
    assert Counter((answer.status, answer.version) for answer in answers) == {(200, "1"): len(answers)}
    assert [answer for answer in retried if not was_in_flight(answer)] == []
    assert [
        (refusal.request.kind, refusal.status, refusal.request.data[:300])
        for refusal in refusals
        if not (
            400 <= refusal.status < 500
            or (refusal.status == 0 and refusal.request.may_be_lost)
            # It may be sent again, as any request whose replica is gone.
            or (refusal.status in (0, 502, 503) and was_in_flight(refusal))
        )
    ] == []
    unfinished = [r for r in refusals if r.request.kind.startswith("unfinished") and not was_in_flight(r)]
    assert {refusal.status for refusal in unfinished} == {408}
    assert survivor in now
    assert service.ask(picture(0), QUESTION).model.version == "1"
    assert [file for file in (tmp_path / "feedback").rglob("*") if file.is_file()] == []
    assert max(resources.peak_mb.values()) - before_mb < GROWTH_MB
    assert leaked(resources, files_before) == {}


def is_dead(pid: int) -> bool:
    """Whether nothing of such a process runs; its parent may still have to hear of its end."""
    try:
        process = psutil.Process(pid)
        # Its connections are open until the last of its threads has ended.
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def leaked(resources: Resources, before: int) -> dict[int, int]:
    """By how many open files the replicas have more now than there were ``before``, where that is too many."""
    resources.look()
    return {pid: resources.files[pid] - before for pid in replicas() if resources.files[pid] - before >= FILES}
