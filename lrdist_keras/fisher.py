"""Learning rates without a search: a gradient of the new task, a Fisher of the old."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrdist_keras.distribution import Distribution, check_rate
from lrdist_keras.errors import InputError
from lrdist_keras.groups import PatternScheme, Scheme

LARGEST_RATIO = 30.0  # of a group to the geometric mean; its inverse is the smallest


@dataclass(frozen=True)
class FisherRates:
    """Learning rates of a task that are found when its turn comes, see `fisher_rates`.

    Args:
        rescale: Geometric mean of the rates over the encoder's groups.
        head_rate: Learning rate of the head.
        tau: Exponent of the ratios, above 0.
        inverse: Whether the inverse ratios count, as a control.

    Raises:
        ValueError: If a number is not positive and finite.
    """

    rescale: float
    head_rate: float
    tau: float = 0.5
    inverse: bool = False

    def __post_init__(self) -> None:
        for name in ("rescale", "head_rate", "tau"):
            value = check_rate(getattr(self, name), f"`{name}`")
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """What the rule is called in configurations and provenances."""
        return "fisher_inverse" if self.inverse else "fisher"

    @property
    def reference_rate(self) -> float:
        """The most that a rate can be, whatever is measured.

        Ratios lie within a factor of 900, so that a rate is at most 900^tau times the
        geometric mean of all.
        """
        factor = math.exp(min(2 * self.tau * math.log(LARGEST_RATIO), 700.0))
        return max(self.rescale * factor, self.head_rate)


def fisher_rates(
    gradient: Sequence[Any],
    fisher: Sequence[Any],
    groups: Sequence[str],
    scheme: Scheme | PatternScheme,
    *,
    rescale: float,
    head_rate: float,
    tau: float = 0.5,
    inverse: bool = False,
) -> Distribution:
    """Computes a new task's learning rates from its gradient and an earlier Fisher.

    Of a group g of the encoder, with B the new task and A the earlier one,

        ratio_g = root mean square of B's gradient in g / mean diagonal Fisher of A in g
        rate_g  = c * cut(ratio_g / geometric mean of the ratios)^tau,

    where the means go over all numbers of all arrays of the group, cut(x) = min(max(x,
    1/30), 30), and c brings the geometric mean of the rates to `rescale`. The geometric
    means go over the groups of the encoder that hold an array. All sums are float64.

    Why: under Adam an update has the size of the learning rate, whatever the gradient.
    The linear model of B's loss plus the quadratic penalty of elastic weight
    consolidation (arXiv 1612.00796, equation 3) has its minimum at a distance of
    gradient / (strength * Fisher), so that a group should go the further, the larger
    that is; tau < 1 tempers what single groups measure badly. That rates of this shape
    forget less is a hypothesis, not a result; `inverse` is its control.

    What cannot be compared: a group whose gradient is exactly 0 counts as the lower
    cut, one whose gradient is not 0 and whose Fisher is 0 as the upper cut, each with a
    warning; the other groups alone make the mean of the ratios. A group of the encoder
    without an array gets `rescale`.

    Args:
        gradient: Gradient of B's mean loss, one array per weight of the encoder. Arrays
            in the group of the head may be among them and do not count.
        fisher: Diagonal Fisher of A, at least 0, in the same shapes.
        groups: Name of the group of each array, from those of the scheme.
        scheme: The groups; the last one is the head.
        rescale: Geometric mean of the rates over the encoder's groups.
        head_rate: Learning rate of the head.
        tau: Exponent of the ratios, above 0.
        inverse: Whether 1 / ratio counts instead.

    Returns:
        The rates, with all numbers that they follow from in the provenance.

    Raises:
        ValueError: If the arguments do not fit each other, a number is not finite or a
            Fisher below 0, or no group has both a gradient and a Fisher.

    Example:
    >>> d = fisher_rates(
    ...     [np.array([3.0, 4.0]), np.array([1.0])], [np.full(2, 2.0), np.array([8.0])],
    ...     ["body", "top"], PatternScheme({"body": "b", "top": "t", "head": "h"}),
    ...     rescale=1e-4, head_rate=1e-3,
    ... )
    >>> round(d.rates["body"] / d.rates["top"], 6)  # sqrt((3.535534 / 2) / (1 / 8))
    3.760603
    """
    rule = FisherRates(rescale, head_rate, tau, inverse)
    measured = _measured(gradient, fisher, groups, scheme)
    cut = _cut_logarithms(measured)
    exponent = -rule.tau if inverse else rule.tau
    centre = np.mean(list(cut.values()))
    rates = {
        name: rule.rescale * math.exp(exponent * float(cut[name] - centre))
        if name in cut
        else rule.rescale
        for name in scheme.names[:-1]
    }
    provenance = {
        "rule": rule.name,
        "tau": rule.tau,
        "rescale": rule.rescale,
        "head_rate": rule.head_rate,
        "gradient": {name: found[0] for name, found in measured.items()},
        "fisher": {name: found[1] for name, found in measured.items()},
    }
    return Distribution(scheme, {**rates, scheme.names[-1]: rule.head_rate}, provenance)


def _measured(
    gradient: Sequence[Any],
    fisher: Sequence[Any],
    groups: Sequence[str],
    scheme: Scheme | PatternScheme,
) -> dict[str, tuple[float, float]]:
    """Returns of each encoder group the gradient's root mean square, the mean Fisher.

    Groups without a number are left out.
    """
    if not len(gradient) == len(fisher) == len(groups):
        raise InputError(
            "`gradient`, `fisher` and `groups` must have one entry per weight. "
            f"Received: {len(gradient)}, {len(fisher)} and {len(groups)} entries"
        )
    *encoder, head = scheme.names
    if unknown := sorted(set(groups) - {*encoder, head}):
        raise InputError(
            f"`groups` must be those of the scheme, {', '.join(scheme.names)}. "
            f"Received: {unknown}"
        )
    found = {}
    for name in encoder:
        squares, importance, numbers = 0.0, 0.0, 0
        for g, f, group in zip(gradient, fisher, groups, strict=True):
            if group != name:
                continue
            g, f = np.asarray(g, np.float64), np.asarray(f, np.float64)
            _check(g, f, name)
            squares += float(np.sum(np.square(g)))
            importance += float(np.sum(f))
            numbers += g.size
        if numbers:
            found[name] = math.sqrt(squares / numbers), importance / numbers
    return found


def _check(gradient: Any, fisher: Any, group: str) -> None:
    if gradient.shape != fisher.shape:
        raise InputError(
            "A gradient and its Fisher must have the same shape. Received in group "
            f"'{group}': {gradient.shape} and {fisher.shape}"
        )
    for what, values in (("gradient", gradient), ("Fisher", fisher)):
        if not np.isfinite(values).all():
            raise InputError(
                f"The {what} of group '{group}' must be finite to give learning rates; "
                "train what it is taken after at lower rates. Received: numbers that "
                "are not finite"
            )
    if (fisher < 0).any():
        raise InputError(
            "A diagonal Fisher is a mean of squares and must be at least 0. Received "
            f"in group '{group}': {fisher.min():g}"
        )


def _cut_logarithms(measured: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Returns log cut(ratio / geometric mean of the ratios) of each group.

    Raises:
        InputError: If no group has a ratio.
    """
    logs = {
        name: math.log(gradient) - math.log(fisher)
        for name, (gradient, fisher) in measured.items()
        if gradient > 0 and fisher > 0
    }
    if not logs:
        raise InputError(
            "Learning rates from a Fisher need at least one group of the encoder in "
            "which neither the gradient nor the Fisher is 0. Received: none; take a "
            "flat rate for this task."
        )
    limit, centre = math.log(LARGEST_RATIO), sum(logs.values()) / len(logs)
    cut = {}
    for name, (gradient, _) in measured.items():
        log = (
            logs[name] - centre if name in logs else math.inf if gradient else -math.inf
        )
        cut[name] = min(max(log, -limit), limit)
    if lower := [name for name, (gradient, _) in measured.items() if not gradient]:
        _warn("gradient is exactly 0", "lower", lower)
    if upper := [name for name in cut if name not in logs and name not in lower]:
        _warn("Fisher is 0", "upper", upper)
    return cut


def _warn(what: str, end: str, groups: Sequence[str]) -> None:
    warnings.warn(
        f"The {what} in {', '.join(map(repr, groups))}: the ratio of gradient to "
        f"Fisher counts as the {end} cut there.",
        stacklevel=4,
    )
