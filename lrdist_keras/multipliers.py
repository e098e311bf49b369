"""Multipliers of the learning rate: as numbers, and as functions of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

Multipliers = Mapping[str, float] | Sequence[float]
Schedule = Callable[[Any], Any]

_LARGEST = float(np.finfo(np.float32).max)


@keras.saving.register_keras_serializable(package="lrdist_keras")
class GradualUnfreezing:
    """Multipliers that unfreeze group after group, the last first.

    Of n groups, group i (from 0) has its multiplier from step `(n - 1 - i) * steps` on
    and 0 before (arXiv 1801.06146, section 3.3).

    Args:
        steps: Number of steps between one group and the next, at least 1.
        multipliers: The multipliers in group order once all groups learn.

    Raises:
        ValueError: If `steps` is no integer or below 1, there is no multiplier, or one
            is negative or not finite.

    Example:
    >>> optimizer = LayerwiseOptimizer(
    ...     keras.optimizers.Adam(1e-3), groups, GradualUnfreezing(100, [0.1, 0.3, 1.0])
    ... )
    """

    def __init__(self, steps: int, multipliers: Sequence[float]) -> None:
        if not isinstance(steps, int) or steps < 1 or len(multipliers) == 0:
            raise ValueError(
                "`steps` must be an integer of at least 1 and `multipliers` hold one "
                f"number for each group. Received: steps={steps!r}, "
                f"multipliers={multipliers}"
            )
        self.steps = steps
        names = [str(i) for i in range(len(multipliers))]
        self.multipliers = multiplier_values(as_numbers(multipliers), names, None)

    def __call__(self, step: Any) -> Any:
        """Returns the multipliers at a step, float32, shape [groups]."""
        starts = np.arange(len(self.multipliers))[::-1] * self.steps
        learns = ops.greater_equal(ops.cast(step, "int32"), starts.astype("int32"))
        return ops.where(learns, np.array(self.multipliers, "float32"), 0.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"steps": self.steps, "multipliers": self.multipliers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradualUnfreezing:
        """Makes the same function again."""
        return cls(**config)


def as_numbers(multipliers: Any) -> dict[str, float] | list[float] | None:
    """Returns multipliers as plain numbers, whatever they were given as.

    Raises:
        ValueError: If they are neither a mapping nor a sequence of numbers.
    """
    try:
        if multipliers is None:
            return None
        if isinstance(multipliers, Mapping):
            return {name: _number(m) for name, m in multipliers.items()}
        if not isinstance(multipliers, str):
            return [_number(m) for m in multipliers]
    except (TypeError, ValueError):
        pass
    raise ValueError(
        "`multipliers` must be a mapping from group name to number, a sequence of "
        "numbers in group order, or a function from step to vector. Received: "
        f"{multipliers!r}"
    )


def _number(value: Any) -> float:
    if isinstance(value, str) or np.ndim(value):
        raise TypeError
    return float(value)


def first_multipliers(schedule: Schedule, names: Sequence[str]) -> list[float]:
    """Returns what a function of the step gives at step 0.

    Raises:
        ValueError: If that is no vector of one number per group.
    """
    given = ops.convert_to_numpy(schedule(ops.convert_to_tensor(0)))
    if given.shape != (len(names),):
        raise ValueError(
            "`multipliers` as a function of the step must return a vector with one "
            f"value for each of the {len(names)} groups ({', '.join(names)}). "
            f"Received: shape {given.shape}"
        )
    return list(given.tolist())


def multiplier_values(
    multipliers: dict[str, float] | list[float] | None, names: list[str], inner: Any
) -> list[float]:
    """Returns one multiplier per group; groups that are left out have 1.

    Args:
        multipliers: What `as_numbers` returned.
        names: The groups in order.
        inner: The inner optimizer, or None.

    Raises:
        ValueError: If a name is unknown, the number of values is another than that of
            groups, or a value is negative, not finite, or 0 for `Ftrl`.
    """
    if multipliers is None:
        return [1.0] * len(names)
    if isinstance(multipliers, Mapping):
        if unknown := [name for name in multipliers if name not in names]:
            raise ValueError(
                f"`multipliers` must name groups: {', '.join(names)}. "
                f"Unknown: {unknown}"
            )
        multipliers = [multipliers.get(name, 1.0) for name in names]
    values = multipliers
    if len(values) != len(names):
        raise ValueError(
            f"`multipliers` must have one value for each of the {len(names)} groups "
            f"({', '.join(names)}). Received: {len(values)} values"
        )
    for name, value in zip(names, values, strict=True):
        if not 0 <= value <= _LARGEST:
            raise ValueError(
                f"The multiplier of group '{name}' must be finite and at least 0; use "
                f"0 to freeze the group. Received: {value}"
            )
        if value == 0 and isinstance(inner, keras.optimizers.Ftrl):
            raise ValueError(
                f"The multiplier of group '{name}' must be positive, because `Ftrl` "
                "divides by the learning rate; freeze the layers with "
                "`trainable = False`."
            )
    return values
