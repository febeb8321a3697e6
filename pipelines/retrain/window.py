"""Time windows of a schedule: two starts within one window belong to the same cycle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

PATTERN = r"\d{8}T\d{4}Z"
"""Pattern of an id; ids sort like their windows."""

_FORMAT = "%Y%m%dT%H%MZ"


def window_id(moment: datetime, minutes: int) -> str:
    """Return the time, as ``20260131T0000Z`` in UTC, at which the window that contains ``moment`` begins; windows of
    equal length follow each other from 1970 on.
    """
    period, epoch = timedelta(minutes=minutes), datetime.fromtimestamp(0, UTC)
    return (epoch + (moment - epoch) // period * period).strftime(_FORMAT)
