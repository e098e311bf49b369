"""Ctrl-C between two steps of training, never in the middle of something."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = threading.Event()
_ANSWER = b"\nStopping after this step; press Ctrl-C again to stop at once.\n"


@contextmanager
def kept_for_steps() -> Iterator[None]:
    """Within the block, Ctrl-C waits for the next `check`; a second one does not.

    An exception that a signal raises wherever the program stands can be lost: in a
    callback of JAX's garbage collection it is printed and forgotten.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return
    previous = signal.signal(signal.SIGINT, _keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        _asked.clear()


def _keep(number: int, frame: FrameType | None) -> None:
    if _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()
    os.write(2, _ANSWER)  # `print` may be what was interrupted


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed since the block began."""
    if _asked.is_set():
        raise KeyboardInterrupt
