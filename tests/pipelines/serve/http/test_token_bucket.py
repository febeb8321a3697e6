from __future__ import annotations

import pytest

from pipelines.serve.http.token_bucket import TokenBuckets


def test_each_sender_has_a_burst_and_then_a_rate() -> None:
    now = [100.0]
    rate = TokenBuckets(6, 2, lambda: now[0])
    assert [
        rate.take_token_or_wait_time("a"),
        rate.take_token_or_wait_time("a"),
        rate.take_token_or_wait_time("b"),
    ] == [0, 0, 0]
    assert rate.take_token_or_wait_time("a") == 10
    now[0] = 104.0
    assert rate.take_token_or_wait_time("a") == 6, "what was refused does not count, and neither does it help"
    now[0] = 110.0
    assert [rate.take_token_or_wait_time("a"), rate.take_token_or_wait_time("a")] == [0, 10]
    now[0] = 1000.0
    assert [
        rate.take_token_or_wait_time("a"),
        rate.take_token_or_wait_time("a"),
        rate.take_token_or_wait_time("a"),
    ] == [0, 0, 10], "a full bucket grows no further"


@pytest.mark.parametrize(("per_minute", "burst"), [(1, 1), (30, 30), (90, 7), (0.5, 3)])
def test_waiting_for_retry_after_is_enough(per_minute: float, burst: int) -> None:
    now = [0.0]
    rate = TokenBuckets(per_minute, burst, lambda: now[0])
    taken = 0
    while now[0] < 3600:
        if wait_s := rate.take_token_or_wait_time("a"):
            now[0] += wait_s / 2
            assert rate.take_token_or_wait_time("a") > 0
            now[0] += wait_s / 2 + 1e-6
        else:
            taken += 1
    assert taken == pytest.approx(burst + 60 * per_minute, abs=1)


@pytest.mark.parametrize("burst", [1, 2, 3])
def test_rounding_of_the_clock_takes_nothing_of_a_burst(burst: int) -> None:
    for now in (16329.047735319253, 65530.1, 131071.999, 2**24 - 30.3):
        rate = TokenBuckets(1, burst, lambda: now)  # noqa: B023
        assert [rate.take_token_or_wait_time("a") for _ in range(burst)] == [0.0] * burst
        assert rate.take_token_or_wait_time("a") == pytest.approx(60)
