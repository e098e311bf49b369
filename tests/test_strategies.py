import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from lrdist_keras.data.batches import Encoded
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.training.strategies import (
    Distillation,
    average,
    averaging_steps,
    best_alpha,
    memory,
    merged,
    mixed,
    negative_log_likelihood,
    new_adapters,
    with_lora,
)


def encoded(labels, first_id=10):
    """Example i has i + 1 tokens: first_id, first_id + 1, …"""
    sizes = np.arange(1, len(labels) + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.concatenate([first_id + np.arange(size) for size in sizes])
    return Encoded(ids.astype(np.int32), offsets, sizes, np.array(labels), 0)


def test_a_mixture_holds_the_examples_of_its_parts_with_their_heads():
    parts = [encoded([0, 1]), encoded([2, 0, 1], first_id=20), encoded([1], 30)]
    both = mixed(parts)
    assert len(both) == 6
    batch = both.arrays(np.array([4, 0, 5, -1]), 4)
    assert batch["head"][:3].tolist() == [1, 0, 2]
    assert batch["labels"].tolist() == [1, 0, 1, 0]
    assert batch["token_ids"].tolist() == [
        [20, 21, 22, 0],
        [10, 0, 0, 0],
        [30, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert batch["weights"].tolist() == [1, 1, 1, 0]


def test_a_memory_is_k_of_each_class_in_their_order():
    labels = [0, 1, 1, 0, 2, 1, 0, 2, 2, 0]
    kept = memory(encoded(labels), 3, 2, np.random.default_rng(0), "a")
    assert np.bincount(kept.labels).tolist() == [2, 2, 2]
    assert (np.diff(kept.lengths) > 0).all()  # lengths are positions here
    for length, label in zip(kept.lengths, kept.labels, strict=True):
        assert labels[length - 1] == label
    other = memory(encoded(labels), 3, 2, np.random.default_rng(1), "a")
    assert other.lengths.tolist() != kept.lengths.tolist()
    with pytest.raises(ValueError, match="at most the 3 .* class of 'a'. Received: 4"):
        memory(encoded(labels), 3, 4, np.random.default_rng(0), "a")


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


def test_distillation_is_the_cross_entropy_of_softened_answers():
    rng = np.random.default_rng(1)
    new = [rng.normal(size=(3, 2)), rng.normal(size=(3, 4))]
    old = [rng.normal(size=(3, 2)), rng.normal(size=(3, 4))]
    weights = np.array([1, 0, 1.0])
    found = Distillation(3.0, 2.0)(new, old, weights)
    # The paper's form: p^(1/T) / sum p^(1/T) of the probabilities (its equation 4).
    expected = 0.0
    for z, y in zip(new, old, strict=True):
        p, q = softmax(y, axis=1) ** 0.5, softmax(z, axis=1) ** 0.5
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        expected += -(p * np.log(q)).sum(1)[weights > 0].mean()
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-6)


def test_distillation_is_least_where_the_old_answers_are():
    old = [np.array([[1.0, -2.0, 0.5]])]
    gradient = jax.grad(lambda z: Distillation(1.0, 2.0)([z], old, np.ones(1)))
    np.testing.assert_allclose(gradient(jnp.array(old[0])), 0, atol=1e-7)
    assert np.abs(gradient(jnp.zeros((1, 3)))).max() > 0.05


def test_an_average_and_its_ends():
    rng = np.random.default_rng(2)
    p, n = ([rng.normal(size=s).astype(np.float32) for s in (3, 2)] for _ in range(2))
    for a, b, c in zip(average(p, n, 0.25), p, n, strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, rtol=1e-6)
    for alpha, whole in [(0.0, p), (1.0, n)]:
        for a, b in zip(average(p, n, alpha), whole, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_best_alpha_and_of_equals_the_smallest():
    assert best_alpha(lambda alpha: -((alpha - 0.62) ** 2)) == pytest.approx(0.6)
    assert best_alpha(lambda alpha: 1.0) == 0.0
    assert best_alpha(lambda alpha: float(alpha > 0.45)) == pytest.approx(0.5)


def test_averaging_is_every_period_and_at_the_end():
    assert averaging_steps(40, 0.25) == {10, 20, 30, 40}
    assert averaging_steps(10, 1.0) == {10}
    assert averaging_steps(10, 0.4) == {4, 8, 10}
    assert averaging_steps(2, 0.1) == {1, 2}


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_encoder(str(tiny_preset))


def features(encoder, weights):
    inputs = {
        "token_ids": np.array([[2, 7, 9, 3]]),
        "segment_ids": np.zeros((1, 4), int),
        "padding_mask": np.ones((1, 4), int),
    }
    return encoder.features(weights, encoder.state, inputs, training=False)[0]


def test_adapters_are_a_low_rank_addition_to_query_and_value(encoder):
    adapted = with_lora(encoder, 2)
    start = new_adapters(adapted, np.random.default_rng(0))
    np.testing.assert_allclose(
        features(adapted, start), features(encoder, encoder.weights), atol=1e-6
    )
    paths = [v.path for v in adapted.model.trainable_variables]
    rng = np.random.default_rng(1)
    adapters = [rng.normal(size=w.shape).astype(np.float32) for w in start]
    named = dict(zip(paths, adapters, strict=True))
    expected, touched = [], 0
    for v, w in zip(encoder.model.trainable_variables, encoder.weights, strict=True):
        if v.path.endswith(("query/kernel", "value/kernel")):
            layer = v.path.removesuffix("/kernel")
            a, b = named[layer + "/lora_kernel_a"], named[layer + "/lora_kernel_b"]
            assert a.shape[-1] == b.shape[0] == 2
            w = w + np.einsum("...r,rk->...k", a, b)
            touched += 1
        expected.append(w)
    assert touched == len(paths) / 2 == 4
    for a, b in zip(merged(encoder, adapted, adapters), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(
        features(adapted, adapters), features(encoder, expected), atol=1e-5
    )


def test_new_adapters_follow_the_draw_and_begin_at_zero(encoder):
    adapted = with_lora(encoder, 3)
    one, again, other = (
        new_adapters(adapted, np.random.default_rng(s)) for s in (0, 0, 1)
    )
    for v, a, b, c in zip(
        adapted.model.trainable_variables, one, again, other, strict=True
    ):
        np.testing.assert_array_equal(a, b)
        if v.path.endswith("_b"):
            assert not a.any()
        else:
            assert np.abs(a).max() <= np.sqrt(1 / 8) and not np.array_equal(a, c)


def test_lora_needs_layers_that_can_take_it(encoder):
    import dataclasses

    import keras

    tokens = keras.Input((4,), dtype="int32", name="token_ids")
    model = keras.Model(tokens, keras.layers.Embedding(5, 3)(tokens))
    bare = dataclasses.replace(
        encoder, model=model, weights=[np.zeros((5, 3))], family="BagOfWords"
    )
    with pytest.raises(ValueError, match="`enable_lora`.*Received: BagOfWords"):
        with_lora(bare, 2)
