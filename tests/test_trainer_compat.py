"""The faults of the authors' code that are reproduced in training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer_cases import data, same, task, trained

from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.run import Purpose, generator
from lrdist_keras.training.strategies.lora import Lora
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.strategies.probing import LpFt
from lrdist_keras.training.trainer import SequentialTrainer

PLAIN = Plain()
TASKS = [task("a", 0), task("b", 1)]
SEED = 3
SETTINGS = TrainingSettings(
    batch_size=8,
    max_length=32,
    steps_per_call=3,
    evaluation_batch_size=16,
    curve_points=0,
    warmup=0.0,
    schedule="constant",
)


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_encoder(str(tiny_preset))


@pytest.fixture(scope="module")
def trainer(encoder):
    """Returns the trainer with some faults, always the same one."""

    @functools.cache
    def trainer(*faults):
        return SequentialTrainer(encoder, SETTINGS, compat=faults)

    return trainer


@pytest.fixture(scope="module")
def gradient(encoder):
    """Gradients of the loss of a batch, compiled with or without the second softmax."""

    def loss(values, batch, twice):
        *backbone, kernel, bias = values
        features, _ = encoder.features(backbone, encoder.state, batch, True)
        p = jax.nn.softmax(features @ kernel + bias)
        if twice:
            p = jax.nn.softmax(p)
        of_label = jnp.sum(p * jax.nn.one_hot(batch["labels"], p.shape[1]), axis=1)
        weights = batch["weights"]
        return -jnp.sum(weights * jnp.log(of_label)) / jnp.sum(weights)

    return jax.jit(jax.grad(loss), static_argnums=2)


class Adam:
    """Adam on one variable with a step count of its own, as PyTorch has it."""

    def __init__(self):
        self.m = self.v = 0.0
        self.t = 0

    def step(self, weight, g):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        correction = np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        return weight - 1e-3 * correction * self.m / (np.sqrt(self.v) + 1e-7)


def by_hand(encoder, gradient, *faults):
    """Trains on consecutive rows; returns the weights and the active head per task."""
    weights = [np.asarray(w, float) for w in encoder.weights]
    optimizers = [Adam() for _ in weights]
    found = []
    for i, one in enumerate(TASKS):
        head = new_head(2, encoder.width, generator(SEED, Purpose.HEAD, i))
        values = [*weights, *(np.asarray(w, float) for w in head)]
        if "carry_moments" not in faults:
            optimizers = [Adam() for _ in weights]
        both = [*optimizers, Adam(), Adam()]
        for start in 2 * list(range(0, 36, 8)):
            rows = np.arange(start, start + 8)
            batch = one.train.arrays(np.where(rows < 36, rows, -1), 32)
            now = [w.astype(np.float32) for w in values]
            g = gradient(now, batch, "softmax_before_loss" in faults)
            g = [np.asarray(x, float) for x in g]
            values = [a.step(w, x) for a, w, x in zip(both, values, g, strict=True)]
        weights = values[:-2]
        found.append(values)
    return found


def difference(encoder, one, other):
    """The largest difference, without key biases: their gradient is zero but for
    rounding, which Adam blows up."""
    paths = [v.path for v in encoder.model.trainable_variables] + ["head", "head"]
    return max(
        np.abs(a - b).max()
        for path, a, b in zip(paths, one, other, strict=True)
        if not path.endswith("key/bias")
    )


@pytest.mark.parametrize(
    "faults",
    [["no_shuffling", "softmax_before_loss"], ["no_shuffling", "carry_moments"]],
    ids=" ".join,
)
def test_two_tasks_end_at_the_weights_of_a_loop_by_hand(
    encoder, trainer, gradient, faults
):
    rates = flat(1e-3, trainer().scheme)
    after_a, after_b = trained(trainer(*faults), TASKS, rates, PLAIN, seed=SEED)
    found = [after_a[:-2], [*after_b[:-4], *after_b[-2:]]]
    expected = by_hand(encoder, gradient, *faults)
    for one, other in zip(found, expected, strict=True):
        assert difference(encoder, one, other) < 2e-5
    # Without the second fault another place is reached. Moments go from task to task.
    others = by_hand(encoder, gradient, faults[0])
    assert difference(encoder, found[1], others[1]) > 1e-3
    same_a = difference(encoder, found[0], others[0]) < 2e-5
    assert same_a == (faults[1] == "carry_moments")


def test_the_order_is_another_where_the_fault_is_off(encoder, trainer, gradient):
    rates = flat(1e-3, trainer().scheme)
    shuffled = trained(trainer(), TASKS[:1], rates, PLAIN, seed=SEED)[0]
    assert difference(encoder, shuffled, by_hand(encoder, gradient)[0]) > 1e-4


@pytest.mark.parametrize(
    "fault, strategy",
    [
        ("carry_moments", LpFt(probe_rate=1e-3)),
        ("softmax_before_loss", Lora(rank=2)),
    ],
    ids=lambda given: given if isinstance(given, str) else given.name,
)
def test_the_faults_reach_other_trainings(trainer, fault, strategy):
    rates = flat(1e-3, trainer().scheme)
    one, other = (
        trainer(*faults).run(TASKS, rates, strategy, seed=0) for faults in ([], [fault])
    )
    assert not same(one, other)


def test_the_fisher_is_that_of_the_softmax_of_a_softmax(encoder, trainer):
    examples = data(7, count=5)
    head = new_head(2, encoder.width, np.random.default_rng(0))
    weights = [jnp.asarray(w) for w in encoder.weights]
    found = trainer("softmax_before_loss").fisher(examples, weights, head)

    def log_likelihood(weights, batch):
        features, _ = encoder.features(weights, encoder.state, batch, False)
        p = jax.nn.softmax((features @ head[0] + head[1])[0])
        return p[batch["labels"][0]] - jnp.log(jnp.sum(jnp.exp(p)))

    one = jax.jit(jax.grad(log_likelihood))
    expected = [np.zeros(w.shape) for w in weights]
    for i in range(5):
        for total, g in zip(
            expected, one(weights, examples.arrays(np.array([i]), 32)), strict=True
        ):
            total += np.asarray(g, float) ** 2 / 5
    largest = max(e.max() for e in expected)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-6 * largest)
