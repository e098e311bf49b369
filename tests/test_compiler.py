"""One program per function, structure, shapes and types; kept on disk."""

import os
import subprocess
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdist_keras.training import compiler
from lrdist_keras.training.compiler import Compiler, Donated, jitted

PROGRAM = """
import sys
import jax
from lrdist_keras.training.compiler import compilations, keep_programs

keep_programs(sys.argv[1])
keep_programs(sys.argv[1])
print(jax.jit(lambda x: 3 * x + 1)(2.0))
print(compilations.compiled, compilations.cached)
"""


def run(cache, **environment):
    without = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cache)],
        capture_output=True,
        text=True,
        check=True,
        env=without | environment,
    )
    value, counts = result.stdout.splitlines()
    assert value == "7.0"
    return tuple(map(int, counts.split()))


def test_a_second_start_compiles_nothing(tmp_path):
    compiled, cached = run(tmp_path)
    assert compiled > 0 and cached == 0
    assert run(tmp_path) == (0, compiled)


def test_a_folder_of_the_user_stays(tmp_path):
    given = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "given"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    compiled, _ = run(tmp_path / "ours", **given)
    assert compiled > 0
    assert list((tmp_path / "given").iterdir())
    assert not (tmp_path / "ours").exists()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum(Donated):
    total: list


def add(so_far, batch, factor):
    return Sum([t + factor * batch["labels"].sum() for t in so_far.total])


def start(*values):
    return Sum([jnp.float32(value) for value in values])


def batch(count):
    return {"labels": np.ones(count, np.float32)}


def test_a_program_serves_all_values_of_its_shapes_and_types():
    ours = Compiler()
    for value, count, factor in [(1.0, 4, 2), (5.0, 4, 3), (0.0, 4, 0)]:
        found = ours.call(add, start(value), batch(count), np.float32(factor))
        assert float(found.total[0]) == value + factor * count
        assert ours.compilations == 1
    ours.call(add, start(1.0, 2.0), batch(4), np.float32(1))  # another structure
    ours.call(add, start(1.0), batch(5), np.float32(1))  # another shape
    ours.call(add, start(1.0), batch(4), np.int32(1))  # another type
    ours.call(lambda *given: add(*given), start(1.0), batch(4), np.float32(1))
    assert ours.compilations == 5 and ours.seconds > 0


def test_what_is_prefetched_is_not_compiled_again():
    ours = Compiler()
    given = start(1.0), batch(4), np.float32(1)
    for _ in range(2):
        ours.prefetch(add, *given)
    assert ours.compilations == 1
    ours.call(add, *given)
    ours.prefetch(add, start(1.0), batch(4), np.float32(1))
    assert ours.compilations == 1 and not ours._coming


def test_memory_of_a_state_is_taken_over_and_that_of_the_rest_is_not():
    donating = jitted(add, start(1.0), batch(4), np.float32(1))
    traced = donating.lower(start(1.0), batch(4), np.float32(1)).args_info
    ((state, others, factor), _) = traced
    assert state.total[0].donated
    assert not others["labels"].donated and not factor.donated


def test_what_failed_is_given_up_and_tried_again(monkeypatch):
    class Failing:
        def lower(self, *arguments):
            return self

        def compile(self, options):
            raise MemoryError("of the compiler")

    ours, given = Compiler(), (start(1.0), batch(4), np.float32(1))
    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="compiler"):
        patch.setattr(compiler, "jitted", lambda *program: Failing())
        ours.call(add, *given)
    ours.cancel()
    assert ours.compilations == 0 and not ours._coming
    assert float(ours.call(add, *given).total[0]) == 5
