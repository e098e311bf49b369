"""The space that a configuration searches, and its oracle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras_tuner

from lrdist_keras.config import (
    DecayPoint,
    SearchSettings,
)
from lrdist_keras.distribution import flat, get, llrd
from lrdist_keras.groups import Scheme
from lrdist_keras.search.oracle import (
    BayesianHyperbandOracle,
)
from lrdist_keras.search.trials import STRENGTH

OBJECTIVE = "reward"
LEARNED = "learned"  # the metric that is 1 if all tasks were learned, else 0
FLAT = "rate"  # the hyperparameter of a flat space
_FINGERPRINT = "tuner/configuration"


def make_oracle(
    settings: SearchSettings,
    scheme: Scheme,
    fingerprint: str = "",
    strength: float | None = None,
) -> BayesianHyperbandOracle:
    """Returns the oracle of a configuration, on the groups of a scheme.

    Args:
        settings: How it searches.
        scheme: The groups.
        fingerprint: What a chief and its workers must agree in.
        strength: Where the strength is searched: that of the start points.

    Raises:
        ValueError: If the settings contradict each other.
        FileNotFoundError: If a start point is no distribution.
    """
    space = keras_tuner.HyperParameters()
    for name in [FLAT] if settings.space == "flat" else scheme.names:
        space.Float(name, settings.low, settings.high, sampling="log")
    fixed: dict[str, Any] = {_FINGERPRINT: fingerprint}
    if settings.strength is not None:
        least, most = settings.strength
        space.Float(STRENGTH, least, most, sampling="log")
        fixed[STRENGTH] = min(max(strength or least, least), most)
    space.Fixed(_FINGERPRINT, fingerprint)
    points = [{**point, **fixed} for point in _start_points(settings, scheme)]
    models = {"bayesian_hyperband": settings.model, "gaussian_process": settings.model}
    by_rungs = settings.sampler in ("bayesian_hyperband", "hyperband")
    named: Any = {"hyperband": "random", **models}
    return BayesianHyperbandOracle(
        keras_tuner.Objective(OBJECTIVE, "max"),
        max_epochs=settings.units if by_rungs else 1,
        factor=settings.factor,
        hyperband_iterations=0,  # as many as the budget allows
        seed=settings.seed,
        hyperparameters=space,
        allow_new_entries=False,
        max_retries_per_trial=settings.retries,
        max_budget=settings.budget,
        start_points=points,
        model=named.get(settings.sampler, settings.sampler),
        random_share=settings.random_share,
        repeats=settings.repeats,
        requires=LEARNED,
    )


def _start_points(
    settings: SearchSettings, scheme: Scheme
) -> Iterator[dict[str, float]]:
    def inside(rate: float) -> float:
        return min(max(rate, settings.low), settings.high)

    for point in settings.start_points:
        if settings.space == "flat":
            if isinstance(point, float):
                yield {FLAT: inside(point)}
            continue
        if isinstance(point, DecayPoint):
            distribution = llrd(point.rate, point.decay, scheme)
        elif isinstance(point, str):
            distribution = get(point).resample(scheme)
        else:
            distribution = flat(point, scheme)
        yield {name: inside(rate) for name, rate in distribution.rates.items()}
