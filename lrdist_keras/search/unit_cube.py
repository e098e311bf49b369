"""The search space as a unit cube: values of Keras Tuner as points of [0, 1]^n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_tuner.src.engine import hyperparameters as hp_module

from lrdist_keras.errors import InputError


def check_start_points(
    space: Sequence[Any], start_points: Sequence[Mapping[str, Any]]
) -> None:
    """Checks that the points to start from lie in the space.

    Raises:
        ValueError: If a start point does not name each active hyperparameter with a
            value that it can have, or names one that the space does not have.
    """
    known = {hp.name for hp in space}
    for number, point in enumerate(start_points):
        active = [hp for hp in space if is_active(hp, point)]
        if not {hp.name for hp in active} <= set(point) <= known:
            raise InputError(
                f"Start point {number} must name every hyperparameter and no "
                f"other. Received: {sorted(point)}; the space: "
                f"{sorted({hp.name for hp in active})}"
            )
        for hp in active:
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


def is_active(hp: Any, values: Mapping[str, Any]) -> bool:
    """Whether the values of its parents are those that a hyperparameter asks for."""
    return all(condition.is_active(values) for condition in hp.conditions)


def searched(space: Sequence[Any]) -> list[Any]:
    """Returns the hyperparameters that are searched, one for each axis of the cube."""
    return [hp for hp in space if not isinstance(hp, hp_module.Fixed)]


def categories(space: Sequence[Any]) -> list[int]:
    """Returns per axis the number of values without an order; 0 where they have one.

    A `Boolean` has 2 and a `Choice` that is not ordered as many as there are, each in
    its share of [0, 1]; `Float`, `Int` and an ordered `Choice` lie on [0, 1] as Keras
    Tuner maps them.
    """
    return [
        len(hp.values)
        if isinstance(hp, hp_module.Boolean)
        or (isinstance(hp, hp_module.Choice) and not hp.ordered)
        else 0
        for hp in searched(space)
    ]


def point_of(values: Mapping[str, Any], space: Sequence[Any]) -> list[float]:
    """Returns the point of values, with the default where one is not active."""
    return [
        hp.value_to_prob(
            values[hp.name]
            if hp.name in values and is_active(hp, values)
            else hp.default
        )
        for hp in searched(space)
    ]


def values_at(space: Sequence[Any], point: Sequence[float]) -> dict[str, Any]:
    """Returns the values at a point, without those that are not active there."""
    values: dict[str, Any] = {}
    coordinates = iter(point)
    for hp in space:
        p = None if isinstance(hp, hp_module.Fixed) else float(next(coordinates))
        if is_active(hp, values):
            values[hp.name] = hp.value if p is None else hp.prob_to_value(p)
    return values
