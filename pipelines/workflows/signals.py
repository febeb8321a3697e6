"""Handles the signals that end a job from outside: Ctrl-C, SIGTERM, and a closed terminal.

The first of these signals raises KeyboardInterrupt, and the job cleans up. What has not ended after ``CLEAN_UP_S``, or
at a second Ctrl-C, is killed: a library may swallow the exception, or wait for a process that is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

CLEAN_UP_S = 7.0

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A shell and the kernel may each send a signal for one closed terminal or one Ctrl-C.
_SECOND_AFTER_S = 0.5
# The exception cannot carry it: where Ray waits in C++, it raises a KeyboardInterrupt of its own.
_received: signal.Signals | None = None
_received_at = 0.0
_line = ""


def raise_interrupt_on_signals(line: str) -> None:
    """Let each of these signals raise KeyboardInterrupt in the main thread, so that everything is cleaned up as after
    Ctrl-C.

    SIGINT too: a shell that starts a job in the background has it ignored, and what the job started would outlive it.

    Args:
        line: says what the job is, and whether the same command continues; {signal} stands for the signal's name.
    """
    global _received, _line
    _received, _line = None, line
    for number in _ENDING:
        signal.signal(number, _end_on_signal)


def last_received_signal() -> signal.Signals | None:
    """Return the signal that ends this job; None if there was none."""
    return _received


def end_by_signal() -> NoReturn:
    """End this process and everything that is left of what it started, with the status 128 + the signal's number.

    At once: Python's own way out would wait for threads, and may change the status.
    """
    import psutil

    # Parents first, as the raylet would start its workers again.
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    number = _received or signal.SIGINT
    # The terminal may be closed, and the process that read a pipe may have ended with the same Ctrl-C.
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        print(f"\n{_line.format(signal=number.name)}", file=sys.stderr, flush=True)
    os._exit(128 + number)


@contextmanager
def restored_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers that the block replaces: those of ``ray.init`` end the process without its
    clean-up.
    """
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)


def _end_on_signal(number: int, _: FrameType | None) -> None:
    global _received, _received_at
    if _received is None:
        _received, _received_at = signal.Signals(number), time.monotonic()
        _drop_closed_streams()
        timer = threading.Timer(CLEAN_UP_S, end_by_signal)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt
    if number == signal.SIGINT and time.monotonic() - _received_at > _SECOND_AFTER_S:
        end_by_signal()


def _drop_closed_streams() -> None:
    """Replace closed output streams, so that writing to a terminal that was closed does not fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
