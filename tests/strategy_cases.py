"""What tests of strategies share: small runs, and two models by hand in float64."""

from functools import cache

import jax
import numpy as np
from trainer_cases import data, task

from lrdist_keras.data.batches import buckets, take, training_steps
from lrdist_keras.distribution import flat
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.run import Observer, Purpose, generator
from lrdist_keras.training.strategies.every import STRATEGIES

SETTINGS = TrainingSettings(
    batch_size=8,
    max_length=32,
    steps_per_call=2,
    evaluation_batch_size=16,
    curve_points=2,
    curve_examples=10,
)
RATE = 3e-3


def balanced(seed, of_each=12):
    """Two classes, as many examples of each."""
    many = data(seed, 60)
    chosen = [np.flatnonzero(many.labels == c)[:of_each] for c in (0, 1)]
    return take(many, np.sort(np.concatenate(chosen)))


TASKS = [task(name, i, train=balanced(i)) for i, name in enumerate("ab")]


def of(strategy="plain", **settings):
    """The strategy of this name, with these settings."""
    if strategy == "ewc_pretraining":
        settings["raw_text"] = "given.txt"
    return STRATEGIES[strategy](**settings)


class Runs:
    """Runs of TASKS by arm, each done once; with the weights after each task."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.rates = flat(RATE, trainer.scheme)
        self.of = cache(self._of)

    def __call__(self, strategy="plain", **settings):
        return self.of(strategy, tuple(settings.items()))

    def _of(self, strategy, settings):
        return self.run(TASKS, of(strategy, **dict(settings)))

    def run(self, tasks, strategy, seed=0):
        weights = []

        def keep(i, backbone, heads):
            weights.append([np.array(w) for w in [*backbone, *sum(heads, [])]])

        ones = [np.ones_like(w) for w in self.trainer.encoder.weights]
        strategy, observer = (
            strategy.prepared(lambda *_: ones),
            Observer(after_task=keep),
        )
        run = self.trainer.run(tasks, self.rates, strategy, seed, observer=observer)
        return run, weights

    def backbone(self, values):
        return values[: len(self.trainer.encoder.weights)]


def distance(one, two):
    pairs = zip(one, two, strict=True)
    return np.sqrt(sum(float(np.square(a - b).sum()) for a, b in pairs))


def equal(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def same_row(one, two, i):
    keys = [key for key in one.logits if key[0] == i]
    return all(np.array_equal(one.logits[key], two.logits[key]) for key in keys)


def heads_of(values, tasks):
    """Kernel and bias of each task, from the weights after a task."""
    flat = values[-2 * tasks :]
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]


def features_of(trainer, encoded, weights):
    """What a head sees of all examples, float64: the logits of an identity."""
    width = trainer.encoder.width
    identity = [np.eye(width, dtype=np.float32), np.zeros(width, np.float32)]
    return trainer.evaluate(encoded, weights, identity).astype(np.float64)


def probe_by_hand(trainer, of_task, i, weights, head):
    """A head after its probe: Adam on the features, in float64, in the run's order."""
    settings, train, (kernel, bias) = trainer.settings, of_task.train, head
    features = features_of(trainer, train, weights)
    x = np.concatenate([features, np.ones((len(train), 1))], 1)
    w = np.concatenate([kernel, bias[None]]).astype(np.float64)
    rng = generator(0, Purpose.ORDER, i)
    plans = [
        training_steps(train, buckets(32), 8, 2, rng) for _ in range(of_task.epochs)
    ]
    batches = [row for plan in plans for call in plan for row in call.indices]
    m, v, total = np.zeros_like(w), np.zeros_like(w), len(batches)
    for t, rows in enumerate(batches):
        rows = rows[rows >= 0]
        p = np.exp(x[rows] @ w)
        p /= p.sum(1, keepdims=True)
        wanted = np.eye(of_task.classes)[train.labels[rows]]
        gradient = x[rows].T @ (p - wanted) / len(rows)
        rise = settings.warmup * total
        cosine = (1 + np.cos(np.pi * (t - rise) / (total - rise))) / 2
        rate = RATE * ((t + 1) / rise if t + 1 < rise else 1 if t < rise else cosine)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        # Keras adds its epsilon to the root of v before the correction of its bias.
        correction = np.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        w -= rate * correction * m / (np.sqrt(v) + 1e-7)
    return w[:-1], w[-1]


def bert_logits(named, head, example):
    """A BERT of two layers and two heads of width 4 by hand, for one example."""
    import jax.numpy as jnp

    ids, segments, mask = (
        example[k] for k in ("token_ids", "segment_ids", "padding_mask")
    )

    def norm(x, scope):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * named[scope + "/gamma"] + named[scope + "/beta"]

    def dense(x, scope):
        return x @ named[scope + "/kernel"] + named[scope + "/bias"]

    x = named["token_embedding/embeddings"][ids]
    x = x + named["position_embedding/embeddings"][: len(ids)]
    x = x + named["segment_embedding/embeddings"][segments]
    x = norm(x, "embeddings_layer_norm")
    for i in range(2):
        layer = f"transformer_layer_{i}/"
        attention = layer + "self_attention_layer/"
        q, k, v = (
            jnp.einsum("ld,dhk->hlk", x, named[attention + n + "/kernel"])
            + named[attention + n + "/bias"][:, None]
            for n in ("query", "key", "value")
        )
        scores = q @ jnp.swapaxes(k, 1, 2) / 2 + jnp.where(mask > 0, 0, -1e9)
        mixed = jax.nn.softmax(scores) @ v
        out = jnp.einsum(
            "hlk,hkd->ld", mixed, named[attention + "attention_output/kernel"]
        )
        out = out + named[attention + "attention_output/bias"]
        x = norm(x + out, layer + "self_attention_layer_norm")
        inner = dense(x, layer + "feedforward_intermediate_dense")
        inner = jax.nn.gelu(inner, approximate=True)
        out = dense(inner, layer + "feedforward_output_dense")
        x = norm(x + out, layer + "feedforward_layer_norm")
    return x[0] @ head[0] + head[1]
