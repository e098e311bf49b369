"""Keras's own tests of its optimizers, as its wheel holds them, on the wrapper.

Each module is loaded afresh with `LayerwiseOptimizer(Inner(...))`, one group of all
variables, wherever it says `Inner(...)`. The privates of an optimizer that these tests
read or patch are those of the inner one.
"""

from optimizer_cases import (  # first, because it chooses Keras's backend
    INNER,
)

# isort: split
import importlib.util
import inspect
import sys
import types
import unittest
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import keras
import pytest

from lrdist_keras.optimizer import LayerwiseOptimizer

FOLDER = Path(inspect.getfile(keras.optimizers.SGD)).parent
FILES = sorted(FOLDER.glob("*_test.py"))

# Test -> why what it asserts cannot hold for what stands around an optimizer.
EXCEPTIONS = {
    "SGDTest.test_single_step": "counts the variables: there is one more",
    "MuonTest.test_adamw_weight_decay": "calls a private method before `build`",
    "OptimizerTest.test_optimizer_auto_naming": "expects the name of the inner class",
    "OptimizerTest.test_get_method": "expects an instance of the inner class",
    "MultiOptimizerTest.test_serialization": "expects the name of the inner class",
    "MultiOptimizerTest.test_tensorboard_logging_with_multi_optimizer": "likewise",
}
PATCHED = {"assign", "assign_add", "assign_sub", "_apply_weight_decay"}


@keras.saving.register_keras_serializable(package="tests")
def everything(variable):
    return "all"


@keras.saving.register_keras_serializable(package="tests")
class Published(LayerwiseOptimizer):
    """Shows the privates of the inner optimizer as its own."""

    def __init__(self, inner_optimizer, *arguments, **options):
        super().__init__(inner_optimizer, *arguments, **options)
        object.__setattr__(self, "_iterations", inner_optimizer._iterations)

    def __getattr__(self, name):
        if name == "inner_optimizer":
            raise AttributeError(name)
        return getattr(self.inner_optimizer, name)

    def __setattr__(self, name, value):
        if name in PATCHED:
            setattr(self.inner_optimizer, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name):
        if name in PATCHED:
            delattr(self.inner_optimizer, name)
        else:
            super().__delattr__(name)


def wrapped(inner):
    def make(*args, **options):
        return Published(inner(*args, **options), everything)

    return make


def get(identifier):
    inner = keras.optimizers.get(identifier)
    return inner if inner is None else Published(inner, everything)


def load(file):
    """The test cases of a file, with every optimizer wrapped."""
    names = {**vars(keras.optimizers), "get": get}
    names |= {inner.__name__: wrapped(inner) for inner in INNER}
    spec = importlib.util.spec_from_file_location(f"published_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    with ExitStack() as stack:
        package = sys.modules["keras.src"]
        replaced = types.SimpleNamespace(**names)
        stack.enter_context(mock.patch.object(package, "optimizers", replaced))
        for inner in INNER:
            source = sys.modules[inner.__module__]
            wrapper = names[inner.__name__]
            stack.enter_context(mock.patch.object(source, inner.__name__, wrapper))
        spec.loader.exec_module(module)
    cases = {}
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, unittest.TestCase):
            for test, reason in EXCEPTIONS.items():
                owner, method = test.split(".")
                if owner == value.__name__:
                    skip = pytest.mark.skip(reason=reason)
                    setattr(value, method, skip(getattr(value, method)))
            cases[value.__name__] = value
    return cases


for path in FILES:
    globals().update(load(path))


@pytest.mark.skipif(not FILES, reason="this wheel of Keras is without its tests")
def test_every_optimizer_has_published_cases():
    assert {f"{inner.__name__}Test" for inner in INNER} <= set(globals())
