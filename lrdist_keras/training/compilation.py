"""Compiled programs that outlive the process."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import jax

from lrdist_keras.machine import cpu_flags_here

_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"


@dataclass
class Compilations:
    """How many programs this process has needed.

    Args:
        cached: Those that were taken from the cache.
        compiled: Those that were compiled.
    """

    cached: int = 0
    compiled: int = 0


compilations = Compilations()  # since `keep_programs` was called first
_listening = False


def keep_programs(cache: str | os.PathLike[str]) -> None:
    """Keeps compiled programs in a folder, so that a second start compiles nothing.

    It is JAX's persistent compilation cache, of programs of any size. A folder that
    JAX has been given already, such as by `JAX_COMPILATION_CACHE_DIR`, stays.

    Args:
        cache: Folder of the cache; the programs are put in `programs` in it, by
            kind of CPU.

    Raises:
        OSError: If the folder cannot be made.
    """
    global _listening
    if not _listening:
        jax.monitoring.register_event_listener(_count)
        _listening = True
    if jax.config.jax_compilation_cache_dir is None:
        # A program of one kind of CPU may not run on another that shares the folder.
        flags = " ".join(sorted(cpu_flags_here()))
        kind = hashlib.sha256(flags.encode()).hexdigest()[:12]
        folder = Path(cache) / "programs" / kind
        folder.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _count(event: str, **_: object) -> None:
    compilations.cached += event == _HIT
    compilations.compiled += event == _MISS
