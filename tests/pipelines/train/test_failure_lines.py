from __future__ import annotations

import errno

from pipelines.errors import DataError
from pipelines.train.failure_lines import failure_line


def test_a_failure_is_one_line_of_the_worker_that_failed_first() -> None:
    full = RuntimeError("a worker failed")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    errors = {0: RuntimeError("connection closed by peer\nTraceback: ..."), 1: full}
    assert failure_line(errors).startswith("rank 1 failed: [Errno 28] No space left on device: '/data/x'; make room")
    assert failure_line({0: errors[0]}) == "rank 0 failed: RuntimeError: connection closed by peer"
    assert failure_line({2: DataError("a\x1bb"), 3: ValueError()}) == "rank 2 failed: a\\x1bb"
    assert len(failure_line({0: ValueError("x" * 5000)})) < 400
