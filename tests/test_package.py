"""What holds for the package as a whole."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lrdist_keras"
# From the bottom up: a module imports only what stands before it.
ORDER = """
files imports pages precision compilation groups distribution optimizer metrics drift
statistics config tasks encoding vocabulary transformer models features shifts
regularizers strategies masked_language moments programs training measures preparation
surrogate oracle distributed search comparison report cli
""".split()


def imported(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "lrdist_keras":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module.startswith("lrdist_keras."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (n.split(".")[1] for n in names if n.startswith("lrdist_keras."))


def test_the_order_names_every_module():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_downwards_only(module):
    below = ORDER[: ORDER.index(module)]
    assert set(imported(module)) <= set(below)


def run(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.split()


HEAVY = (
    "keras_hub keras_tuner tensorflow_datasets tensorflow matplotlib pydantic rich "
    "typer tokenizers"
)


def test_importing_the_package_loads_nothing_heavy_of_its_own():
    code = f"""
import sys
import keras
before = set(sys.modules)
import lrdist_keras
from lrdist_keras import *
print(*[name for name in "{HEAVY}".split() if name in set(sys.modules) - before])
"""
    assert run(code) == []


def test_every_public_name_is_there():
    import lrdist_keras

    for name in lrdist_keras.__all__:
        assert getattr(lrdist_keras, name).__module__.startswith("lrdist_keras.")
        assert name in dir(lrdist_keras)
    with pytest.raises(AttributeError, match="no_such_name"):
        lrdist_keras.no_such_name  # noqa: B018


def test_the_command_chooses_jax_before_keras_is_imported():
    code = """
import sys
import lrdist_keras.cli
print("keras" in sys.modules)
"""
    assert run(code) == ["False"]
