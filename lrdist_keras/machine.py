"""What this machine is and runs: processor, versions, memory in large pages."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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


def cpu_flags_here() -> frozenset[str]:
    """Returns what `cpu_flags` finds here; nothing where it is not told."""
    return cpu_flags(_cpuinfo())


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Returns flags and maker of the first processor in the text of `/proc/cpuinfo`."""
    entries = _first_processor(cpuinfo)
    both = entries.get("flags", ""), entries.get("vendor_id", "")
    return frozenset(" ".join(both).split())


def cpu_model_here() -> str:
    """Returns the name of the processor's model; nothing where it is not told."""
    return _first_processor(_cpuinfo()).get("model name", "")


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")  # only Linux has it
    return path.read_text("utf-8", "replace") if path.is_file() else ""


def _first_processor(cpuinfo: str) -> dict[str, str]:
    first, *_ = cpuinfo.split("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


_PACKAGES = (
    "lrdist-keras",
    "keras",
    "jax",
    "jaxlib",
    "keras-hub",
    "numpy",
    "tokenizers",
    "tensorflow-datasets",
    "keras-tuner",
    "scikit-learn",
    "scipy",
)


def versions(*more: str) -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on.

    Args:
        *more: Packages that this result depends on, too.
    """
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def description() -> dict[str, Any]:
    """Returns what the results were computed on."""
    import jax

    return {
        "system": platform.platform(),
        "processor": cpu_model_here() or platform.machine(),
        "cores": os.cpu_count(),
        "devices": [str(device) for device in jax.devices()],
    }
