"""`LayerwiseOptimizer`: any Keras optimizer with a learning rate for each group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from lrdist_keras.groups import Groups, normalize, partition


@keras.saving.register_keras_serializable(package="lrdist_keras")
class LayerwiseOptimizer(keras.optimizers.Optimizer):
    """Gives each group of variables its own multiple of the learning rate.

    One inner optimizer does the work, so that clipping, schedules, averaging and
    accumulation stay whole; its update and its decoupled weight decay see
    `learning_rate * multiplier` for each variable. The multipliers are state, one
    float32 vector of shape [groups]: assigning others recompiles nothing. A multiplier
    of 0 freezes its group.

    Args:
        inner_optimizer: A Keras optimizer that is not built yet.
        groups: Ordered mapping from group name to path pattern(s), see
            `lrdist_keras.groups.PatternScheme`. Every trainable variable of the model
            must be in exactly one group.
        multipliers: Multiple of the learning rate per group, at least 0: a mapping from
            group name to number or a sequence in group order. Defaults to 1 for all.
        name: Name of the optimizer.

    Raises:
        ValueError: If the inner optimizer is built or is itself a wrapper, or groups or
            multipliers are malformed; in `build`, if the groups are no partition of the
            variables.

    Example:
    >>> body = keras.layers.Dense(3, name="body")
    >>> head = keras.layers.Dense(2, name="head")
    >>> model = keras.Sequential([keras.Input((4,)), body, head])
    >>> optimizer = LayerwiseOptimizer(
    ...     keras.optimizers.Adam(1e-3),
    ...     groups={"body": "body", "head": "head"},
    ...     multipliers={"body": 0.1, "head": 1.0},
    ... )
    >>> model.compile(optimizer, loss="mse")
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        groups: Groups,
        multipliers: Mapping[str, float] | Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        _check_inner(inner_optimizer)
        groups = normalize(groups)
        values = _multiplier_values(multipliers, list(groups))
        # The base class wants a learning rate; ours is that of the inner optimizer.
        super().__init__(learning_rate=0.0, name=name)
        self.groups = groups
        self._initial_multipliers = values
        self.inner_optimizer = inner_optimizer
        self._hook()

    def _hook(self) -> None:
        """Puts the multipliers into the inner optimizer; all use of Keras internals."""
        inner = self.inner_optimizer
        update_step = inner.update_step
        apply_weight_decay = inner._apply_weight_decay
        current_learning_rate = inner._get_current_learning_rate

        def scaled_update_step(
            gradient: Any, variable: Any, learning_rate: Any
        ) -> None:
            update_step(gradient, variable, self._scaled(learning_rate, variable))

        def scaled_weight_decay(variables: Sequence[Any]) -> None:
            if inner.weight_decay is None:
                return
            for variable in variables:
                scaled = self._scaled(current_learning_rate(), variable)
                inner._get_current_learning_rate = lambda scaled=scaled: scaled
                try:
                    apply_weight_decay([variable])
                finally:
                    inner._get_current_learning_rate = current_learning_rate

        inner.update_step = scaled_update_step
        inner._apply_weight_decay = scaled_weight_decay

    def _scaled(self, learning_rate: Any, variable: Any) -> Any:
        index = self._group_of[self.inner_optimizer._var_key(variable)]
        return ops.multiply(learning_rate, self._multipliers[index])

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the state for these variables and finds the group of each."""
        if self.built:
            return
        indices = partition([v.path for v in variables], self.groups)
        self._group_of = {
            self.inner_optimizer._var_key(v): i
            for v, i in zip(variables, indices, strict=True)
        }
        self._multipliers = self.add_variable(
            shape=(len(self.groups),),
            initializer="ones",
            dtype="float32",
            name="multipliers",
        )
        self._multipliers.assign(self._initial_multipliers)
        self.inner_optimizer.build(variables)
        super().build(variables)

    @property
    def multipliers(self) -> dict[str, float]:
        """Multiple of the learning rate per group, readable and assignable any time."""
        values = self._initial_multipliers
        if self.built:
            values = ops.convert_to_numpy(self._multipliers).tolist()
        return dict(zip(self.groups, values, strict=True))

    @multipliers.setter
    def multipliers(self, multipliers: Mapping[str, float] | Sequence[float]) -> None:
        values = _multiplier_values(multipliers, list(self.groups))
        self._initial_multipliers = values
        if self.built:
            self._multipliers.assign(values)

    @property
    def variables(self) -> list[keras.Variable]:
        """Own variables, then those of the inner optimizer."""
        return self._variables + self.inner_optimizer.variables

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None
    ) -> None:
        """Updates the variables by their gradients, as every Keras optimizer does."""
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer: that of multiplier 1."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> Any:
        """The number of steps that the inner optimizer has taken."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        """Delegated: `LossScaleOptimizer` sets it to None on what it wraps."""
        inner = getattr(self, "inner_optimizer", None)
        return None if inner is None else inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: float | None) -> None:
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.loss_scale_factor = value

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts averaged weights in place at the end of training, if there are any."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns all variables, those of the inner optimizer included."""
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        """Saves the own variables; Keras saves the inner optimizer by itself."""
        for i, variable in enumerate(self._variables):
            store[str(i)] = ops.convert_to_numpy(variable)

    def load_own_variables(self, store: Any) -> None:
        """Loads the own variables."""
        for i, variable in enumerate(self._variables):
            variable.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        """The configuration, from which `from_config` makes the same optimizer."""
        return {
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
            "groups": {name: list(patterns) for name, patterns in self.groups.items()},
            "multipliers": self.multipliers,
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> LayerwiseOptimizer:
        """Makes an optimizer from its configuration."""
        config = dict(config)
        config["inner_optimizer"] = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(**config)


def _check_inner(inner: Any) -> None:
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise ValueError(
            "`inner_optimizer` must be a Keras optimizer. "
            f"Received: inner_optimizer={inner!r}"
        )
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`LossScaleOptimizer` goes outermost: wrap the `LayerwiseOptimizer` in it, "
            "and give the `LayerwiseOptimizer` the plain optimizer."
        )
    if isinstance(inner, keras.optimizers.MultiOptimizer | LayerwiseOptimizer):
        raise ValueError(
            "`inner_optimizer` must be a plain optimizer; give it one group of its own "
            f"for each rate. Received: {type(inner).__name__}"
        )
    if inner.built:
        raise ValueError(
            "`inner_optimizer` must not be built yet; make a new one, for example with "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )


def _multiplier_values(
    multipliers: Mapping[str, float] | Sequence[float] | None, names: list[str]
) -> list[float]:
    if multipliers is None:
        return [1.0] * len(names)
    if isinstance(multipliers, Mapping):
        if set(multipliers) != set(names):
            raise ValueError(
                f"`multipliers` must name each group once: {', '.join(names)}. "
                f"Missing: {sorted(set(names) - set(multipliers))}; unknown: "
                f"{sorted(set(multipliers) - set(names))}"
            )
        multipliers = [multipliers[name] for name in names]
    values = [float(m) for m in multipliers]
    if len(values) != len(names):
        raise ValueError(
            f"`multipliers` must have one value for each of the {len(names)} groups "
            f"({', '.join(names)}). Received: {len(values)} values"
        )
    for name, value in zip(names, values, strict=True):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(
                f"The multiplier of group '{name}' must be finite and at least 0. "
                f"Received: {value}"
            )
    return values
