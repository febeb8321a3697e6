"""How often each sender may do something."""

from __future__ import annotations

import time
from collections.abc import Callable

# Of a clock that has run for long, differences are not exact, and a burst would lose its last request to that.
_ROUNDING_S = 1e-6


class TokenBuckets:
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
        lacks_s = max(0.0, self._full_at.get(sender, now) - now)
        wait_s = lacks_s - (self._burst - 1) * self._seconds_each
        if wait_s > _ROUNDING_S:
            return wait_s
        self._full_at[sender] = now + lacks_s + self._seconds_each
        return 0.0
