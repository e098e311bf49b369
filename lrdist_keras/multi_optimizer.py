"""`keras.optimizers.MultiOptimizer` that does the same as a `LayerwiseOptimizer`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


def multi_optimizer(
    inner: keras.optimizers.Optimizer,
    rate: Any,
    groups: Sequence[tuple[float, Sequence[Any]]],
    decays: Any,
) -> keras.optimizers.MultiOptimizer:
    """Makes one optimizer per group, each at its own rate, from step 0.

    Args:
        inner: The optimizer whose options all get.
        rate: Its learning rate as it was given: a variable, a schedule or a function.
        groups: Multiplier and variables of each group.
        decays: Whether weight decay reaches a variable.

    Raises:
        ValueError: If variables share a path, by which `MultiOptimizer` knows them, or
            the global norm is clipped, which it does for each group by itself.
    """
    if inner.global_clipnorm is not None:
        raise ValueError(
            "`MultiOptimizer` clips the global norm of each group by itself; use "
            "`clipnorm` or stay with `LayerwiseOptimizer`."
        )
    optimizers, by_path = [], {}
    for multiplier, members in groups:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of functions, which are not saved
            config = inner.get_config()
        config["learning_rate"] = _scaled(config["learning_rate"], rate, multiplier)
        optimizer = type(inner).from_config(config)
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in members if not decays(v)]
        )
        optimizers.append(optimizer)
        by_path.update({getattr(v, "path", v.name): optimizer for v in members})
    if len(by_path) < sum(len(members) for _, members in groups):
        raise ValueError(
            "`MultiOptimizer` tells variables apart by their paths, and some share "
            "one; give the layers other names."
        )
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(optimizers[0], by_path),
        loss_scale_factor=inner.loss_scale_factor,
    )


def _scaled(configured: Any, rate: Any, multiplier: float) -> Any:
    """The learning-rate entry of the configuration, times a multiplier."""
    if not isinstance(configured, dict):
        return configured * multiplier
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return ScaledSchedule(rate, multiplier)
    return lambda: rate() * multiplier


@keras.saving.register_keras_serializable(
    package="lrdist_keras", name="_ScaledSchedule"
)
class ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a factor.

    Args:
        schedule: The schedule.
        factor: The factor.
    """

    def __init__(self, schedule: Any, factor: float) -> None:
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate at a step."""
        return ops.multiply(self.schedule(step), self.factor)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScaledSchedule:
        """Makes the same schedule again."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["factor"])
