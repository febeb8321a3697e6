"""Drill: more requests than the service can answer, and requests that no service should answer."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from pipelines.serve.deployment import deploy
from tests.faults.load import closed_loop, heavy_picture, open_loop, percentile_ms, question_about
from tests.faults.malformed import malformed, status_of
from tests.faults.services import Service, cluster, replicas, seconds_until
from tests.pipelines.registry.conftest import QUESTION, picture

IN_FLIGHT = 4
TIMES = 10
MALFORMED = 1000
# Of 963 MB before, the first 160 requests, which are of every kind, allocate 9 MB, and 4,500 more 4 MB. One image of 16
# megapixels that is not freed has 48 MB.
WARM_UP = 160
GROWTH_MB = 24


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One replica that holds few requests, so that it is overloaded by fewer than this process can send."""
    with cluster():
        service = Service(tmp_path_factory.mktemp("load"), max_in_flight=IN_FLIGHT, max_body_bytes=2 << 20)
        service.promote(service.register(seed=1))
        service.deploy()
        seconds_until(service.is_whole, 120)
        yield service
        deploy.stop_service()


def test_ten_times_the_load_is_refused_at_once_and_passes(service: Service) -> None:
    # So heavy that ten times of what the service can do is little for this process, which shares the cores with it.
    body = question_about(heavy_picture(4000))
    calm = closed_loop(service.address, callers=IN_FLIGHT, seconds=8, body=body)
    per_s = len(calm) / (max(answer.ended for answer in calm) - min(answer.sent for answer in calm))
    with open_loop(service.address, TIMES * per_s, body) as answers:
        time.sleep(10)
    stopped = max(answer.sent for answer in answers)
    sent_per_s = len(answers) / (stopped - min(answer.sent for answer in answers))
    after = closed_loop(service.address, callers=1, seconds=3, body=body)
    recovered_s = min(answer.ended for answer in after if answer.status == 200) - stopped
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    print(
        f"overload: {per_s:.1f} requests/s can be answered; of {len(answers)} at {sent_per_s:.1f}/s {len(accepted)} "
        f"were, the slowest after {max(a.seconds for a in accepted):.2f} s; {len(refused)} refused, p50 "
        f"{percentile_ms(refused, 50):.0f} ms, p99 {percentile_ms(refused, 99):.0f} ms; Retry-After "
        f"{dict(Counter(a.retry_after for a in refused))}; first answer {recovered_s:.2f} s after the load ended, "
        f"then p99 {percentile_ms(after, 99):.0f} ms (before: {percentile_ms(calm, 99):.0f} ms for {IN_FLIGHT} callers)"
    )
    assert Counter(answer.status for answer in calm) == {200: len(calm)}
    assert len(accepted) + len(refused) == len(answers), Counter(answer.status for answer in answers)
    assert sent_per_s > TIMES * per_s / 2, "this process cannot send as fast"
    assert len(refused) > len(answers) / 2
    assert all(1 <= int(answer.retry_after) <= 60 for answer in refused)
    assert Counter(answer.status for answer in after) == {200: len(after)}


def test_a_thousand_malformed_requests_do_no_harm(service: Service) -> None:
    seed = random.randrange(2**32)
    print(f"malformed: drawn with seed {seed}")
    [replica] = replicas()
    with ThreadPoolExecutor(4) as crowd:
        list(crowd.map(lambda request: status_of(request, service.config.serve.port), malformed(0, WARM_UP)))
        before = psutil.Process(replica).memory_info().rss
        requests = list(malformed(seed, MALFORMED))
        statuses = list(crowd.map(lambda request: status_of(request, service.config.serve.port), requests))
    grown_mb = (psutil.Process(replica).memory_info().rss - before) / 2**20
    began = time.monotonic()
    assert service.ask(picture(0), QUESTION).model.version == "1"
    by_kind: dict[str, Counter[int]] = {kind: Counter() for kind in {request.kind for request in requests}}
    for request, status in zip(requests, statuses, strict=True):
        by_kind[request.kind][status] += 1
    for kind, counts in sorted(by_kind.items()):
        print(f"  {kind:20} {dict(sorted(counts.items()))}")
    print(
        f"malformed: {dict(sorted(Counter(statuses).items()))}; the replica's memory grew by {grown_mb:.1f} MB from "
        f"{before / 2**20:.0f}; a good request was answered {time.monotonic() - began:.3f} s later"
    )
    wrong = [
        (request.kind, status, request.data[:300])
        for request, status in zip(requests, statuses, strict=True)
        if not (400 <= status < 500 or (status == 0 and request.may_be_lost))
    ]
    assert wrong == []
    assert replicas() == {replica}
    assert grown_mb < GROWTH_MB
