"""What ends a job from outside: Ctrl-C, SIGTERM, and a terminal that was closed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The exception cannot carry it: where Ray waits in C++, it raises a KeyboardInterrupt of its own.
_received = signal.SIGINT


def handle() -> None:
    """Let each of these signals raise KeyboardInterrupt in the main thread, so that all cleans up as after Ctrl-C.

    SIGINT too: a shell that starts a job in the background has it ignored, and what the job started would outlive it.
    """
    for number in _ENDING:
        signal.signal(number, _raise_keyboard_interrupt)


def received() -> signal.Signals:
    """The signal of the last KeyboardInterrupt."""
    return _received


@contextmanager
def kept() -> Iterator[None]:
    """Put the handlers back that the block replaces: those of ``ray.init`` end the process without its clean-up."""
    handlers = {number: signal.getsignal(number) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)


def _raise_keyboard_interrupt(number: int, _: FrameType | None) -> None:
    global _received
    _received = signal.Signals(number)
    raise KeyboardInterrupt
