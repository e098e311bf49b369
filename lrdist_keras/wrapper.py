"""What an optimizer around another one passes on to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from lrdist_keras._keras_private import batches_so_far


def _delegated(name: str) -> property:
    """An option of the inner optimizer, to be read and assigned on the outer one."""

    def get(self: OptimizerWrapper) -> Any:
        return getattr(self.inner_optimizer, name) if self._delegates else None

    def assign(self: OptimizerWrapper, value: Any) -> None:
        if self._delegates:
            setattr(self.inner_optimizer, name, value)

    return property(get, assign)


class OptimizerWrapper(keras.optimizers.Optimizer):
    """An optimizer whose inner optimizer does the work.

    The options of the inner optimizer (`clipnorm`, `weight_decay`, `use_ema` and so on)
    can be read and assigned here as there; learning rate, steps and averages are its.

    Args:
        inner_optimizer: A Keras optimizer that is not built yet.
        name: Name of the optimizer.
    """

    _delegates = False  # so that the base class finds nothing to do

    weight_decay = _delegated("weight_decay")
    clipnorm = _delegated("clipnorm")
    global_clipnorm = _delegated("global_clipnorm")
    clipvalue = _delegated("clipvalue")
    use_ema = _delegated("use_ema")
    ema_momentum = _delegated("ema_momentum")
    ema_overwrite_frequency = _delegated("ema_overwrite_frequency")
    gradient_accumulation_steps = _delegated("gradient_accumulation_steps")
    # `LossScaleOptimizer` sets it to None on what it wraps.
    loss_scale_factor = _delegated("loss_scale_factor")

    def __init__(
        self, inner_optimizer: keras.optimizers.Optimizer, name: str | None = None
    ) -> None:
        # A function, because a number would become one more variable of ours.
        super().__init__(learning_rate=lambda: inner_optimizer.learning_rate, name=name)
        self.inner_optimizer = inner_optimizer
        self._delegates = True

    def _build_alone(self, variables: Sequence[keras.Variable]) -> None:
        """Builds the base class, which would make averages of its own."""
        self._delegates = False
        super().build(variables)
        self._delegates = True

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable by the inner optimizer."""
        self.inner_optimizer.update_step(gradient, variable, learning_rate)

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        """Like `apply`, for pairs of gradient and variable; returns the step."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return batches_so_far(self.inner_optimizer)

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[Any] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Delegated: excludes variables from the inner optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> Any:
        """The number of steps that the inner optimizer has taken."""
        return self.inner_optimizer.iterations

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts averaged weights in place at the end of training, if there are any."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if self.use_ema:
            # Weights and averages share buffers now, which JAX's next `fit` refuses.
            for variable in var_list:
                variable.assign(ops.copy(ops.convert_to_tensor(variable)))

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns all variables, those of the inner optimizer included.

        Raises:
            ValueError: If the optimizer is not built or the number of weights differs.
        """
        if not self.built:
            raise ValueError(
                "You are calling `set_weights` on an optimizer that is not built; call "
                "`optimizer.build(model.trainable_variables)` first."
            )
        if len(weights) != len(self.variables):
            raise ValueError(
                "`set_weights` needs one array for each of the "
                f"{len(self.variables)} `optimizer.variables`, such as those of an "
                f"optimizer of the same kind. Received: {len(weights)} arrays"
            )
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)
