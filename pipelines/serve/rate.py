"""How often each sender may do something."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable


class RateLimit:
    """At most ``per_minute`` times in any minute, for each sender.

    Args:
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._times: defaultdict[str, deque[float]] = defaultdict(deque)

    def take(self, sender: str) -> float:
        """Count one more; the seconds to wait if that is one too many, which does not count, else 0."""
        now, times = self._clock(), self._times[sender]
        while times and times[0] <= now - 60:
            times.popleft()
        if len(times) >= self._per_minute:
            return times[0] + 60 - now
        times.append(now)
        return 0.0
