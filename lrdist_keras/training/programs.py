"""The compiled programs of training, evaluation and the Fisher, once each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lrdist_keras.config import Fault, TrainingSettings
from lrdist_keras.groups import Groups, partition
from lrdist_keras.models.bfloat16 import in_precision
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.optimizer import LayerwiseOptimizer
from lrdist_keras.training.moments import Places, bias_correction
from lrdist_keras.training.penalties import squared_gradients
from lrdist_keras.training.strategies import Terms, negative_log_likelihood

Classes = tuple[int, ...]

_CORES = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
)
_COMPILERS = min(8, _CORES)  # programs compiled at a time

# Memory mappings that a process may have before it drops programs. Linux allows 65,530
# unless told otherwise; XLA makes some 500 for a program on the CPU, each kernel's own,
# and holds 30 to 50 MB beside them.
_MAPPINGS = 40_000


class Programs:
    """Compiles programs at their first use, or before it in the background.

    There is one per (kind, classes of the active heads, bucket, rows of the token
    embeddings that are held): learning rates, the
    position in the schedule, multipliers, strengths and weights are its arguments.
    The weights that they take are those of the encoder, then kernel and bias of each
    active head. Of very many programs, those not used for longest are dropped, to come
    from JAX's cache when they are needed again, where that is on.

    Args:
        encoder: The pretrained encoder.
        settings: How each task is trained.
        groups: Groups of the optimizer.
        compat: Faults to reproduce, see `lrdist_keras.config.Configuration`.
        beside: Programs of another encoder in the same process; the ones not used for
            longest are dropped of both.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: TrainingSettings,
        groups: Groups,
        compat: Collection[Fault] = (),
        beside: Programs | None = None,
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.groups = groups
        self._softmax_first = "softmax_before_loss" in compat
        self.seconds = 0.0  # that the calling thread traced or waited
        self.compilations = 0
        # The last used is the last.
        self._compiled: dict[tuple, Callable[..., Any]] = (
            {} if beside is None else beside._compiled
        )
        self._coming: dict[tuple, Future[Callable[..., Any]]] = {}
        self._compilers = ThreadPoolExecutor(_COMPILERS)
        self._optimizers: dict[tuple[Classes, int | None], LayerwiseOptimizer] = {}

    def evaluate(self, classes: Classes, values: list, inputs: dict) -> Any:
        """Returns the logits of the one active head, and the features it sees.

        Of shape [batch, classes] and [batch, width].
        """
        arguments = (values, self.encoder.state, inputs)
        return self._program("evaluate", classes, None, arguments)(*arguments)

    def fisher(
        self,
        classes: Classes,
        rows: int | None,
        total: list,
        values: list,
        inputs: dict,
        steps: int,
        scale: float,
    ) -> list:
        """Returns `total` + scale * the squared gradients of these examples' labels.

        Args:
            classes: Of the head.
            rows: Of the token embeddings among the weights; None for all.
            total: Sums so far, which are given away.
            values: Weights of the encoder and of the head.
            inputs: Batches of shape [batches, examples, …].
            steps: How many of them to do.
            scale: A factor.
        """
        arguments = (total, values, inputs, np.int32(steps), np.float32(scale))
        return self._program("fisher", classes, rows, arguments)(*arguments)

    def training(
        self, kind: str, classes: Classes, rows: int | None, arguments: tuple
    ) -> Callable[..., Any]:
        """Returns the program of some steps, ready to be called with the arguments.

        Args:
            kind: Of the step: `probe` moves the heads alone; the others are names for
                which `Terms` are given.
            classes: Of the active heads.
            rows: Of the token embeddings among the weights; None for all.
            arguments: Weights, state of the model, state of the optimizer (all three
                are given away), batches of shape [steps per call, batch, …], how many
                of them to do, steps done before, steps in all, largest learning rate,
                and `Terms`. It returns the first three, and the last loss.
        """
        return self._program(kind, classes, rows, arguments)

    def optimizer_state(
        self, classes: Classes, rows: int | None, multipliers: Mapping[str, float]
    ) -> list[Any]:
        """Returns fresh moments, and these multipliers."""
        optimizer = self._optimizer(classes, rows)
        optimizer.multipliers = {name: multipliers[name] for name in self.groups}
        return [jnp.array(v.value, copy=True) for v in optimizer.variables]

    def places(self, classes: Classes, rows: int | None) -> Places:
        """Returns where Adam's state stands in that of the optimizer."""
        optimizer = self._optimizer(classes, rows)
        index = {id(v): i for i, v in enumerate(optimizer.variables)}
        inner: Any = optimizer.inner_optimizer
        pairs = zip(inner._momentums, inner._velocities, strict=True)
        moments = [(index[id(m)], index[id(v)]) for m, v in pairs]
        return Places(index[id(inner.iterations)], moments)

    def cancel(self) -> None:
        """Gives up what failed, or is not yet being compiled."""
        for key, coming in list(self._coming.items()):
            if coming.cancel() or _failed(coming):
                self._forget(key)

    def _program(
        self, kind: str, classes: Classes, rows: int | None, arguments: tuple
    ) -> Callable[..., Any]:
        key = self._key(kind, classes, rows, arguments)
        if key not in self._compiled:
            self.begin(kind, classes, rows, arguments)
            start = time.perf_counter()
            # Still in its place if the wait is interrupted, for `cancel` to find.
            self._compiled[key] = self._coming[key].result()
            del self._coming[key]
            self._make_room()
            self.seconds += time.perf_counter() - start
        self._touch(key)
        return self._compiled[key]

    def _touch(self, key: tuple) -> None:
        self._compiled[key] = self._compiled.pop(key)

    def _make_room(self) -> None:
        before = _mappings()
        while len(self._compiled) > 1 and before > _MAPPINGS:
            del self._compiled[next(iter(self._compiled))]
            now = _mappings()
            if now >= before:  # it is not programs that have them
                break
            before = now

    def begin(
        self, kind: str, classes: Classes, rows: int | None, arguments: tuple
    ) -> None:
        """Traces a program here, and has other threads compile it, if none has yet.

        Args:
            kind: `evaluate`, `fisher`, or of a training step.
            classes: Of the active heads.
            rows: Of the token embeddings among the weights; None for all.
            arguments: What it will be called with, or the like of it.
        """
        key = self._key(kind, classes, rows, arguments)
        if key in self._coming and _failed(self._coming[key]):
            self._forget(key)
        if key in self._compiled:
            self._touch(key)
        elif key not in self._coming:
            start = time.perf_counter()
            shape = key[-1]
            lowered = self.jitted(kind, classes, shape, rows).lower(*arguments)
            self._coming[key] = self._compilers.submit(lowered.compile)
            self.seconds += time.perf_counter() - start
            self.compilations += 1

    def _forget(self, key: tuple) -> None:
        del self._coming[key]
        self.compilations -= 1

    def _key(
        self, kind: str, classes: Classes, rows: int | None, arguments: tuple
    ) -> tuple:
        (inputs,) = (x for x in arguments if isinstance(x, dict))
        return kind, classes, rows, id(self.encoder), inputs["token_ids"].shape

    def jitted(
        self,
        kind: str,
        classes: Classes,
        shape: tuple[int, ...],
        rows: int | None = None,
    ) -> Any:
        """Returns the function of a program before it is compiled.

        Args:
            kind: `evaluate`, `fisher`, or of a training step.
            classes: Of the active heads.
            shape: Of the token ids, [(steps per call,) batch, length].
            rows: Of the token embeddings among the weights; None for all.
        """
        precision = self.encoder.precision
        whole, batch = placement(shape)
        if kind == "evaluate":
            call = in_precision(self._evaluation_call, precision)
            given, taken = [whole, whole, batch], []
        elif kind == "fisher":
            call = self._fisher_call
            given, taken = [whole, whole, batch, whole, whole], [0]
        else:
            call = in_precision(self._training_call(kind, classes, rows), precision)
            given, taken = [*3 * [whole], batch, *5 * [whole]], [0, 1, 2]
        return jax.jit(
            call, donate_argnums=taken, in_shardings=tuple(given), out_shardings=whole
        )

    def _logits(
        self, values: list, state: list, inputs: dict, training: bool, probe: bool
    ) -> tuple[list, list]:
        """Returns the logits of every active head, and the new state."""
        backbone, heads = split(values, len(self.encoder.weights))
        features, state = self.encoder.features(backbone, state, inputs, training)
        if probe:
            features = jax.lax.stop_gradient(features)
        return [_head(features, kernel, bias) for kernel, bias in heads], state

    def _scores(self, logits: Any) -> Any:
        """Returns what the likelihood takes for logits.

        Under the fault `softmax_before_loss` that is their softmax, in every training
        that has labels and in the Fisher of the model that is so fitted. The likeliest
        class stays the same.
        """
        return jax.nn.softmax(logits) if self._softmax_first else logits

    def _evaluation_call(self, values: list, state: list, inputs: dict) -> Any:
        backbone, ((kernel, bias),) = split(values, len(self.encoder.weights))
        features, _ = self.encoder.features(backbone, state, inputs, training=False)
        return _head(features, kernel, bias), features

    def _fisher_call(
        self, total: list, values: list, inputs: dict, steps: Any, scale: Any
    ) -> list:
        weights, head = values[: len(total)], values[len(total) :]

        def log_likelihood(weights: list, example: dict) -> Any:
            one = jax.tree.map(lambda x: x[None], example)
            (logits,), _ = self._logits(
                [*weights, *head], self.encoder.state, one, training=False, probe=False
            )
            return jax.nn.log_softmax(self._scores(logits))[0, example["labels"]]

        def step(i: Any, total: list) -> list:
            batch = jax.tree.map(lambda x: x[i], inputs)
            squares = squared_gradients(
                log_likelihood, weights, batch, batch["weights"]
            )
            return [t + scale * s for t, s in zip(total, squares, strict=True)]

        return jax.lax.fori_loop(0, steps, step, total)

    def _training_call(
        self, kind: str, classes: Classes, rows: int | None
    ) -> Callable[..., Any]:
        optimizer = self._optimizer(classes, rows)
        inner_rate = optimizer.inner_optimizer._learning_rate
        rate = next(i for i, v in enumerate(optimizer.variables) if v is inner_rate)
        backbone = self.encoder.model.trainable_variables
        group_of = np.array(partition([v.path for v in backbone], self.groups, True))
        count, probe = len(backbone), kind == "probe"
        warmup, shape = self.settings.warmup, self.settings.schedule
        counter = self.places(classes, rows).iterations
        inner: Any = optimizer.inner_optimizer
        betas = inner.beta_1, inner.beta_2

        def loss(
            values: list, state: list, batch: dict, terms: Terms
        ) -> tuple[Any, list]:
            logits, state = self._logits(values, state, batch, True, probe)
            scores = [self._scores(of_head) for of_head in logits]
            nll = negative_log_likelihood(scores, batch)
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
                shared = optimizer_state[counter] + 1
                stepped, optimizer_state = optimizer.stateless_apply(
                    optimizer_state, gradients, values
                )
                stepped = list(stepped)
                if pull is not None:
                    rates = now * optimizer_state[0][group_of]
                    stepped[:count] = pull(
                        stepped[:count], values[:count], list(rates), share
                    )
                if (head_steps := terms.head_steps) is not None:
                    own = bias_correction(head_steps + done + i + 1, *betas)
                    scale = own / bias_correction(shared, *betas)
                    for k in range(count, len(values)):
                        factor = scale[(k - count) // 2]
                        stepped[k] = values[k] + factor * (stepped[k] - values[k])
                if probe:
                    stepped[:count] = values[:count]
                return stepped, list(state), list(optimizer_state), value

            # A loop of a length known only when it runs: the last call of a bucket is
            # shorter, and must not be another program.
            start = (values, state, optimizer_state, jnp.float32(0))
            return jax.lax.fori_loop(0, steps, step, start)

        return call

    def _optimizer(self, classes: Classes, rows: int | None) -> LayerwiseOptimizer:
        if (classes, rows) not in self._optimizers:
            settings = self.settings
            inner = (
                keras.optimizers.AdamW(1.0, weight_decay=settings.weight_decay)
                if settings.optimizer == "adamw"
                else keras.optimizers.Adam(1.0)
            )
            variables = list(self.encoder.model.trainable_variables)
            if rows is not None and (i := self.encoder.token_embedding) is not None:
                variables[i] = _variable(variables[i].path, (rows, self.encoder.width))
            for count in classes:
                variables.append(_variable("head/kernel", (self.encoder.width, count)))
                variables.append(_variable("head/bias", (count,)))
            optimizer = LayerwiseOptimizer(inner, self.groups)
            optimizer.build(variables)
            self._optimizers[classes, rows] = optimizer
        return self._optimizers[classes, rows]


def _mappings() -> int:
    """Returns the memory mappings of this process; 0 where it is not told."""
    path = Path("/proc/self/maps")  # only Linux has it
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _failed(coming: Future) -> bool:
    return coming.done() and coming.exception() is not None


def _head(features: Any, kernel: Any, bias: Any) -> Any:
    # The highest precision keeps a head of many classes in float32, too.
    return jnp.matmul(features, kernel, precision="highest") + bias


def _variable(path: str, shape: tuple[int, ...]) -> keras.Variable:
    """Returns a variable of zeros that stands for what is not in the model."""
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.zeros(shape, np.float32), name=name)


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
