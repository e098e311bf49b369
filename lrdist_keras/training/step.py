"""The training step, the evaluation, gradient and Fisher: pure, of named states."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrdist_keras.groups import Groups, partition
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.models.precision import in_precision
from lrdist_keras.settings import Fault, TrainingSettings
from lrdist_keras.training.carried_moments import bias_correction
from lrdist_keras.training.compiler import Donated
from lrdist_keras.training.optimizers import Optimizers, OptimizerState
from lrdist_keras.training.penalties import squared_gradients
from lrdist_keras.training.plan import Terms
from lrdist_keras.training.schedule import schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState(Donated):
    """What a training step changes.

    Args:
        weights: The encoder's, in the order of `Encoder.weights`; its token embeddings
            may hold some of their rows only.
        heads: Kernel, shape [width, classes], and bias, shape [classes], of each head
            that is trained.
        model_state: The encoder's other variables, which are seeds of dropout.
        optimizer: The optimizer's state for the weights, then for the heads.
    """

    weights: list[Any]
    heads: list[list[Any]]
    model_state: list[Any]
    optimizer: OptimizerState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightSum(Donated):
    """A Fisher or gradient on its way: a sum over examples, one array per weight."""

    total: list[Any]


class Clock(NamedTuple):
    """Where in a training some steps are.

    Args:
        steps: How many to do, int32; at most as many as there are batches.
        done: Steps of this training done before, float32.
        total: Its steps in all, float32.
        peak: The largest learning rate of a group at the top of the schedule, float32.
    """

    steps: Any
    done: Any
    total: Any
    peak: Any


class Step:
    """The functions of one encoder that are compiled, see `Compiler`.

    All that may differ from run to run is an argument: weights, rates, strengths, the
    place in the schedule. So one program serves many runs, and `jax.vmap` over states
    and clocks does several at once.

    Args:
        encoder: The pretrained encoder.
        settings: How each task is trained.
        groups: Groups of the optimizer.
        compat: Faults to reproduce, see `lrdist_keras.config.Configuration`.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: TrainingSettings,
        groups: Groups,
        compat: Collection[Fault] = (),
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.groups = groups
        self.compat = compat
        self._softmax_first = "softmax_before_loss" in compat
        self.optimizers = Optimizers(encoder, settings, groups)
        paths = [v.path for v in encoder.model.trainable_variables]
        self.group_of = np.array(partition(paths, groups, True))
        precisions = {
            "train_steps": encoder.precision,
            "probe_steps": encoder.precision,
            "evaluate": encoder.precision,
            "fisher": "float32",
            "gradient": "float32",
        }
        for name, precision in precisions.items():
            setattr(self, name, in_precision(getattr(self, name), precision))

    def begin(
        self,
        weights: Sequence[Any],
        heads: Sequence[Sequence[Any]],
        model_state: Sequence[Any],
        multipliers: Mapping[str, float],
    ) -> TrainState:
        """Returns the state before the first step, with moments of zero.

        Args:
            weights: The encoder's; none where batches hold features, and the heads
                alone are trained. These arrays and the next two are not copied.
            heads: Kernel and bias of each head that is trained.
            model_state: The encoder's other variables.
            multipliers: Factor of the learning rate by name of the group.
        """
        optimizer = self.optimizers.of(weights, heads)
        groups = self.groups if weights else ["head"]
        optimizer.multipliers = {name: multipliers[name] for name in groups}
        variables = [jnp.array(v.value, copy=True) for v in optimizer.variables]
        return TrainState(
            list(weights),
            [list(head) for head in heads],
            list(model_state),
            self.optimizers.state(variables),
        )

    def train_steps(
        self, state: TrainState, batches: dict[str, Any], clock: Clock, terms: Terms
    ) -> tuple[TrainState, Any]:
        """Does some steps of a training.

        Args:
            state: The model and its optimizer before them.
            batches: What `Plan` yields, arrays of shape [steps per call, batch, …].
            clock: Where in the training they are.
            terms: What the training obeys beside the labels.

        Returns:
            The state after them, and the loss of the last batch.
        """

        def step(i: Any, carry: tuple) -> tuple:
            state, _ = carry
            batch = jax.tree.map(lambda x: x[i], batches)
            gradient = jax.value_and_grad(self.loss, has_aux=True)
            (loss, model_state), gradients = gradient(
                (state.weights, state.heads), state.model_state, batch, terms
            )
            moved = self._moved(state, gradients, clock._replace(steps=i), terms)
            return replace(moved, model_state=model_state), loss

        # A loop of a length known only when it runs: the last call of a bucket is
        # shorter, and must not be another program.
        return jax.lax.fori_loop(0, clock.steps, step, (state, jnp.float32(0)))

    def probe_steps(
        self, state: TrainState, batches: dict[str, Any], clock: Clock, terms: Terms
    ) -> tuple[TrainState, Any]:
        """Does some steps on the heads alone; the encoder stays as it is.

        Batches may hold its features, see `TrainingSet`, and the state no weights then.
        See `train_steps` for the arguments and what is returned.
        """

        def step(i: Any, carry: tuple) -> tuple:
            state, _ = carry
            batch = jax.tree.map(lambda x: x[i], batches)
            gradient = jax.value_and_grad(self.probe_loss, has_aux=True)
            (loss, model_state), gradients = gradient(
                (state.weights, state.heads), state.model_state, batch, terms
            )
            moved = self._moved(state, gradients, clock._replace(steps=i), terms)
            # Decay, and moments from before, move weights without a gradient too.
            kept = replace(moved, weights=state.weights, model_state=model_state)
            return kept, loss

        return jax.lax.fori_loop(0, clock.steps, step, (state, jnp.float32(0)))

    def evaluate(
        self,
        weights: Sequence[Any],
        head: Sequence[Any],
        model_state: Sequence[Any],
        batch: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Returns logits, shape [batch, classes], and features, [batch, width].

        Args:
            weights: The encoder's.
            head: Kernel and bias.
            model_state: The encoder's other variables.
            batch: Arrays of `Encoded.arrays`.
        """
        features, _ = self.encoder.features(weights, model_state, batch, False)
        return _logits(features, head), features

    def fisher(
        self,
        so_far: WeightSum,
        weights: Sequence[Any],
        head: Sequence[Any],
        batches: dict[str, Any],
        steps: Any,
        scale: Any,
    ) -> WeightSum:
        """Adds scale * the squared gradients of these examples' labels.

        Args:
            so_far: The sum before.
            weights: The encoder's, for which the gradient is taken.
            head: Kernel and bias.
            batches: Arrays of shape [batches, examples, …].
            steps: How many of the batches count, int32.
            scale: One over the number of examples, float32.
        """

        def log_likelihood(weights: list, example: dict) -> Any:
            one = jax.tree.map(lambda x: x[None], example)
            features, _ = self.encoder.features(weights, self.encoder.state, one, False)
            scores = self._scores(_logits(features, head))
            return jax.nn.log_softmax(scores)[0, example["labels"]]

        def step(i: Any, total: list) -> list:
            batch = jax.tree.map(lambda x: x[i], batches)
            squares = squared_gradients(
                log_likelihood, list(weights), batch, batch["weights"]
            )
            return [t + scale * s for t, s in zip(total, squares, strict=True)]

        return WeightSum(jax.lax.fori_loop(0, steps, step, so_far.total))

    def gradient(
        self,
        so_far: WeightSum,
        weights: Sequence[Any],
        head: Sequence[Any],
        batches: dict[str, Any],
        steps: Any,
        scale: Any,
    ) -> WeightSum:
        """Adds scale * the gradient of the sum of these examples' -log p(label).

        See `fisher` for the arguments. As there, no dropout is applied.
        """

        def total_loss(weights: list, batch: dict) -> Any:
            state = self.encoder.state
            features, _ = self.encoder.features(weights, state, batch, False)
            scores = self._scores(_logits(features, head))
            return jnp.sum(_nll(scores, batch["labels"]) * batch["weights"])

        def step(i: Any, total: list) -> list:
            batch = jax.tree.map(lambda x: x[i], batches)
            gradients = jax.grad(total_loss)(list(weights), batch)
            return [t + scale * g for t, g in zip(total, gradients, strict=True)]

        return WeightSum(jax.lax.fori_loop(0, steps, step, so_far.total))

    def loss(
        self, model: tuple[list, list], model_state: list, batch: dict, terms: Terms
    ) -> tuple[Any, list]:
        """Returns the loss of a batch, and the new state of the encoder.

        Args:
            model: Weights and heads.
            model_state: The encoder's other variables.
            batch: Arrays of shape [batch, …].
            terms: What it has beside the mean of -log p(label).
        """
        weights, heads = model
        if terms.frozen is not None:
            groups = [list(self.groups)[i] for i in self.group_of]
            weights = terms.frozen.stopped(weights, groups)
        features, new = self.encoder.features(weights, model_state, batch, True)
        total = self._loss_of(features, (weights, heads), batch, terms)
        if (dark_experience := terms.dark_experience) is not None:
            memory, old_heads = batch["memory"], heads[:-1]
            features, new = self.encoder.features(weights, new, memory, True)
            logits = [_logits(features, head) for head in old_heads]
            scores = [self._scores(of_head) for of_head in logits]
            nll = negative_log_likelihood(scores, memory)
            total += dark_experience(logits, nll, memory)
        return total, new

    def probe_loss(
        self, model: tuple[list, list], model_state: list, batch: dict, terms: Terms
    ) -> tuple[Any, list]:
        """Returns the same as `loss`, without a gradient for the encoder."""
        if "features" in batch:
            return self._loss_of(batch["features"], model, batch, terms), model_state
        weights, heads = model
        features, new = self.encoder.features(weights, model_state, batch, True)
        features = jax.lax.stop_gradient(features)
        return self._loss_of(features, model, batch, terms), new

    def _loss_of(
        self, features: Any, model: tuple[list, list], batch: dict, terms: Terms
    ) -> Any:
        weights, heads = model
        logits = [_logits(features, head) for head in heads]
        scores = [self._scores(of_head) for of_head in logits]
        nll = negative_log_likelihood(scores, batch)
        total = jnp.sum(nll * batch["weights"]) / jnp.sum(batch["weights"])
        if (penalty := terms.penalty) is not None:
            total += penalty([*weights, *_flat(heads)][: len(penalty.anchor)])
        if terms.distillation is not None:
            total += terms.distillation(logits[:-1], batch["teacher"], batch["weights"])
        return total

    def _scores(self, logits: Any) -> Any:
        """Returns what the likelihood takes for logits.

        Under the fault `softmax_before_loss` that is their softmax, in every training
        that has labels and in the Fisher of the model that is so fitted. The likeliest
        class stays the same.
        """
        return jax.nn.softmax(logits) if self._softmax_first else logits

    def _moved(
        self, state: TrainState, gradients: tuple, clock: Clock, terms: Terms
    ) -> TrainState:
        """Returns the state after an update; `clock.steps` is its place in the call."""
        settings = self.settings
        optimizer = self.optimizers.of(state.weights, state.heads)
        values, count = [*state.weights, *_flat(state.heads)], len(state.weights)
        step, (weight_gradients, head_gradients) = clock.done + clock.steps, gradients
        factor = schedule(step, clock.total, settings.warmup, settings.schedule)
        rate = now = clock.peak * factor
        share = (step + 1) / clock.total
        if (pull := terms.pull) is not None:
            rate = now * pull.weight(share)
        before = replace(state.optimizer, learning_rate=rate)
        stepped, variables = optimizer.stateless_apply(
            before.variables, [*weight_gradients, *_flat(head_gradients)], values
        )
        weights, heads = list(stepped[:count]), list(stepped[count:])
        if pull is not None:
            rates = now * before.multipliers[self.group_of]
            weights = pull(weights, state.weights, list(rates), share)
        if (head_steps := terms.head_steps) is not None:
            inner: Any = optimizer.inner_optimizer
            betas = inner.beta_1, inner.beta_2
            own = bias_correction(head_steps + step + 1, *betas)
            scale = own / bias_correction(before.iterations + 1, *betas)
            heads = [
                old + scale[k // 2] * (new - old)
                for k, (old, new) in enumerate(zip(values[count:], heads, strict=True))
            ]
        pairs = [heads[k : k + 2] for k in range(0, len(heads), 2)]
        new = self.optimizers.state(variables)
        return TrainState(weights, pairs, state.model_state, new)


def negative_log_likelihood(logits: Sequence[Any], batch: dict[str, Any]) -> Any:
    """Returns -log p(label) of each example by the head it belongs to, [examples].

    Args:
        logits: Each active head's logits for all examples, [examples, classes].
        batch: `labels`, and `head` where several are active; otherwise it is the last.
    """
    if "head" not in batch:
        return _nll(logits[-1], batch["labels"])
    total = jnp.zeros(batch["labels"].shape)
    for i, of_head in enumerate(logits):
        mine = batch["head"] == i
        # Another head may have more classes than this one.
        total += jnp.where(mine, _nll(of_head, jnp.where(mine, batch["labels"], 0)), 0)
    return total


def _nll(logits: Any, labels: Any) -> Any:
    scores, places = jax.nn.log_softmax(logits), jnp.arange(len(labels))
    return -scores.at[places, labels].get(unique_indices=True)


def _logits(features: Any, head: Sequence[Any]) -> Any:
    kernel, bias = head
    # The highest precision keeps a head of many classes in float32, too.
    return jnp.matmul(features, kernel, precision="highest") + bias


def _flat(heads: Sequence[Sequence[Any]]) -> list[Any]:
    return [array for head in heads for array in head]
