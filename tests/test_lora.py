import dataclasses

import keras
import numpy as np
import pytest

from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.models.lora import merged, new_adapters, with_lora


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
    for a, b in zip(adapted.whole(adapters), expected, strict=True):
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
    tokens = keras.Input((4,), dtype="int32", name="token_ids")
    model = keras.Model(tokens, keras.layers.Embedding(5, 3)(tokens))
    bare = dataclasses.replace(
        encoder, model=model, weights=[np.zeros((5, 3))], family="BagOfWords"
    )
    with pytest.raises(ValueError, match="`enable_lora`.*Received: BagOfWords"):
        with_lora(bare, 2)
