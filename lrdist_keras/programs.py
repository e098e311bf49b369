"""The compiled programs of training, evaluation and the Fisher, once each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lrdist_keras.config import TrainingSettings
from lrdist_keras.groups import Groups, partition
from lrdist_keras.models import Encoder
from lrdist_keras.optimizer import LayerwiseOptimizer
from lrdist_keras.precision import in_precision
from lrdist_keras.regularizers import squared_gradients
from lrdist_keras.strategies import Terms, negative_log_likelihood

Classes = tuple[int, ...]


class Programs:
    """Compiles each program at its first use.

    There is one per (kind, classes of the active heads, bucket): learning rates, the
    position in the schedule, multipliers, strengths and weights are its arguments.
    The weights that they take are those of the encoder, then kernel and bias of each
    active head.

    Args:
        encoder: The pretrained encoder.
        settings: How each task is trained.
        groups: Groups of the optimizer.
    """

    def __init__(
        self, encoder: Encoder, settings: TrainingSettings, groups: Groups
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.groups = groups
        self.seconds = 0.0
        self.compilations = 0
        self._compiled: dict[tuple, Callable[..., Any]] = {}
        self._optimizers: dict[Classes, LayerwiseOptimizer] = {}

    def evaluate(self, classes: Classes, values: list, inputs: dict) -> Any:
        """Returns the logits of the one active head, shape [batch, classes]."""
        arguments = (values, self.encoder.state, inputs)
        return self._program("evaluate", classes, inputs, arguments)(*arguments)

    def fisher(
        self, classes: Classes, total: list, values: list, inputs: dict, scale: Any
    ) -> list:
        """Returns `total` + scale * the squared gradients of these examples' labels."""
        arguments = (total, values, inputs, scale)
        return self._program("fisher", classes, inputs, arguments)(*arguments)

    def training(
        self, kind: str, classes: Classes, arguments: tuple
    ) -> Callable[..., Any]:
        """Returns the program of some steps, ready to be called with the arguments.

        Args:
            kind: Of the step: `probe` moves the heads alone; the others are names for
                which `Terms` are given.
            classes: Of the active heads.
            arguments: Weights, state of the model, state of the optimizer (all three
                are given away), batches of shape [steps per call, batch, …], how many
                of them to do, steps done before, steps in all, largest learning rate,
                and `Terms`. It returns the first three, and the last loss.
        """
        return self._program(kind, classes, arguments[3], arguments)

    def optimizer_state(
        self, classes: Classes, multipliers: Mapping[str, float]
    ) -> list[Any]:
        """Returns fresh moments, and these multipliers."""
        optimizer = self._optimizer(classes)
        optimizer.multipliers = {name: multipliers[name] for name in self.groups}
        return [jnp.array(v.value, copy=True) for v in optimizer.variables]

    def _program(
        self, kind: str, classes: Classes, inputs: dict, arguments: tuple
    ) -> Callable[..., Any]:
        key = (kind, classes, inputs["token_ids"].shape)
        if key not in self._compiled:
            start = time.perf_counter()
            function = self.jitted(kind, classes, inputs["token_ids"].shape)
            self._compiled[key] = function.lower(*arguments).compile()
            self.seconds += time.perf_counter() - start
            self.compilations += 1
        return self._compiled[key]

    def jitted(self, kind: str, classes: Classes, shape: tuple[int, ...]) -> Any:
        """Returns the function of a program before it is compiled.

        Args:
            kind: `evaluate`, `fisher`, or of a training step.
            classes: Of the active heads.
            shape: Of the token ids, [(steps per call,) batch, length].
        """
        precision = self.encoder.precision
        whole, rows = placement(shape)
        given: tuple[Any, ...]
        taken: tuple[int, ...]
        if kind == "evaluate":
            call = in_precision(self._evaluation_call, precision)
            given, taken = (whole, whole, rows), ()
        elif kind == "fisher":
            call = self._fisher_call
            given, taken = (whole, whole, rows, whole), (0,)
        else:
            call = in_precision(self._training_call(kind, classes), precision)
            given, taken = (*3 * [whole], rows, *5 * [whole]), (0, 1, 2)
        return jax.jit(
            call, donate_argnums=taken, in_shardings=given, out_shardings=whole
        )

    def _logits(
        self, values: list, state: list, inputs: dict, training: bool, probe: bool
    ) -> tuple[list, list]:
        """Returns the logits of every active head, and the new state."""
        backbone, heads = split(values, len(self.encoder.weights))
        features, state = self.encoder.features(backbone, state, inputs, training)
        if probe:
            features = jax.lax.stop_gradient(features)
        # The highest precision also keeps a head of many classes in float32.
        return [
            jnp.matmul(features, kernel, precision="highest") + bias
            for kernel, bias in heads
        ], state

    def _evaluation_call(self, values: list, state: list, inputs: dict) -> Any:
        return self._logits(values, state, inputs, training=False, probe=False)[0][0]

    def _fisher_call(self, total: list, values: list, inputs: dict, scale: Any) -> list:
        head = values[len(total) :]

        def log_likelihood(weights: list, example: dict) -> Any:
            one = jax.tree.map(lambda x: x[None], example)
            (logits,), _ = self._logits(
                [*weights, *head], self.encoder.state, one, training=False, probe=False
            )
            return jax.nn.log_softmax(logits)[0, example["labels"]]

        squares = squared_gradients(
            log_likelihood, values[: len(total)], inputs, inputs["weights"]
        )
        return [t + scale * s for t, s in zip(total, squares, strict=True)]

    def _training_call(self, kind: str, classes: Classes) -> Callable[..., Any]:
        optimizer = self._optimizer(classes)
        inner_rate = optimizer.inner_optimizer._learning_rate
        rate = next(i for i, v in enumerate(optimizer.variables) if v is inner_rate)
        backbone = self.encoder.model.trainable_variables
        group_of = np.array(partition([v.path for v in backbone], self.groups, True))
        count, probe = len(backbone), kind == "probe"
        warmup, shape = self.settings.warmup, self.settings.schedule

        def loss(
            values: list, state: list, batch: dict, terms: Terms
        ) -> tuple[Any, list]:
            logits, state = self._logits(values, state, batch, True, probe)
            nll = negative_log_likelihood(logits, batch)
            total = jnp.sum(nll * batch["weights"]) / jnp.sum(batch["weights"])
            if (penalty := terms.penalty) is not None:
                total += penalty(values[: len(penalty.anchor)])
            if terms.distillation is not None:
                total += terms.distillation(
                    logits[:-1], batch["teacher"], batch["weights"]
                )
            return total, state

        def call(
            values: list,
            state: list,
            optimizer_state: list,
            batches: dict,
            steps: Any,
            done: Any,
            total: Any,
            peak: Any,
            terms: Terms,
        ) -> tuple[list, list, list, Any]:
            def step(i: Any, carry: tuple) -> tuple:
                values, state, optimizer_state, _ = carry
                batch = jax.tree.map(lambda x: x[i], batches)
                (value, state), gradients = jax.value_and_grad(loss, has_aux=True)(
                    values, state, batch, terms
                )
                optimizer_state = list(optimizer_state)
                now = peak * schedule(done + i, total, warmup, shape)
                optimizer_state[rate] = now
                if (pull := terms.pull) is not None:
                    share = (done + i + 1) / total
                    optimizer_state[rate] = now * pull.weight(share)
                stepped, optimizer_state = optimizer.stateless_apply(
                    optimizer_state, gradients, values
                )
                stepped = list(stepped)
                if pull is not None:
                    rates = now * optimizer_state[0][group_of]
                    stepped[:count] = pull(
                        stepped[:count], values[:count], list(rates), share
                    )
                if probe:
                    stepped[:count] = values[:count]
                return stepped, list(state), list(optimizer_state), value

            # A loop of a length known only when it runs: the last call of a bucket is
            # shorter, and must not be another program.
            start = (values, state, optimizer_state, jnp.float32(0))
            return jax.lax.fori_loop(0, steps, step, start)

        return call

    def _optimizer(self, classes: Classes) -> LayerwiseOptimizer:
        if classes not in self._optimizers:
            settings = self.settings
            inner = (
                keras.optimizers.AdamW(1.0, weight_decay=settings.weight_decay)
                if settings.optimizer == "adamw"
                else keras.optimizers.Adam(1.0)
            )
            variables = list(self.encoder.model.trainable_variables)
            for count in classes:
                head = keras.layers.Dense(count, name="head")
                head.build((None, self.encoder.width))
                variables += head.trainable_variables
            optimizer = LayerwiseOptimizer(inner, self.groups)
            optimizer.build(variables)
            self._optimizers[classes] = optimizer
        return self._optimizers[classes]


def placement(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Returns how weights and a batch lie on the devices, as shardings of JAX.

    Under `keras.distribution.DataParallel` every device holds all weights and its share
    of the rows, or all of them if their number cannot be divided by that of devices.
    Without a distribution it is (None, None), one device.

    Args:
        shape: Of the token ids, [(steps per call,) batch, length].

    Raises:
        ValueError: If Keras is set to another distribution.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None, None
    if not isinstance(distribution, keras.distribution.DataParallel):
        raise ValueError(
            "Training runs on one device or under keras.distribution.DataParallel; set "
            f"no other distribution. Received: {type(distribution).__name__}"
        )
    mesh = distribution.device_mesh.backend_mesh
    whole = NamedSharding(mesh, PartitionSpec())
    if shape[-2] % mesh.size:
        return whole, whole
    axes = [None] * (len(shape) - 2)
    return whole, NamedSharding(mesh, PartitionSpec(*axes, distribution.batch_dim_name))


def split(values: list, count: int) -> tuple[list, list[list]]:
    """Returns the first weights, and kernel and bias of each head behind them."""
    rest = values[count:]
    return values[:count], [rest[i : i + 2] for i in range(0, len(rest), 2)]


def schedule(step: Any, total: Any, warmup: float, kind: str) -> Any:
    """Returns the factor of the learning rate at a step, in [0, 1].

    With w = warmup * total: (step + 1) / w while step < w, then 1 for `constant` or
    (1 + cos(pi (step - w) / (total - w))) / 2 for `cosine` (arXiv 1608.03983,
    equation 5, without restarts).

    Args:
        step: Steps done, from 0.
        total: Steps in all.
        warmup: Share of the steps in which the rate rises.
        kind: `"cosine"` or `"constant"`.
    """
    rise = warmup * total
    fall = (step - rise) / jnp.maximum(total - rise, 1)
    after = 0.5 * (1 + jnp.cos(jnp.pi * fall)) if kind == "cosine" else 1.0
    return jnp.where(
        step < rise, jnp.minimum((step + 1) / jnp.maximum(rise, 1), 1), after
    )
