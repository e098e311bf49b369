import os
import subprocess
import sys

PROGRAM = """
import sys
import jax
from lrdist_keras.training.compiler import compilations, keep_programs

keep_programs(sys.argv[1])
keep_programs(sys.argv[1])
print(jax.jit(lambda x: 3 * x + 1)(2.0))
print(compilations.compiled, compilations.cached)
"""


def start(cache, **environment):
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
    compiled, cached = start(tmp_path)
    assert compiled > 0 and cached == 0
    assert start(tmp_path) == (0, compiled)


def test_a_folder_of_the_user_stays(tmp_path):
    given = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "given"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    compiled, _ = start(tmp_path / "ours", **given)
    assert compiled > 0
    assert list((tmp_path / "given").iterdir())
    assert not (tmp_path / "ours").exists()
