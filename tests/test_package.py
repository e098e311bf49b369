"""What holds for the package as a whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lrdist_keras"
MAP = Path(__file__).parents[1] / "docs" / "architecture.md"
# From the bottom up: a module imports only what stands before it.
ORDER = [
    name.replace("/", ".")
    for name in re.findall(r"^\| `([\w/]+)` \|", MAP.read_text("utf-8"), re.MULTILINE)
]


def modules():
    """Every module by its dotted name, without the rooms themselves."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            yield name, path


def imported(path):
    """The modules of this package that a module imports, anywhere in it."""
    names = dict(modules())
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, _, module = node.module.partition(".")
            if package == "lrdist_keras":
                each = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
                yield from (name if name in names else module for name in each)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("lrdist_keras."):
                    yield alias.name.removeprefix("lrdist_keras.")


def test_the_map_names_every_module():
    assert {name for name, _ in modules()} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_downwards_only(module):
    below = ORDER[: ORDER.index(module)]
    assert set(imported(dict(modules())[module])) <= set(below)


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
