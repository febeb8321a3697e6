"""Windows follow each other without gaps, and their ids sort as they do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pipelines.retrain.window import PATTERN, window_id

MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
MINUTES = st.integers(1, 60 * 24 * 40)


def test_a_day_begins_at_midnight() -> None:
    assert window_id(datetime(2026, 1, 31, 17, 5, tzinfo=UTC), 1440) == "20260131T0000Z"
    assert window_id(datetime(2026, 1, 31, tzinfo=UTC), 1440) == "20260131T0000Z"
    assert window_id(datetime(2026, 2, 1, tzinfo=UTC), 1440) == "20260201T0000Z"


@given(MOMENTS, MINUTES)
def test_a_moment_lies_in_its_window_and_the_next_begins_at_its_end(moment: datetime, minutes: int) -> None:
    window = window_id(moment, minutes)
    assert re.fullmatch(PATTERN, window)
    start = datetime.strptime(window, "%Y%m%dT%H%MZ").replace(tzinfo=UTC)
    end = start + timedelta(minutes=minutes)
    assert start <= moment < end
    assert window_id(start, minutes) == window_id(end - timedelta(microseconds=1), minutes) == window
    assert window_id(end, minutes) == end.strftime("%Y%m%dT%H%MZ") > window
