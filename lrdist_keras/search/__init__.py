"""Searching a distribution for a sequence of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrdist_keras.search.oracle import BayesianHyperbandOracle

__all__ = ["BayesianHyperbandOracle"]


def __getattr__(name: str) -> Any:
    # Late, since the oracle brings Keras Tuner, which reading trials does not need.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lrdist_keras.search.oracle import BayesianHyperbandOracle

    return BayesianHyperbandOracle
