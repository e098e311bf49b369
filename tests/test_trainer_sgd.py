"""SGD with momentum: its formula in float64, and with every strategy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer_cases import data, same, task, trained

from lrdist_keras.data.batches import buckets, training_steps
from lrdist_keras.distribution import Distribution, flat
from lrdist_keras.errors import InputError
from lrdist_keras.groups import Scheme
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.run import Observer, Purpose, generator
from lrdist_keras.training.strategies.elastic import L2Sp, RecAdam
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.strategies.probing import Frozen
from lrdist_keras.training.trainer import SequentialTrainer

SEED = 3
SCHEME = Scheme(3, layer_groups=(1, 2))
RATES = Distribution.in_order(SCHEME, [0.2, 0.1, 0.05, 0.3])


def few(seed, count=36):
    """Short texts: many tokens do not occur in a batch."""
    return data(seed, count, shortest=3, longest=6)


TASKS = [
    task(name, i, train=few(i), validation=few(i + 50, 24))
    for i, name in enumerate("ab")
]


def settings(**update):
    return TrainingSettings(
        batch_size=8,
        max_length=8,
        steps_per_call=3,
        evaluation_batch_size=16,
        curve_points=0,
        warmup=0.2,
        optimizer="sgd",
        **update,
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT of three layers, of whose tokens the tasks use a part."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("presets") / "bert"
    backbone = keras_hub.models.BertBackbone(90, 3, 2, 8, 16, max_sequence_length=64)
    backbone.save_to_preset(str(folder))
    return load_encoder(str(folder))


@pytest.fixture(scope="module")
def gradient(encoder):
    """The gradient of the mean of -log p(label) for backbone, kernel and bias."""

    def loss(values, batch):
        *backbone, kernel, bias = values
        features, _ = encoder.features(backbone, encoder.state, batch, True)
        p = jax.nn.softmax(features @ kernel + bias)
        of_label = jnp.sum(p * jax.nn.one_hot(batch["labels"], 2), axis=1)
        weights = batch["weights"]
        return -jnp.sum(weights * jnp.log(of_label)) / jnp.sum(weights)

    return jax.jit(jax.grad(loss))


def rate_of(path):
    """The rate of a variable by the groups of RATES."""
    if "embedding" in path:
        return 0.2
    layer = path.partition("transformer_layer_")[2][:1]
    return {"0": 0.1, "1": 0.05, "2": 0.05}[layer]


def factor(step, total):
    """Warm-up over a fifth of the steps, then a cosine."""
    rise = 0.2 * total
    if step < rise:
        return min((step + 1) / rise, 1)
    return (1 + np.cos(np.pi * (step - rise) / (total - rise))) / 2


def by_hand(encoder, gradient, momentum, strategy):
    """Trains in float64 on consecutive rows; returns all weights after each task.

    v <- momentum v - rate g, w <- w + v, where v is 0 before each task.
    """
    weights = [np.asarray(w, float) for w in encoder.weights]
    rates = [rate_of(v.path) for v in encoder.model.trainable_variables] + [0.3, 0.3]
    found = []
    for i, one in enumerate(TASKS):
        head = new_head(2, encoder.width, generator(SEED, Purpose.HEAD, i))
        values = [*weights, *(np.asarray(w, float) for w in head)]
        before, velocity = values, [np.zeros(w.shape) for w in values]
        batches = 2 * list(range(0, 36, 8))
        for t, start in enumerate(batches):
            rows = np.arange(start, start + 8)
            batch = one.train.arrays(np.where(rows < 36, rows, -1), 8)
            g = gradient([w.astype(np.float32) for w in values], batch)
            g, lam, pull = [np.asarray(x, float) for x in g], 1.0, 0.0
            if isinstance(strategy, L2Sp):
                anchors = [*encoder.weights, np.zeros((8, 2)), np.zeros(2)]
                alphas = [strategy.strength] * len(weights)
                alphas += [strategy.head_strength] * 2
                terms = zip(g, alphas, values, anchors, strict=True)
                g = [x + alpha * (w - a) for x, alpha, w, a in terms]
            if isinstance(strategy, RecAdam):
                share = (t + 1) / len(batches)
                lam = strategy.steepness * (share - strategy.midpoint)
                lam = 1 / (1 + np.exp(-lam))
                pull = (1 - lam) * strategy.strength
            now = [rate * factor(t, len(batches)) for rate in rates]
            terms = zip(velocity, now, g, strict=True)
            velocity = [momentum * v - lam * rate * x for v, rate, x in terms]
            pulls = [pull] * len(weights) + [0.0, 0.0]
            terms = zip(values, velocity, pulls, now, before, strict=True)
            values = [w + v - p * rate * (w - b) for w, v, p, rate, b in terms]
        weights = values[:-2]
        found.append(values)
    return found


@pytest.mark.parametrize(
    "momentum, strategy",
    [
        (0.9, Plain()),
        (0.0, Plain()),
        (0.5, L2Sp(strength=0.3, head_strength=0.2)),
        (0.5, RecAdam(strength=2.0, midpoint=0.4, steepness=5.0)),
    ],
    ids=["momentum 0.9", "no momentum", "L2-SP", "RecAdam"],
)
def test_two_tasks_end_at_the_weights_of_a_loop_by_hand(
    encoder, gradient, momentum, strategy
):
    trainer = SequentialTrainer(
        encoder, settings(momentum=momentum), SCHEME, ["no_shuffling"]
    )
    after_a, after_b = trained(trainer, TASKS, RATES, strategy, seed=SEED)
    found = [after_a[:-2], [*after_b[:-4], *after_b[-2:]]]
    expected = by_hand(encoder, gradient, momentum, strategy)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)
    moved = np.abs(found[1][0] - encoder.weights[0]).max(axis=1)
    # Of the tokens of the tasks alone, 0 (padding) and 2 to 29; L2-SP is at its anchor.
    assert moved.max() > 1e-2 and not moved[30:].any()


def test_a_linear_probe_is_a_logistic_regression_on_frozen_features(encoder):
    """In NumPy and float64 alone, in the shuffled order of the run."""
    trainer = SequentialTrainer(encoder, settings(momentum=0.8), SCHEME)
    train = TASKS[0].train
    found, _ = trained(trainer, TASKS, RATES, Frozen(), seed=SEED)
    for a, b in zip(found[:-4], encoder.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    identity = [np.eye(8, dtype=np.float32), np.zeros(8, np.float32)]
    features = trainer.evaluate(train, encoder.weights, identity)
    x = np.concatenate([features, np.ones((len(train), 1))], 1).astype(np.float64)
    kernel, bias = new_head(2, 8, generator(SEED, Purpose.HEAD, 0))
    w = np.concatenate([kernel, bias[None]]).astype(np.float64)
    rng = generator(SEED, Purpose.ORDER, 0)
    plans = [training_steps(train, buckets(8), 8, 3, rng) for _ in range(2)]
    batches = [row for plan in plans for call in plan for row in call.indices]
    v = np.zeros_like(w)
    for t, rows in enumerate(batches):
        rows = rows[rows >= 0]
        p = np.exp(x[rows] @ w)
        p /= p.sum(1, keepdims=True)
        g = x[rows].T @ (p - np.eye(2)[train.labels[rows]]) / len(rows)
        v = 0.8 * v - 0.3 * factor(t, len(batches)) * g
        w = w + v
    np.testing.assert_allclose(found[-4], w[:-1], atol=2e-6)
    np.testing.assert_allclose(found[-3], w[-1], atol=2e-6)


@pytest.fixture(scope="module")
def trainer(encoder):
    return SequentialTrainer(encoder, settings(), SCHEME)


def of(strategy, **given):
    return STRATEGIES[strategy](**given)


@pytest.fixture(scope="module")
def plain(trainer):
    return trainer.run(TASKS, RATES, Plain(), seed=0)


@pytest.mark.parametrize(
    "strategy, given",
    [
        ("ewc", {"strength": 0.0}),
        ("lwf", {"strength": 0.0}),
        ("recadam", {"strength": 3.0, "midpoint": 0.0, "steepness": 1e6}),
        ("wise_ft", {"alpha": 1.0}),
    ],
    ids=["ewc", "lwf", "recadam", "wise_ft"],
)
def test_a_strategy_without_strength_is_flat_bit_for_bit(
    trainer, plain, strategy, given
):
    """Among them some that hold all rows of the embeddings: plain training does not."""
    assert same(plain, trainer.run(TASKS, RATES, of(strategy, **given), seed=0))


@pytest.mark.parametrize(
    "strategy, given",
    [
        ("frozen", {}),
        ("lp_ft", {"probe_rate": 0.1}),
        ("ewc", {"strength": 5.0}),
        ("ewc_online", {"strength": 5.0}),
        ("l2_sp", {"strength": 0.5}),
        ("recadam", {"strength": 3.0}),
        ("replay", {"share": 0.2}),
        ("lwf", {}),
        ("wise_ft", {}),
        ("sfa", {}),
        ("lora", {"rank": 2}),
        ("joint", {}),
        ("single", {}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_strategy_trains(trainer, plain, strategy, given):
    steps, chosen = [], of(strategy, **given)
    run = trainer.run(TASKS, RATES, chosen, seed=0, observer=Observer(steps.append))
    assert not run.diverged and np.isfinite(run.accuracy[1]).all()
    assert not same(plain, run)
    assert sum(steps) == trainer.steps(TASKS, strategy=chosen)


def test_a_lora_moves_query_and_value_alone(trainer):
    (after,) = trained(trainer, TASKS[:1], RATES, of("lora", rank=2))
    for v, old, new in zip(
        trainer.encoder.model.trainable_variables,
        trainer.encoder.weights,
        after[:-2],
        strict=True,
    ):
        adapted = v.path.endswith(("query/kernel", "value/kernel"))
        assert np.array_equal(old, new) != adapted, v.path


def test_a_rate_that_is_far_too_large_diverges(trainer):
    run = trainer.run(TASKS, flat(1e30, SCHEME), Plain(), seed=0)
    assert run.diverged


def test_what_a_trainer_refuses(encoder):
    with pytest.raises(InputError, match="`carry_moments` is of Adam's moments"):
        SequentialTrainer(encoder, settings(), compat=["carry_moments"])
    with pytest.raises(InputError, match="the 3 transformer layers.*add up to 12"):
        SequentialTrainer(encoder, settings(), Scheme(12, layer_groups=(1, 2, 9)))
    with pytest.raises(InputError, match="as the encoder has, 3. Received: 12/8/floor"):
        SequentialTrainer(encoder, settings(), Scheme(12))
