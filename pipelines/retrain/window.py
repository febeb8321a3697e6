"""Windows of a schedule: two starts within one window belong to the same cycle."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

PATTERN = r"\d{8}T\d{4}Z"
"""Pattern of ``TimeWindow.id``; ids sort like their windows."""

_FORMAT = "%Y%m%dT%H%MZ"


@dataclass(frozen=True)
class TimeWindow:
    """A period of time from ``start`` (in UTC) to ``end``, the start of the next one."""

    start: datetime
    end: datetime

    @classmethod
    def at(cls, moment: datetime, minutes: int) -> TimeWindow:
        """The window that contains ``moment``; windows of this length follow each other since 1970."""
        period = timedelta(minutes=minutes)
        epoch = datetime.fromtimestamp(0, UTC)
        start = epoch + (moment - epoch) // period * period
        return cls(start, start + period)

    @property
    def id(self) -> str:
        """Its beginning as ``20260131T0000Z``."""
        return self.start.strftime(_FORMAT)
