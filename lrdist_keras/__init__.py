"""Layer-wise learning-rate distributions for fine-tuning transformers with Keras."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrdist_keras.distribution import (
        Distribution,
        flat,
        kenneweg2022,
        kenneweg2022_rounded,
        llrd,
    )
    from lrdist_keras.groups import PatternScheme, Scheme, transformer_groups
    from lrdist_keras.optimizer import LayerwiseOptimizer

__version__ = "0.1.0"

__all__ = [
    "Distribution",
    "LayerwiseOptimizer",
    "PatternScheme",
    "Scheme",
    "flat",
    "kenneweg2022",
    "kenneweg2022_rounded",
    "llrd",
    "transformer_groups",
]

_HOME = {
    "LayerwiseOptimizer": "optimizer",
    "PatternScheme": "groups",
    "Scheme": "groups",
    "transformer_groups": "groups",
}


def __getattr__(name: str) -> Any:
    # Late, so that the `lrdist` command can choose Keras's backend before Keras starts.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME.get(name, 'distribution')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _AfterKeras(MetaPathFinder):
    """Imports the optimizer as soon as Keras is there.

    `keras.models.load_model` knows a class once it is imported, and importing this
    package alone must suffice. It cannot import Keras itself, see `__getattr__`.
    """

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        """Finds Keras, as without this, and adds to its execution; nothing else."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                import_module(f"{__name__}.optimizer")

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    import_module(f"{__name__}.optimizer")
else:
    sys.meta_path.insert(0, _AfterKeras())
