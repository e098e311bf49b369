"""The step: named state, its own losses, and what it does under `vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from trainer_cases import data

from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.optimizers import OptimizerState
from lrdist_keras.training.plan import Terms
from lrdist_keras.training.step import Clock, negative_log_likelihood
from lrdist_keras.training.trainer import SequentialTrainer


def test_each_example_is_judged_by_its_own_head():
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(4, 2)), rng.normal(size=(4, 3))]
    head, labels = np.array([1, 0, 1, 0]), np.array([2, 1, 0, 0])
    found = negative_log_likelihood(logits, {"labels": labels, "head": head})
    expected = [
        -log_softmax(logits[h][i])[y]
        for i, (h, y) in enumerate(zip(head, labels, strict=True))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    alone = negative_log_likelihood(logits, {"labels": labels})
    expected = [-log_softmax(logits[1][i])[y] for i, y in enumerate(labels)]
    np.testing.assert_allclose(alone, expected, rtol=1e-6)


def test_adams_state_is_that_of_the_optimizer_by_name():
    variables = [np.full(2, 1.0), np.int32(4), np.float32(0.5), "m0", "v0", "m1", "v1"]
    state = OptimizerState.of(variables)
    assert state.iterations == 4 and state.learning_rate == 0.5
    assert (state.first, state.second) == (["m0", "m1"], ["v0", "v1"])
    assert state.variables[3:] == variables[3:]
    assert state.variables[1:3] == variables[1:3]


@pytest.mark.parametrize("moments", [["m0", "m1"], []], ids=["momentum", "without"])
def test_the_state_of_sgd_has_one_moment_or_none(moments):
    variables = [np.full(2, 1.0), np.int32(4), np.float32(0.5), *moments]
    state = OptimizerState.of(variables, is_adam=False)
    assert (state.first, state.second) == (moments, [])
    assert state.variables[3:] == moments and state.variables[1:3] == variables[1:3]


@pytest.fixture(scope="module")
def trainer(tiny_preset):
    settings = TrainingSettings(batch_size=4, max_length=16, steps_per_call=3)
    return SequentialTrainer(load_encoder(str(tiny_preset)), settings)


@pytest.fixture(scope="module")
def batches():
    examples = data(0, count=12, shortest=4, longest=14)
    return examples.arrays(np.arange(12).reshape(3, 4), 16)


def begin(trainer):
    encoder, names = trainer.encoder, trainer.groups
    heads = [new_head(2, encoder.width, np.random.default_rng(i)) for i in range(2)]
    multipliers = dict.fromkeys(names, 1.0)
    return trainer.step.begin(encoder.weights, heads, encoder.state, multipliers)


def clock(steps, done=0, peak=1e-3):
    numbers = map(np.float32, (done, 10, peak))
    return Clock(np.int32(steps), *numbers)


def leaves(state):
    return jax.tree.leaves(state)


def test_three_steps_are_one_step_three_times(trainer, batches):
    whole, loss = jax.jit(trainer.step.train_steps)(
        begin(trainer), batches, clock(3), Terms()
    )
    state, one = begin(trainer), jax.jit(trainer.step.train_steps)
    for i in range(3):
        single = jax.tree.map(lambda x, i=i: np.roll(x, -i, axis=0), batches)
        state, last = one(state, single, clock(1, done=i), Terms())
    assert last == loss and state.optimizer.iterations == 3
    for a, b in zip(leaves(state), leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_probe_moves_the_active_heads_alone(trainer, batches):
    before = begin(trainer)
    after, _ = jax.jit(trainer.step.probe_steps)(before, batches, clock(3), Terms())
    for a, b in zip(after.weights, before.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(after.heads[1][0], before.heads[1][0])


def test_several_states_and_rates_go_together_under_vmap(trainer, batches):
    rates = [1e-3, 3e-3]
    alone = [
        jax.jit(trainer.step.train_steps)(
            begin(trainer), batches, clock(3, peak=rate), Terms()
        )[0]
        for rate in rates
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), begin(trainer), begin(trainer))
    clocks = clock(3)._replace(peak=np.float32(rates))
    axes = (0, None, Clock(None, None, None, 0), None)
    many = jax.jit(jax.vmap(trainer.step.train_steps, in_axes=axes))
    together, losses = many(stacked, batches, clocks, Terms())
    assert losses.shape == (2,)
    for i, state in enumerate(alone):
        for a, b in zip(leaves(together), leaves(state), strict=True):
            np.testing.assert_allclose(a[i], b, atol=3e-5)
