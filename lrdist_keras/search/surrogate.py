"""A Gaussian process of noisy scores on the unit cube, and where to look next."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

# The points that hyperparameters of the process are fitted to; all are conditioned on.
_FITTED = 100
_ITERATIONS = 30
# Candidates: more of them, or smaller steps, follow the model's errors too closely.
_CANDIDATES = 24
_STEP = 0.12
_SWITCH = 0.15  # share of the values without an order that a candidate draws anew
_FEWEST_GOOD = 4


@dataclass(frozen=True)
class Observations:
    """What has been seen of a function on the unit cube.

    Args:
        points: Where, shape [n, d], in [0, 1].
        scores: What was seen there, higher is better, shape [n].
        budgets: Share of the full budget that each was seen with, shape [n], in (0, 1].
        categories: Per dimension the number of values if they have no order, each with
            an equal share of [0, 1], and 0 if it is a number, shape [d]; None for
            numbers alone.
    """

    points: np.ndarray
    scores: np.ndarray
    budgets: np.ndarray
    categories: np.ndarray | None = None

    def highest_budget(self, least: int) -> Observations:
        """Returns those of the highest budget that has enough, and of none if no has.

        Source: the rule of BOHB, arXiv 1807.01774, section 3.2.
        """
        for budget in np.unique(self.budgets)[::-1]:
            chosen = self.budgets == budget
            if chosen.sum() >= least:
                return self._take(chosen)
        return self._take(np.zeros(len(self.scores), bool))

    def _take(self, chosen: np.ndarray) -> Observations:
        return replace(
            self,
            points=self.points[chosen],
            scores=self.scores[chosen],
            budgets=self.budgets[chosen],
        )

    def aligned(self) -> Observations:
        """Returns the scores as they would be at the largest budget, on average.

        To each smaller budget the median difference is added that points seen with both
        it and the next larger one show, if there are two. Several scores of a point and
        a budget count as their mean.
        """
        budgets = np.unique(self.budgets)[::-1]
        runs: dict[bytes, dict[float, list[float]]] = {}
        for point, score, budget in zip(
            self.points, self.scores, self.budgets, strict=True
        ):
            runs.setdefault(point.tobytes(), {}).setdefault(budget, []).append(score)
        seen = [{b: np.mean(found) for b, found in of.items()} for of in runs.values()]
        offset, scores = 0.0, self.scores.copy()
        for larger, smaller in zip(budgets, budgets[1:], strict=False):
            both = [s for s in seen if larger in s and smaller in s]
            if len(both) >= 2:
                offset += float(np.median([s[larger] - s[smaller] for s in both]))
            scores[self.budgets == smaller] += offset
        return replace(self, scores=scores)

    def with_scores(self, points: np.ndarray, scores: np.ndarray) -> Observations:
        """Returns these and further ones, of the full budget."""
        return replace(
            self,
            points=np.concatenate([self.points, points]),
            scores=np.concatenate([self.scores, scores]),
            budgets=np.concatenate([self.budgets, np.ones(len(scores))]),
        )


class Surrogate:
    """A Gaussian process: Matern 5/2, a length per dimension, the noise learned.

    The budget is one more dimension, on a log scale, if there are several. Of values
    without an order any two are equally far apart, at first (one-hot, as in SMAC). The
    hyperparameters are at their posterior mode: without a prior ten lengths from twenty
    points would be fitted to the noise.

    Args:
        observations: What has been seen, at least one.
        rng: Chooses the points that hyperparameters are fitted to if there are many.
    """

    def __init__(self, observations: Observations, rng: np.random.Generator) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import (
            ConstantKernel,
            Matern,
            WhiteKernel,
        )

        self.observations = observations
        self._budgets = np.unique(observations.budgets)
        inputs = self._inputs(observations.points, observations.budgets)
        scores = _softened(observations.scores)
        self._center, self._scale = scores.mean(), scores.std() or 1.0
        targets = (scores - self._center) / self._scale
        dimensions = observations.points.shape[1] + (len(self._budgets) > 1)
        start = 0.5 * math.sqrt(dimensions)
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * Matern(
            np.full(inputs.shape[1], start), (0.05, 50.0), nu=2.5
        ) + WhiteKernel(0.1, (1e-4, 2.0))
        chosen = np.arange(len(targets))
        if len(chosen) > _FITTED:
            chosen = np.sort(rng.choice(len(chosen), _FITTED, replace=False))
        # sklearn warns where a hyperparameter ends at a bound, which is no fault.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = GaussianProcessRegressor(
                kernel, optimizer=_posterior_mode(start), alpha=1e-8
            ).fit(inputs[chosen], targets[chosen])
            self._process = GaussianProcessRegressor(
                fitted.kernel_, optimizer=None, alpha=1e-8
            ).fit(inputs, targets)
        self._noise = math.sqrt(fitted.kernel_.k2.noise_level)

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation at the full budget, without the noise.

        Args:
            points: Shape [m, d], in [0, 1].

        Returns:
            Two arrays of shape [m], in units of the scores.
        """
        inputs = self._inputs(points, np.ones(len(points)))
        mean, deviation = self._process.predict(inputs, return_std=True)
        deviation = np.sqrt(np.maximum(deviation**2 - self._noise**2, 1e-12))
        return mean * self._scale + self._center, deviation * self._scale

    def _inputs(self, points: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        points = _one_hot(points, self.observations.categories)
        if len(self._budgets) == 1:
            return points
        smallest = math.log(min(self._budgets[0], 0.5))
        return np.column_stack([points, np.log(budgets) / smallest])


def expected_improvement(
    mean: np.ndarray, deviation: np.ndarray, best: float
) -> np.ndarray:
    """Returns by how much a score is expected to exceed the best, shape [m].

    Source: Jones, Schonlau and Welch (1998), equation 15.
    """
    from scipy.stats import norm

    z = (mean - best) / deviation
    return (mean - best) * norm.cdf(z) + deviation * norm.pdf(z)


def propose(
    observations: Observations,
    pending: np.ndarray,
    rng: np.random.Generator,
    usable: Callable[[np.ndarray], np.ndarray] = lambda points: points,
) -> np.ndarray | None:
    """Returns the candidate of the largest expected improvement at the full budget.

    Candidates mix, dimension by dimension, the values of the best quarter of what was
    seen, and move them a little. Over the whole cube the model would rather look at
    corners where it knows nothing: with some fifty points in ten dimensions it then
    does no better than chance.

    Points that are being evaluated are taken to be one standard deviation worse than
    the model expects, so that the next one lies elsewhere. The best so far is the
    largest expectation at a point that was seen, because what was seen is noisy.

    Args:
        observations: What has been seen, at least one.
        pending: Points that are being evaluated, shape [p, d].
        rng: Where candidates come from.
        usable: Returns those of the candidates that can be evaluated, shape [c, d], as
            what would be evaluated: values between two whole numbers cannot.

    Returns:
        A point, shape [d], or None if no candidate can be evaluated.
    """
    observations = observations.aligned()
    surrogate = Surrogate(observations, rng)
    if len(pending):
        mean, deviation = surrogate.predict(pending)
        observations = observations.with_scores(pending, mean - deviation)
        surrogate = Surrogate(observations, rng)
    best = surrogate.predict(observations.points)[0].max()
    candidates = usable(_candidates(observations, rng))
    if not len(candidates):
        return None
    gain = expected_improvement(*surrogate.predict(candidates), best)
    return candidates[np.argmax(gain)]


def _candidates(observations: Observations, rng: np.random.Generator) -> np.ndarray:
    """Returns mixtures of the best quarter of the points, moved a little."""
    points = observations.points
    count = min(len(points), max(_FEWEST_GOOD, len(points) // 4))
    good = points[np.argsort(-observations.scores, kind="stable")[:count]]
    dimensions = points.shape[1]
    which = rng.integers(0, count, (_CANDIDATES, dimensions))
    mixed = good[which, np.arange(dimensions)]
    candidates = mixed + rng.normal(0.0, _STEP, mixed.shape)
    # Reflected: cut off, they would pile up on the faces of the cube.
    candidates = np.abs(candidates)
    candidates = np.clip(1.0 - np.abs(1.0 - candidates), 0.0, 1.0)
    if observations.categories is not None:
        unordered = observations.categories > 0
        drawn = rng.random((2, *mixed.shape))
        switched = np.where(drawn[0] < _SWITCH, drawn[1], mixed)
        candidates[:, unordered] = switched[:, unordered]
    return candidates


def _one_hot(points: np.ndarray, categories: np.ndarray | None) -> np.ndarray:
    """Returns points with a column for each value that has no order.

    Two different values are then at distance 1, as the ends of a number's range are.
    """
    if categories is None or not np.any(categories):
        return points
    columns = []
    for column, count in zip(points.T, categories, strict=True):
        if not count:
            columns.append(column[:, None])
            continue
        index = np.minimum(np.floor(column * count), count - 1)
        columns.append((index[:, None] == np.arange(count)) / math.sqrt(2))
    return np.concatenate(columns, axis=1)


def _softened(scores: np.ndarray) -> np.ndarray:
    """Returns the scores with failures raised to a floor below the median.

    How badly a training failed says nothing, and would stretch the scale.
    """
    middle = np.median(scores)
    return np.maximum(scores, middle - 2.0 * (scores.max() - middle))


def _posterior_mode(length: float) -> Any:
    """An optimizer for scikit-learn: likelihood times log-normal priors."""

    def optimize(objective: Any, start: np.ndarray, bounds: np.ndarray) -> Any:
        from scipy.optimize import minimize

        # Logs of amplitude, lengths, noise.
        center = np.array([0.0, *[math.log(length)] * (len(start) - 2), math.log(0.1)])
        spread = np.array([1.0, *[1.0] * (len(start) - 2), 1.5])

        def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = objective(theta)
            z = (theta - center) / spread
            return value + 0.5 * float(z @ z), gradient + z / spread

        found = minimize(
            loss, start, jac=True, bounds=bounds, options={"maxiter": _ITERATIONS}
        )
        return found.x, found.fun

    return optimize
