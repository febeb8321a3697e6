from __future__ import annotations

import errno

from pipelines.errors import DataError
from pipelines.train.failure_lines import describe_worker_failure


def test_a_failure_is_one_line_of_the_worker_that_failed_first() -> None:
    full = RuntimeError("a worker failed")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    errors = {0: RuntimeError("connection closed by peer\nTraceback: ..."), 1: full}
    assert describe_worker_failure(errors).startswith(
        "rank 1 failed: [Errno 28] No space left on device: '/data/x'; make room"
    )
    assert describe_worker_failure({0: errors[0]}) == "rank 0 failed: RuntimeError: connection closed by peer"
    assert describe_worker_failure({2: DataError("a\x1bb"), 3: ValueError()}) == "rank 2 failed: a\\x1bb"
    assert len(describe_worker_failure({0: ValueError("x" * 5000)})) < 400
