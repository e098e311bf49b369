"""Lets `keras.models.load_model` find our classes before they are imported.

Keras knows a class once it is imported, and importing this package alone must suffice.
It cannot import Keras, whose backend the `lrdist` command has yet to choose. So Keras
learns of stand-ins as soon as it is there; they import the class when a file asks for
it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Names in files, and where the classes are.
_CLASSES = {
    "LayerwiseOptimizer": ("optimizer", "LayerwiseOptimizer"),
    "GradualUnfreezing": ("multipliers", "GradualUnfreezing"),
    "_ScaledSchedule": ("multi_optimizer", "ScaledSchedule"),
}


class _StandIn:
    """What Keras finds in the place of a class that is not imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def from_config(self, config: dict[str, Any], **options: Any) -> Any:
        """Makes an object of the class, which takes its own place from now on."""
        module = import_module(f"lrdist_keras.{self.module}")
        return getattr(module, self.name).from_config(config, **options)


class _WithKeras(MetaPathFinder):
    """Registers the stand-ins once Keras has been executed.

    It imports nothing itself, for the lock of Keras's import is held meanwhile.
    """

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds Keras as the other finders do, and adds to its execution."""
        if name != "keras":
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    self._extend(spec.loader)
                return spec
        return None

    def _extend(self, loader: Any) -> None:
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        loader.exec_module = execute_and_register


def _register(keras: Any) -> None:
    objects = keras.saving.get_custom_objects()
    for name, place in _CLASSES.items():
        objects.setdefault(f"lrdist_keras>{name}", _StandIn(*place))


def register_with_keras() -> None:
    """Registers the stand-ins, now or as soon as Keras is imported."""
    if sys.modules.get("keras") is None:
        sys.meta_path.insert(0, _WithKeras())
    else:
        _register(import_module("keras"))  # waits where another thread imports it
