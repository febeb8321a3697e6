from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from pipelines.report.progress import Progress, format_duration, join_parts_that_fit, reported_wait
from tests.jobs.conftest import ROOT


def test_a_line_now_and_then_in_a_log() -> None:
    out = io.StringIO()
    with Progress("index", out=out) as progress:
        for done in range(4):
            progress(done, 3)
    (line,) = out.getvalue().splitlines()
    assert line == "index  shard 3/3  took 0:00"


def test_a_line_of_a_log_fits_80_columns_and_has_the_time_that_is_left() -> None:
    out = io.StringIO()
    progress = Progress("train", "step", out=out)
    progress._last_line -= 60
    progress(500_000, 1_000_000, ["loss 0.1234", "val accuracy 0.1234", "1234 images/s", "x" * 80, "epoch 2.0"], 7322)
    assert out.getvalue() == "train  step 500000/1000000  left 2:02:02  loss 0.1234  val accuracy 0.1234\n"


def test_what_was_done_before_this_start_says_nothing_of_the_speed() -> None:
    out = io.StringIO()
    progress = Progress("index", out=out)
    progress(90, 100)
    progress._start, progress._last_line = progress._start - 50, progress._last_line - 50
    progress(95, 100)
    assert out.getvalue() == "index  shard 95/100  left 0:50\n"


def test_parts_that_do_not_fit_are_left_out() -> None:
    assert join_parts_that_fit(["ab", "cdefgh", "ij"], 8) == "ab  ij"


def test_a_wait_tells_how_long_it_has_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with reported_wait("smoke test", 600, every_s=0.01):
        deadline = time.monotonic() + 60
        shown = ""
        while not shown and time.monotonic() < deadline:
            shown = capsys.readouterr().err
    assert shown.splitlines()[0] == "smoke test  for 0:00, of at most 10:00"
    assert capsys.readouterr().out == ""


def test_clock() -> None:
    assert [format_duration(seconds) for seconds in (0, 61.4, 3599.6)] == ["0:00", "1:01", "1:00:00"]


_BAR = """
import sys
from pipelines.report.progress import Progress
with Progress("train", "step") as progress:
    progress(1, 4, ["loss 0.5"], 90)
    print("a line of", end=" ")
    print("another process")
    print("an error", file=sys.stderr)
    progress(4, 4, ["loss 0.25"])
print("end")
"""


@pytest.mark.parametrize("size", [(24, 80), (0, 0)], ids=["24 x 80", "unknown"])
def test_lines_appear_above_the_bar_of_a_terminal(size: tuple[int, int]) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.Popen([sys.executable, "-c", _BAR], stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 1 << 16):
            shown += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(master)
    assert done.wait() == 0
    # What is left of each line: what was written after the last return to its beginning, over what was there.
    lines = []
    for line in shown.decode().replace("\r\n", "\n").split("\n"):
        screen = ""
        for written in line.split("\r"):
            screen = written + screen[len(written) :]
        lines.append(screen.rstrip())
    assert lines[:2] == ["a line of another process", "an error"]
    assert re.fullmatch(r"train  step 4/4  took 0:00  loss 0.25  █+", lines[2])
    assert lines[3] == "end"
    assert max(map(len, lines)) < 80
    assert "left 1:30" in shown.decode()
