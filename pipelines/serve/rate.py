"""How often each sender may do something."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """A token bucket for each sender: ``burst`` at once, and ``per_minute`` of them come back in a minute.

    A bucket is kept as the one time at which it will be full again (the generic cell rate algorithm, ITU-T I.371). It
    is kept for good, so senders must be known ones, and not what anyone may call himself.

    Args:
        clock: seconds.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each, self._burst, self._clock = 60 / per_minute, burst, clock
        self._full_at: dict[str, float] = {}

    def take(self, sender: str) -> float:
        """Count one more; the seconds to wait if that is one too many, which does not count, else 0."""
        now = self._clock()
        full_at = max(now, self._full_at.get(sender, now)) + self._seconds_each
        wait_s = full_at - now - self._burst * self._seconds_each
        if wait_s > 0:
            return wait_s
        self._full_at[sender] = full_at
        return 0.0
