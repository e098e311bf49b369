"""Proposals by other libraries: Optuna's TPE and CMA-ES."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from lrdist_keras.errors import MissingPackage
from lrdist_keras.search.surrogate import Observations

_PACKAGES = {"tpe": "optuna", "cmaes": "cmaes"}


def check_installed(model: str) -> None:
    """Checks that the package is there that a model is of, if it is of one.

    Raises:
        ImportError: If it is not installed.
    """
    package = _PACKAGES.get(model)
    if package is not None and importlib.util.find_spec(package) is None:
        raise MissingPackage(
            f"The model '{model}' needs the package {package}; install it with "
            "`pip install 'lrdist-keras[samplers]'`."
        )


def _propose_tpe(observations: Observations, seed: int) -> np.ndarray:
    """Returns the proposal of Optuna's tree-structured Parzen estimator."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dimensions = observations.points.shape[1]
    counts = observations.categories
    counts = np.zeros(dimensions, int) if counts is None else counts
    names = [f"{i:03}" for i in range(dimensions)]
    space: Any = {
        name: optuna.distributions.CategoricalDistribution(_centers(count))
        if count
        else optuna.distributions.FloatDistribution(0, 1)
        for name, count in zip(names, counts.tolist(), strict=True)
    }
    sampler = optuna.samplers.TPESampler(seed=seed + len(observations.scores))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point, score in zip(observations.points, observations.scores, strict=True):
        parameters = {
            name: _centers(count)[min(int(p * count), count - 1)] if count else p
            for name, p, count in zip(names, point.tolist(), counts, strict=True)
        }
        study.add_trial(
            optuna.trial.create_trial(
                params=parameters, distributions=space, value=float(score)
            )
        )
    proposed = study.ask(space).params
    return np.array([proposed[name] for name in names])


def _propose_cmaes(observations: Observations, seed: int) -> np.ndarray:
    """Returns the next of a CMA-ES that is run again over what has been seen."""
    import cmaes

    dimensions = observations.points.shape[1]
    strategy = cmaes.CMA(
        mean=np.full(dimensions, 0.5),
        sigma=0.25,
        bounds=np.tile([0.0, 1.0], (dimensions, 1)),
        seed=seed + 1,  # 0 is none
    )
    seen = list(zip(observations.points, -observations.scores, strict=True))
    size = strategy.population_size
    for start in range(0, len(seen) - size + 1, size):
        for _ in range(size):
            strategy.ask()
        strategy.tell(seen[start : start + size])
    for _ in range(len(seen) % size):
        strategy.ask()
    return strategy.ask()


def _centers(count: int) -> list[float]:
    """Returns the middles of equal shares of [0, 1], one for each value."""
    return [(i + 0.5) / count for i in range(count)]


PROPOSERS = {"cmaes": _propose_cmaes, "tpe": _propose_tpe}
