"""Drill: a challenger beside the champion is killed, hangs and comes back while requests come in; then the gate reads
what was recorded.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipelines.records.comparisons import Comparison, read_comparisons
from pipelines.registry.config import GateConfig, LiveTrafficConfig
from pipelines.registry.gate.live import check_live_traffic
from pipelines.serve.challenger import deployment as challenger_deployment
from pipelines.serve.deployment import deploy
from pipelines.workflows.config import JobConfig
from tests.faults.load import Answer, open_loop, percentile_ms, question_about
from tests.faults.services import Service, cluster, replicas, seconds_until
from tests.pipelines.registry.conftest import picture

RATE = 10.0  # requests/s, of all pictures together
PICTURES = 10
QUIET_S = 5.0
BACK_S = 120.0
# Two models share the machine with the load on them: what a busy one makes wait is not what this drill is about.
PATIENT = {"request_timeout_s": 50.0, "max_in_flight": 2000}


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with cluster():
        yield


def load(service: Service, stack: ExitStack) -> list[list[Answer]]:
    """Requests about so many pictures, of which the challenger has its share."""
    bodies = [question_about(picture(seed)) for seed in range(PICTURES)]
    return [stack.enter_context(open_loop(service.address, RATE / PICTURES, body)) for body in bodies]


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_dead_or_hung_challenger_loses_no_answer(tmp_path: Path, mode: str) -> None:
    records = tmp_path / "live"
    challenger = {"mode": mode, "share": 0.5, "folder": str(records), "num_cpus": 0.5, "timeout_s": 1.0}
    service = Service(tmp_path, challenger=challenger, **PATIENT)
    service.promote(service.register(seed=1))
    service.registry.set_challenger(service.register(seed=2), is_usable=True)
    service.deploy()
    try:
        champion = replicas()
        with ExitStack() as stack:
            answers = load(service, stack)
            time.sleep(QUIET_S)
            [victim] = replicas(challenger_deployment.APP_NAME)
            killed = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            back_s = seconds_until(lambda: bool(replicas(challenger_deployment.APP_NAME) - {victim}), BACK_S)
            seconds_until(lambda: answered_after(records, killed_ns(killed)), BACK_S)
            [other] = replicas(challenger_deployment.APP_NAME)
            hung = time.monotonic()
            os.kill(other, signal.SIGSTOP)
            time.sleep(QUIET_S)
            resumed = time.monotonic()
            os.kill(other, signal.SIGCONT)
            time.sleep(QUIET_S)
        every = [answer for of_picture in answers for answer in of_picture]
        before, hanging = within(every, 0, killed), within(every, hung, resumed)
        print(
            f"{mode}: {len(every)} requests, {sum(a.version == '2' for a in every)} answered by the challenger; "
            f"killed, it was there again after {back_s:.1f} s; p99 {percentile_ms(before, 99):.0f} ms before, "
            f"{percentile_ms(hanging, 99):.0f} ms while it hung; slowest {max(a.seconds for a in every):.2f} s"
        )
        assert [answer for answer in every if answer.status != 200] == []
        assert replicas() == champion, "the champion was not disturbed"
        assert {answer.version for answer in every} == ({"1"} if mode == "shadow" else {"1", "2"})
    finally:
        deploy.stop_service()

    compared = [comparison for comparison in read_comparisons(str(records)) if isinstance(comparison, Comparison)]
    assert {(comparison.champion.version, comparison.challenger.version) for comparison in compared} == {("1", "2")}
    failures = [comparison.challenger.error for comparison in compared if comparison.challenger.error]
    assert failures, "that it died and hung is on record"
    assert any(comparison.fallback for comparison in compared) == (mode == "canary")
    # The gate sees it, and a service that nothing disturbed would have passed.
    strict, lenient = (settings(service.config, records, share) for share in (0.0, 1.0))
    model = service.registry.name
    checks = {check.name: check for check in check_live_traffic(model, "2", "1", strict)[0]}
    print("\n".join(f"  {check.name}: {check.measured}, required {check.required}" for check in checks.values()))
    assert checks["live traffic"].passed
    assert checks["live errors"].passed is False
    assert checks["live latency p50"].measured
    by_name = {check.name: check.passed for check in check_live_traffic(model, "2", "1", lenient)[0]}
    assert by_name["live errors"]


def settings(config: JobConfig, records: Path, errors: float) -> GateConfig:
    live = LiveTrafficConfig(folder=str(records), requests=20, errors=errors)
    return config.registry.gate.model_copy(update={"live": live})


def killed_ns(killed: float) -> int:
    """A moment of the monotonic clock in nanoseconds since 1970."""
    return time.time_ns() - int((time.monotonic() - killed) * 1e9)


def answered_after(records: Path, since_ns: int) -> bool:
    """Whether the challenger that came back has answered."""
    comparisons = (comparison for comparison in read_comparisons(str(records)) if isinstance(comparison, Comparison))
    return any(comparison.time_ns > since_ns + 10**9 and not comparison.challenger.error for comparison in comparisons)


def within(answers: Sequence[Answer], start: float, end: float) -> list[Answer]:
    return [answer for answer in answers if start <= answer.sent <= end]
