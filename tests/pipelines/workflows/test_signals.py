"""What ends a job from outside, and what is left of it then."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.workflows import signals

ROOT = Path(__file__).resolve().parents[3]

# In short steps: a signal that arrives between the interpreter's last look and the system call does not end a sleep.
_WAIT = "[time.sleep(0.1) for _ in range(6000)]"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda n: str(n)
)
def test_a_signal_ends_a_job_with_its_status(number: signal.Signals, status: int) -> None:
    program = textwrap.dedent(f"""
        '''Waits.'''
        import os, sys
        from jobs.job import main

        def run(config):
            try:
                os.kill(os.getpid(), {int(number)})
                import time
                {_WAIT}
            finally:
                print("cleaned up")

        sys.exit(main("wait", [], run=run))
    """)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert done.stdout == "cleaned up\n"
    assert done.stderr.splitlines()[-1] == f"wait: stopped by {number.name}; the same command continues"


def run_program(program: str, **more: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


_DEAF = """
    import subprocess, sys, time
    from pipelines.workflows import signals
    {before}
    signals.raise_interrupt_on_signals("job: stopped by {{signal}}; again")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
    begun = False
    while True:
        try:
            if not begun:
                begun = True
                print(child.pid, flush=True)
            {wait}
        except KeyboardInterrupt:
            print("deaf", flush=True)
"""


@pytest.mark.parametrize("second", [True, False], ids=["second Ctrl-C", "time is up"])
def test_what_does_not_clean_up_is_killed_with_all_that_it_started(second: bool) -> None:
    before = "" if second else "signals.CLEAN_UP_S = 0.5"
    job = run_program(_DEAF.format(before=before, wait=_WAIT))
    try:
        assert job.stdout is not None
        child = int(job.stdout.readline())
        job.send_signal(signal.SIGINT)
        assert job.stdout.readline() == "deaf\n"
        while second and job.poll() is None:
            time.sleep(0.6)  # an earlier one is taken for the same key press
            job.send_signal(signal.SIGINT)
        shown = job.communicate(timeout=120)[1]
    finally:
        job.kill()
    assert job.returncode == 130
    assert shown.splitlines()[-1] == "job: stopped by SIGINT; again"
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:  # killed, but not yet gone on a busy machine
            time.sleep(0.1)


def test_a_job_ends_with_its_status_where_its_terminal_is_gone() -> None:
    master, slave = os.openpty()
    program = textwrap.dedent(f'''
        """Waits."""
        import sys, time
        from jobs.job import main

        def run(config):
            try:
                print("begun", flush=True)
                {_WAIT}
            finally:
                print("cleaned up", flush=True)
                open(sys.argv[1], "w").close()

        sys.exit(main("wait", [], run=run))
    ''')
    with tempfile.TemporaryDirectory() as folder:
        cleaned = Path(folder) / "cleaned"
        job = subprocess.Popen(
            [sys.executable, "-c", program, str(cleaned)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        try:
            assert os.read(master, 100).startswith(b"begun")
            os.close(master)
            assert job.wait(120) == 129
        finally:
            job.kill()
        assert cleaned.exists()


def test_handlers_that_a_library_installs_are_not_kept() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        signals.raise_interrupt_on_signals("{signal}")
        own = signal.getsignal(signal.SIGTERM)
        with signals.restored_signal_handlers():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.signal(signal.SIGTERM, before)
