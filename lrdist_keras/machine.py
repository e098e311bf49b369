"""Memory in pages of 2 MiB."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_NAME = "GLIBC_TUNABLES"
LARGE_PAGES = {_NAME: "glibc.malloc.hugetlb=1"}  # of the environment of a process


def take_large_pages() -> None:
    """Starts this process anew, with a C library that asks Linux for pages of 2 MiB.

    Every call of a training program allocates some hundred megabytes, which with pages
    of 4 KiB takes some percent longer (`benchmarks/step.py`). glibc reads the setting
    only when a process starts; one that is there already is left as it is.
    """
    # Of a program that came through a pipe nothing is left to read again.
    program = sys.argv[0]
    repeatable = sys.executable and (program == "-c" or Path(program).is_file())
    if sys.platform == "linux" and repeatable and _NAME not in os.environ:
        os.environ.update(LARGE_PAGES)
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
        except OSError:  # it goes without
            del os.environ[_NAME]
