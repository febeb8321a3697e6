"""Windows follow each other without gaps, and their ids sort as they do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from pipelines.retrain.window import PATTERN, TimeWindow

MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))
MINUTES = st.integers(1, 60 * 24 * 40)


def test_a_day_begins_at_midnight() -> None:
    window = TimeWindow.at(datetime(2026, 1, 31, 17, 5, tzinfo=UTC), 1440)
    assert window.id == "20260131T0000Z"
    assert window.end == datetime(2026, 2, 1, tzinfo=UTC)


@given(MOMENTS, MINUTES)
def test_a_moment_lies_in_its_window_and_the_next_begins_at_its_end(moment: datetime, minutes: int) -> None:
    window = TimeWindow.at(moment, minutes)
    assert window.start <= moment < window.end
    assert window.end - window.start == timedelta(minutes=minutes)
    assert (
        TimeWindow.at(window.start, minutes) == TimeWindow.at(window.end - timedelta(microseconds=1), minutes) == window
    )
    following = TimeWindow.at(window.end, minutes)
    assert following.start == window.end
    assert following.id > window.id
    assert re.fullmatch(PATTERN, window.id)
