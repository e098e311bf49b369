"""The optimizers of trainings, and the state of one by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import jax
import keras
import numpy as np

from lrdist_keras.groups import Groups
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.optimizer import LayerwiseOptimizer
from lrdist_keras.settings import TrainingSettings


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OptimizerState:
    """What `LayerwiseOptimizer` keeps from step to step.

    Args:
        multipliers: Factor of the learning rate of each group, float32, shape [groups].
        learning_rate: Learning rate of the last step, a scalar.
        iterations: Steps done, a scalar, int32.
        first: Of each variable, in the order of weights and heads, Adam's first moment,
            or the velocity of SGD: what it moved by in the last step. Empty where SGD
            has no momentum.
        second: Adam's second moment of each variable; empty with SGD.
    """

    multipliers: Any
    learning_rate: Any
    iterations: Any
    first: list[Any]
    second: list[Any]

    @classmethod
    def of(cls, variables: Sequence[Any], is_adam: bool = True) -> Self:
        """Takes the values of `LayerwiseOptimizer.variables`.

        Args:
            variables: The values, in their order.
            is_adam: Whether each variable has two moments, which stand in turn.
        """
        multipliers, iterations, rate, *moments = variables
        if not is_adam:
            return cls(multipliers, rate, iterations, moments, [])
        return cls(multipliers, rate, iterations, moments[::2], moments[1::2])

    @property
    def variables(self) -> list[Any]:
        """The values of `LayerwiseOptimizer.variables`, in their order."""
        moments = self.first
        if self.second:
            pairs = zip(self.first, self.second, strict=True)
            moments = [moment for pair in pairs for moment in pair]
        return [self.multipliers, self.iterations, self.learning_rate, *moments]


class Optimizers:
    """The optimizers of an encoder, one per shapes of what is trained.

    Args:
        encoder: The encoder.
        settings: Which optimizer it is.
        groups: Its groups.
    """

    def __init__(
        self, encoder: Encoder, settings: TrainingSettings, groups: Groups
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.groups = groups
        self._built: dict[tuple, LayerwiseOptimizer] = {}

    def of(
        self, weights: Sequence[Any], heads: Sequence[Sequence[Any]]
    ) -> LayerwiseOptimizer:
        """Returns the optimizer of variables of these shapes, always the same one.

        Without weights it is of the heads alone, in the one group `head`.
        """
        classes = tuple(bias.shape[0] for _, bias in heads)
        where = self.encoder.token_embedding
        rows = None if where is None or not weights else weights[where].shape[0]
        key = classes, rows, bool(weights)
        if key not in self._built:
            # Its variables are numbers, also where this is being traced.
            with jax.ensure_compile_time_eval():
                self._built[key] = self._new(*key)
        return self._built[key]

    def state(self, variables: Sequence[Any]) -> OptimizerState:
        """Returns values of the variables of one of these optimizers, by name."""
        return OptimizerState.of(variables, self.settings.optimizer != "sgd")

    def _new(
        self, classes: tuple[int, ...], rows: int | None, of_all: bool
    ) -> LayerwiseOptimizer:
        width = self.encoder.width
        variables = list(self.encoder.model.trainable_variables) if of_all else []
        groups = self.groups if of_all else {"head": ("/head/kernel", "/head/bias")}
        if rows is not None and (i := self.encoder.token_embedding) is not None:
            variables[i] = _variable(variables[i].path, (rows, width))
        for count in classes:
            variables.append(_variable("head/kernel", (width, count)))
            variables.append(_variable("head/bias", (count,)))
        optimizer = LayerwiseOptimizer(_inner(self.settings), groups)
        optimizer.build(variables)
        return optimizer


def _inner(settings: TrainingSettings) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a configuration, at the rate 1."""
    if settings.optimizer == "adamw":
        return keras.optimizers.AdamW(1.0, weight_decay=settings.weight_decay)
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(1.0, momentum=settings.momentum)
    return keras.optimizers.Adam(1.0)


def _variable(path: str, shape: tuple[int, ...]) -> keras.Variable:
    """Returns a variable of zeros that stands for what is not in the model."""
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.zeros(shape, np.float32), name=name)
