"""All that touches private names of Keras: how an inner optimizer learns its rates.

The tests check that no other module of the core uses such names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

# An array, because TensorFlow takes the number for the 0.0 that it has cached.
_NEGATIVE_ZERO = np.array(-0.0, "float32")


class ScaledUpdates:
    """Lets an inner optimizer see `learning_rate * multiplier` for each variable.

    Its update step and its weight decay are replaced by ones that look up the group of
    each variable. Scaling gradients would be wrong (Adam, Lion and Muon cancel it), and
    so would scaling finished updates (Ftrl, averaging).

    Args:
        inner: The optimizer that does the work, not built yet.
        group_of: From a variable to the index of its group.
        multiplier: From the index of a group to its multiplier, a scalar tensor.
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        group_of: Callable[[Any], int],
        multiplier: Callable[[int], Any],
    ) -> None:
        self.inner: Any = inner
        self.group_of = group_of
        self.multiplier = multiplier
        self._apply_weight_decay = self.inner._apply_weight_decay
        self._current_learning_rate = self.inner._get_current_learning_rate
        self._update_step = self.inner.update_step
        self.inner._apply_weight_decay = self._scaled_weight_decay
        self.inner.update_step = self._scaled_update_step
        # Torch's own optimizers update lists of variables and skip `update_step`.
        self._is_parallel = hasattr(inner, "_parallel_update_step")
        if self._is_parallel:
            self._parallel_update_step = self.inner._parallel_update_step
            self.inner._parallel_update_step = self._scaled_parallel_update_step

    def _by_group(self, variables: Sequence[Any]) -> dict[int, list[int]]:
        positions: dict[int, list[int]] = {}
        for position, variable in enumerate(variables):
            positions.setdefault(self.group_of(variable), []).append(position)
        return positions

    def _scaled(self, learning_rate: Any, group: int) -> Any:
        multiplier = self.multiplier(group)
        rate = ops.multiply(learning_rate, multiplier)
        # Decay at -0.0 leaves every weight as it is, -0.0 too; at 0.0 it would not.
        return ops.where(ops.greater(multiplier, 0), rate, _NEGATIVE_ZERO)

    @contextmanager
    def _at(self, rate: Any) -> Iterator[None]:
        """Lets the inner optimizer find this learning rate wherever it reads it."""
        self.inner._get_current_learning_rate = lambda: rate
        try:
            yield
        finally:
            self.inner._get_current_learning_rate = self._current_learning_rate

    def _scaled_weight_decay(self, variables: Sequence[Any]) -> None:
        learning_rate = self._current_learning_rate()
        for group, positions in self._by_group(variables).items():
            members = [variables[i] for i in positions]
            if self._is_parallel:  # its fused kernels refuse an empty list
                members = [v for v in members if self.inner._use_weight_decay(v)]
            if members:
                with self._at(self._scaled(learning_rate, group)):
                    self._apply_weight_decay(members)

    def _scaled_update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        group = self.group_of(variable)
        kept = ops.copy(ops.convert_to_tensor(variable))
        rate = self._scaled(learning_rate, group)
        with self._at(rate):
            self._update_step(gradient, variable, rate)
        # Momentum that was gathered before would still carry a frozen weight.
        learns = ops.greater(self.multiplier(group), 0)
        moved = ops.convert_to_tensor(variable)
        self.inner.assign(variable, ops.where(learns, moved, kept))

    def _scaled_parallel_update_step(
        self, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # Nadam advances this once per call; every group starts from the same.
        product = getattr(self.inner, "_u_product", None)
        start = None if product is None else ops.copy(product)
        for group, positions in self._by_group(variables).items():
            if product is not None:
                product.assign(start)
            members = [variables[i] for i in positions]
            is_frozen = not float(self.multiplier(group)) > 0
            kept = [ops.copy(v) for v in members if is_frozen]
            rate = self._scaled(learning_rate, group)
            with self._at(rate):
                self._parallel_update_step(
                    [gradients[i] for i in positions], members, rate
                )
            for variable, value in zip(members, kept, strict=False):
                variable.assign(value)

    @property
    def rate(self) -> Any:
        """The learning rate's variable, schedule or function, as it was given."""
        return self.inner._learning_rate

    def decays(self, variable: Any) -> bool:
        """Whether weight decay reaches a variable."""
        is_keras = isinstance(variable, keras.Variable)
        if is_keras and keras.backend.backend() == "tensorflow":
            variable = variable.value
        return bool(self.inner._use_weight_decay(variable))

    def decay_of(self, variable: Any) -> float:
        """The weight decay of a variable; Muon has two."""
        decay = self.inner.weight_decay
        if isinstance(self.inner, keras.optimizers.Muon) and (
            self.inner._should_use_adamw(variable)
        ):
            decay = self.inner.adam_weight_decay
        return float(decay or 0.0) if self.decays(variable) else 0.0

    def share_averages(self, outer: keras.optimizers.Optimizer) -> None:
        """Shows the averages of the inner optimizer on the outer one, too.

        `SwapEMAWeights` unwraps one optimizer only, and `LossScaleOptimizer` may stand
        outside of that.
        """
        if self.inner.use_ema:
            averages = self.inner._model_variables_moving_average
            object.__setattr__(outer, "_model_variables_moving_average", averages)


def variable_key(optimizer: Any, variable: Any) -> Any:
    """What an optimizer knows a variable by."""
    return optimizer._var_key(variable)


def batches_so_far(optimizer: Any) -> Any:
    """The step of learning-rate schedules: accumulation steps count singly."""
    return optimizer._iterations


def built_variables(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built for, in their order."""
    return list(optimizer._trainable_variables)


def check_inner(inner: Any, wrappers: tuple[type, ...]) -> None:
    """Checks that an optimizer can be scaled group by group.

    Args:
        inner: The optimizer.
        wrappers: Classes that cannot stand inside.

    Raises:
        ValueError: If it is no optimizer, built already, a wrapper, inside another
            wrapper, or one that does not go through `update_step`.
    """
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise ValueError(
            "`inner_optimizer` must be a Keras optimizer, such as "
            f"`keras.optimizers.AdamW(2e-5)`. Received: inner_optimizer={inner!r}"
        )
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`LossScaleOptimizer` goes outermost: wrap the `LayerwiseOptimizer` in it, "
            "and give the `LayerwiseOptimizer` the plain optimizer."
        )
    if isinstance(inner, wrappers):
        raise ValueError(
            "`inner_optimizer` must be a plain optimizer; give it one group of its own "
            f"for each rate. Received: {type(inner).__name__}"
        )
    if inner.built:
        raise ValueError(
            "`inner_optimizer` must not be built yet; make a new one, for example with "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )
    if "update_step" in vars(inner):
        raise ValueError(
            "`inner_optimizer` is already inside another `LayerwiseOptimizer`; make a "
            "new one for each, for example with "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )
    owner = next(c for c in type(inner).__mro__ if "_backend_update_step" in vars(c))
    if owner.__module__.split(".")[0] != "keras":
        raise ValueError(
            "The rate of each group goes into the `update_step` of an optimizer, which "
            "one that replaces `_backend_update_step` may skip; override `update_step` "
            f"instead. Received: {type(inner).__name__}"
        )
