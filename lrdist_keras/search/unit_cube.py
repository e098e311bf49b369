"""The search space as a unit cube: values of Keras Tuner as points of [0, 1]^n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_tuner.src.engine import hyperparameters as hp_module

from lrdist_keras.errors import InputError


def check_space(
    space: Sequence[Any], start_points: Sequence[Mapping[str, Any]]
) -> None:
    """Checks that a space can be searched and holds the points to start from.

    Raises:
        ValueError: If no hyperparameter is a `Float`, or a start point does not name
            each with a value that it can have.
    """
    if not any(isinstance(hp, hp_module.Float) for hp in space):
        raise InputError(
            "The search space must have at least one `Float`, for example "
            "`hyperparameters.Float('rate', 1e-7, 1e-3, sampling='log')`. "
            f"Received: {[hp.name for hp in space]}"
        )
    names = {hp.name for hp in space}
    for number, point in enumerate(start_points):
        if set(point) != names:
            raise InputError(
                f"Start point {number} must name every hyperparameter and no "
                f"other. Received: {sorted(point)}; the space: {sorted(names)}"
            )
        for hp in space:
            _check_start_value(hp, point[hp.name], f"Start point {number}")


def _check_start_value(hp: Any, value: Any, what: str) -> None:
    """Raises ValueError unless the value is one that the hyperparameter can have."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(hp, hp_module.Float | hp_module.Int):
        rule = f"be a number in [{hp.min_value:g}, {hp.max_value:g}]"
        if isinstance(hp, hp_module.Int):
            number, rule = isinstance(value, int) and number, f"{rule}, a whole one"
        allowed = number and hp.min_value <= value <= hp.max_value
    else:
        rule = f"be one of {list(hp.values)}"
        allowed = value in hp.values
    if not allowed:
        raise InputError(f"{what}: '{hp.name}' must {rule}. Received: {value!r}")


def searched(space: Sequence[Any]) -> list[Any]:
    """Returns the hyperparameters that are searched, one for each axis of the cube."""
    return [hp for hp in space if not isinstance(hp, hp_module.Fixed)]


def point_of(hyperparameters: Any, space: Sequence[Any]) -> list[float]:
    """Returns the point of values, with the default where one is not active."""
    values = hyperparameters.values
    return [
        hp.value_to_prob(
            values[hp.name]
            if hp.name in values and hyperparameters.is_active(hp)
            else hp.default
        )
        for hp in searched(space)
    ]


def values_at(hyperparameters: Any, point: Sequence[float]) -> dict[str, Any]:
    """Returns the values at a point, without those that are not active there."""
    hyperparameters = hyperparameters.copy()
    values = hyperparameters.values = {}
    coordinates = iter(point)
    for hp in hyperparameters.space:
        p = None if isinstance(hp, hp_module.Fixed) else float(next(coordinates))
        if hyperparameters.is_active(hp):
            values[hp.name] = hp.value if p is None else hp.prob_to_value(p)
    return values
