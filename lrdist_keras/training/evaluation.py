"""What a model makes of examples as it is: logits, features, Fisher, gradient."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrdist_keras import machine
from lrdist_keras.data.batches import (
    Encoded,
    buckets,
    evaluation_batches,
    evaluation_steps,
    filled,
)
from lrdist_keras.errors import InputError
from lrdist_keras.models.platforms import calls_ahead, fisher_chunk
from lrdist_keras.training.compiler import Compiler
from lrdist_keras.training.penalties import Weights
from lrdist_keras.training.plan import lengths
from lrdist_keras.training.step import Step, WeightSum
from lrdist_keras.training.token_rows import held_rows, room_of


class Evaluator:
    """Runs evaluation, Fisher and gradient of an encoder over sets of examples.

    Args:
        step: Their functions.
        compiler: Compiles them.
    """

    def __init__(self, step: Step, compiler: Compiler) -> None:
        self.step = step
        self.compiler = compiler
        settings = step.settings
        self.bounds = buckets(settings.max_length, settings.row_lengths)
        self._ahead = calls_ahead()

    @property
    def identity(self) -> tuple[str, ...]:
        """What results depend on beside weights, heads and examples, as texts."""
        step = self.step
        settings = step.settings.model_dump_json()
        compat = ",".join(sorted(step.compat))
        versions = json.dumps(machine.versions())
        return versions, step.encoder.digest, settings, compat

    def evaluate(
        self, data: Encoded, weights: Sequence[Any], head: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits, [examples, classes], and features, [examples, width].

        Args:
            data: The examples.
            weights: In the order of `Encoder.weights`.
            head: Kernel and bias.
        """
        size, encoder = self.step.settings.evaluation_batch_size, self.step.encoder
        logits = np.zeros((len(data), len(head[1])), np.float32)
        features = np.zeros((len(data), encoder.width), np.float32)
        model = list(weights), list(head), encoder.state

        def fetch(indices: np.ndarray, found: tuple) -> None:
            real = indices >= 0
            for array, part in zip((logits, features), found, strict=True):
                array[indices[real]] = np.asarray(part)[real]

        # The device computes a batch while the host makes the next.
        under_way: deque[tuple[np.ndarray, tuple]] = deque()
        for batch in evaluation_batches(data, self.bounds, size):
            inputs = data.arrays(batch.indices, batch.length)
            found = self.compiler.call(self.step.evaluate, *model, inputs)
            under_way.append((batch.indices, found))
            if len(under_way) > self._ahead:
                fetch(*under_way.popleft())
        for given in under_way:
            fetch(*given)
        return logits, features

    def prefetch(
        self, data: Encoded, weights: Sequence[Any], head: Sequence[Any]
    ) -> None:
        """Begins to compile what the evaluation of these examples needs."""
        settings = self.step.settings
        count = settings.evaluation_batch_size
        model = list(weights), list(head), self.step.encoder.state
        nothing = np.full(count, -1)
        for length in lengths(evaluation_steps(data, self.bounds, count, 1)):
            inputs = data.arrays(nothing, length)
            self.compiler.prefetch(self.step.evaluate, *model, inputs)

    def fisher(
        self, data: Encoded, weights: Sequence[Any], head: Sequence[Any]
    ) -> Weights:
        """Returns the diagonal Fisher of the weights, the mean over these examples.

        Args:
            data: The examples, whose labels count.
            weights: In the order of `Encoder.weights`.
            head: Kernel and bias.

        Raises:
            ValueError: If there is no example.
        """
        chunk = fisher_chunk(self.step.encoder.weights)
        return self._mean(self.step.fisher, chunk, data, weights, head)

    def gradient(
        self, data: Encoded, weights: Sequence[Any], head: Sequence[Any]
    ) -> Weights:
        """Returns the gradient of the mean of -log p(label) over these examples.

        It is taken for the weights alone, without dropout, in float32. See `fisher` for
        the arguments.

        Raises:
            ValueError: If there is no example.
        """
        size = self.step.settings.batch_size
        return self._mean(self.step.gradient, size, data, weights, head)

    def _mean(
        self,
        function: Callable[..., WeightSum],
        size: int,
        data: Encoded,
        weights: Sequence[Any],
        head: Sequence[Any],
    ) -> Weights:
        """Returns what a function of `Step` adds up over all examples, their mean.

        Args:
            function: It.
            size: Examples that it is given at a time.
            data: The examples.
            weights: In the order of `Encoder.weights`.
            head: Kernel and bias.
        """
        if not len(data):
            raise InputError(
                "A Fisher or gradient is a mean over examples and needs at least one. "
                "Received: a set without any"
            )
        step, settings = self.step, self.step.settings
        used = held_rows(step.encoder, data, room_of(step.encoder, [data]))
        examples, held = used.narrowed(data), used.take(weights)
        so_far = WeightSum([jnp.zeros_like(w) for w in held])
        count = settings.steps_per_call
        calls = list(evaluation_steps(examples, self.bounds, size, count))

        def arguments(indices: np.ndarray, length: int) -> tuple:
            batches = examples.arrays(filled(indices, count), length)
            scale = np.float32(1 / len(data))
            return so_far, held, list(head), batches, np.int32(len(indices)), scale

        nothing = np.zeros((0, size), int)
        for length in lengths(calls):
            self.compiler.prefetch(function, *arguments(nothing, length))
        for call in calls:
            given = arguments(call.indices, call.length)
            so_far = self.compiler.call(function, *given)
        # Of a token that does not occur the gradient is 0.
        return used.put(jnp.zeros_like(weights[used.position]), so_far.total)
