"""Compiled programs: made in the background, kept on disk, dropped when too many."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import keras
from jax.sharding import NamedSharding, PartitionSpec

from lrdist_keras import interrupts
from lrdist_keras.errors import InputError
from lrdist_keras.machine import cpu_flags_here
from lrdist_keras.models.platforms import compiler_options

_CORES = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
)
_COMPILERS = min(8, _CORES)  # programs compiled at a time

# Memory mappings that a process may have before it drops programs. Linux allows 65,530
# unless told otherwise; XLA makes some 500 for a program on the CPU, each kernel's own,
# and holds 30 to 50 MB beside them.
_MAPPINGS = 40_000

_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"


class Donated:
    """Base of an argument that goes in and comes out: a program takes its memory over.

    A subclass is a pytree of JAX. After a call the arrays that were given are gone.
    """


class Compiler:
    """Compiles functions at their first call, or before it in the background.

    There is one program per function, tree structure, shapes and types of its
    arguments: what an array holds is never part of a program. Of very many programs,
    those not used for longest are dropped, to come from JAX's cache when they are
    needed again, where that is on.

    An argument that is a `Donated` gives its memory away. One that is a dictionary is a
    batch, whose arrays are divided among the devices, see `placement`; everything else
    is whole on each of them.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # that the calling thread traced or waited
        self.compilations = 0
        # The last used is the last.
        self._compiled: dict[tuple, Callable[..., Any]] = {}
        self._coming: dict[tuple, Future[Callable[..., Any]]] = {}
        self._compilers = ThreadPoolExecutor(_COMPILERS)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns what the function makes of the arguments.

        Args:
            function: Pure; the same object, or the same method of the same object, at
                every call.
            *arguments: Pytrees of arrays, or of NumPy's scalars.

        Raises:
            KeyboardInterrupt: If Ctrl-C was pressed, see `interrupts.kept_for_steps`.
        """
        interrupts.check()
        return self.program(function, *arguments)(*arguments)

    def prefetch(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Traces a function here, and has other threads compile it, if none has yet.

        Args:
            function: What will be called.
            *arguments: What it will be called with, or the like of it.
        """
        self._begin(_key(function, arguments), function, arguments)

    def program(
        self, function: Callable[..., Any], *arguments: Any
    ) -> Callable[..., Any]:
        """Returns what `call` runs, compiled."""
        key = _key(function, arguments)
        if key not in self._compiled:
            self._begin(key, function, arguments)
            start = time.perf_counter()
            # Still in its place if the wait is interrupted, for `cancel` to find.
            self._compiled[key] = self._coming[key].result()
            del self._coming[key]
            self._make_room()
            self.seconds += time.perf_counter() - start
        self._touch(key)
        return self._compiled[key]

    def cancel(self) -> None:
        """Gives up what failed, or is not yet being compiled."""
        for key, coming in list(self._coming.items()):
            if coming.cancel() or _failed(coming):
                self._forget(key)

    def _begin(
        self, key: tuple, function: Callable[..., Any], arguments: tuple
    ) -> None:
        if key in self._coming and _failed(self._coming[key]):
            self._forget(key)
        if key in self._compiled:
            self._touch(key)
        elif key not in self._coming:
            start = time.perf_counter()
            lowered = jitted(function, *arguments).lower(*arguments)
            options = compiler_options()
            self._coming[key] = self._compilers.submit(lowered.compile, options)
            self.seconds += time.perf_counter() - start
            self.compilations += 1

    def _touch(self, key: tuple) -> None:
        self._compiled[key] = self._compiled.pop(key)

    def _forget(self, key: tuple) -> None:
        del self._coming[key]
        self.compilations -= 1

    def _make_room(self) -> None:
        before = _mappings()
        while len(self._compiled) > 1 and before > _MAPPINGS:
            del self._compiled[next(iter(self._compiled))]
            now = _mappings()
            if now >= before:  # it is not programs that have them
                break
            before = now


def jitted(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns `jax.jit` of a function with its arguments where `Compiler` has them."""

    # A function of its own, for JAX keeps what it made as long as the function lives.
    @functools.wraps(function)
    def own(*arguments: Any) -> Any:
        return function(*arguments)

    # Of a batch the examples are the last axis of its labels.
    shape = next((x["labels"].shape for x in arguments if isinstance(x, dict)), (1,))
    whole, batch = placement(shape)
    return jax.jit(
        own,
        donate_argnums=[i for i, x in enumerate(arguments) if isinstance(x, Donated)],
        in_shardings=tuple(batch if isinstance(x, dict) else whole for x in arguments),
        out_shardings=whole,
    )


def placement(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Returns how weights and a batch lie on the devices, as shardings of JAX.

    Under `keras.distribution.DataParallel` every device holds all weights and its share
    of the examples, or all of them if their number cannot be divided by that of
    devices. Without a distribution it is (None, None), one device.

    Args:
        shape: Shape of the labels, [(steps per call,) batch].

    Raises:
        ValueError: If Keras is set to another distribution.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None, None
    if not isinstance(distribution, keras.distribution.DataParallel):
        raise InputError(
            "Training runs on one device or under keras.distribution.DataParallel; set "
            f"no other distribution. Received: {type(distribution).__name__}"
        )
    mesh = distribution.device_mesh.backend_mesh
    whole = NamedSharding(mesh, PartitionSpec())
    if shape[-1] % mesh.size:
        return whole, whole
    axes = [None] * (len(shape) - 1)
    return whole, NamedSharding(mesh, PartitionSpec(*axes, distribution.batch_dim_name))


def _key(function: Callable[..., Any], arguments: tuple) -> tuple:
    leaves, structure = jax.tree.flatten(arguments)
    return function, structure, tuple([(x.shape, x.dtype) for x in leaves])


def _mappings() -> int:
    """Returns the memory mappings of this process; 0 where it is not told."""
    path = Path("/proc/self/maps")  # only Linux has it
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _failed(coming: Future) -> bool:
    return coming.done() and coming.exception() is not None


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
