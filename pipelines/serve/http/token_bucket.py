"""Limits the rate of requests for each sender."""

from __future__ import annotations

import time
from collections.abc import Callable

# The rounding error of a clock that has run for long would cost a burst its last request.
_ROUNDING_S = 1e-6


class TokenBuckets:
    """A token bucket for each sender, which holds ``burst`` tokens and is refilled by ``per_minute``.

    A bucket is stored as the time at which it will be full again (the generic cell rate algorithm, ITU-T I.371), and
    never removed, so senders must be authenticated: callers must not be able to invent new ones.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each, self._burst, self._clock = 60 / per_minute, burst, clock
        self._full_at: dict[str, float] = {}

    def take_token_or_wait_time(self, sender: str) -> float:
        """Take a token of the sender and return 0; if none is left, return the seconds until there will be one."""
        now = self._clock()
        refill_s = max(0.0, self._full_at.get(sender, now) - now)
        wait_s = refill_s - (self._burst - 1) * self._seconds_each
        if wait_s > _ROUNDING_S:
            return wait_s
        self._full_at[sender] = now + refill_s + self._seconds_each
        return 0.0
