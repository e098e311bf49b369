"""Layer-wise learning-rate distributions for fine-tuning transformers with Keras."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lrdist_keras._registration import register_with_keras

if TYPE_CHECKING:
    from lrdist_keras.distribution import (
        Distribution,
        fast_head,
        flat,
        kenneweg2022,
        kenneweg2022_rounded,
        llrd,
    )
    from lrdist_keras.fisher import fisher_rates
    from lrdist_keras.groups import PatternScheme, Scheme, transformer_groups
    from lrdist_keras.optimizer import LayerwiseOptimizer

__version__ = "0.2.0"

__all__ = [
    "Distribution",
    "LayerwiseOptimizer",
    "PatternScheme",
    "Scheme",
    "fast_head",
    "fisher_rates",
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
    "load_classifier": "models.text_classifier",
    "fisher_rates": "fisher",
    "transformer_groups": "groups",
}


# It needs the extra `lab`, so that `from lrdist_keras import *` leaves it out.
_LAB = ("load_classifier",)


def __getattr__(name: str) -> Any:
    # Late, so that the `lrdist` command can choose Keras's backend before Keras starts.
    if name not in (*__all__, *_LAB):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME.get(name, 'distribution')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_LAB])


register_with_keras()
