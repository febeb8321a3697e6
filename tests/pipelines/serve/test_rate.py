from __future__ import annotations

from pipelines.serve.rate import RateLimit


def test_each_sender_has_so_many_in_any_minute() -> None:
    now = [100.0]
    rate = RateLimit(2, lambda: now[0])
    assert [rate.take("a"), rate.take("a"), rate.take("b")] == [0, 0, 0]
    now[0] = 130.0
    assert rate.take("a") == 30
    now[0] = 159.9
    assert rate.take("a") > 0, "what was refused does not count, and neither does it help"
    now[0] = 160.0
    assert [rate.take("a"), rate.take("a")] == [0, 0]
    assert rate.take("a") == 60
