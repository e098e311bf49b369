from dataclasses import replace

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from scipy.stats import ks_2samp

from lrdist_keras.models.bert_stack import find_stack
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.models.lora import with_lora

BACKBONES = {
    "BertBackbone": {"num_segments": 2},
    "DistilBertBackbone": {},
    "RobertaBackbone": {},
    "XLMRobertaBackbone": {},
}


def backbone_of(family, dtype="float32"):
    import keras_hub

    backbone = getattr(keras_hub.models, family)(
        vocabulary_size=40,
        num_layers=3,
        num_heads=2,
        hidden_dim=12,
        intermediate_dim=20,
        max_sequence_length=16,
        dtype=dtype,
        **BACKBONES[family],
    )
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:  # biases and norms too
        drawn = rng.normal(0.0, 0.3, variable.shape)
        variable.assign(drawn + ("gamma" in variable.path))
    return backbone


def model_of(backbone):
    return keras.Model(backbone.input, backbone.output["sequence_output"])


def encoder_of(family, folder, dropout=0.0):
    backbone_of(family).save_to_preset(str(folder))
    return load_encoder(str(folder), dropout)


def batch(rows=4, length=9):
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, length + 1, rows)
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    return {
        "token_ids": rng.integers(0, 40, (rows, length)).astype(np.int32),
        "segment_ids": (np.arange(length) > lengths[:, None] // 2).astype(np.int32),
        "padding_mask": mask.astype(np.int32),
    }


def of_keras(encoder, weights, inputs):
    wanted = {x.name: inputs[x.name] for x in encoder.model.inputs}
    output, _ = encoder.model.stateless_call(weights, encoder.state, wanted)
    return output[:, 0]


@pytest.mark.parametrize("family", BACKBONES)
def test_features_and_gradients_are_those_of_the_model(family, tmp_path):
    encoder = encoder_of(family, tmp_path / "preset")
    stack = find_stack(encoder.model, family)
    inputs = batch()
    direction = np.random.default_rng(2).normal(size=(4, 12)).astype(np.float32)

    def along(function):
        return lambda weights: jnp.sum(function(weights) * direction)

    mine = jax.value_and_grad(along(lambda w: stack(w, inputs)))(encoder.weights)
    theirs = jax.value_and_grad(along(lambda w: of_keras(encoder, w, inputs)))(
        encoder.weights
    )
    np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-5)
    paths = [v.path for v in encoder.model.trainable_variables]
    for path, a, b in zip(paths, mine[1], theirs[1], strict=True):
        assert path.endswith("key/bias") or np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=path)
    found, state = encoder.features(encoder.weights, encoder.state, inputs, True)
    np.testing.assert_array_equal(found, stack(encoder.weights, inputs))
    assert state == []


def products(jaxpr):
    """Returns the multiplications of all products of a traced function."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            summed = np.prod([shape[i] for i in contracted])
            total += int(np.prod(equation.outvars[0].aval.shape) * summed)
        for inner in jaxprs_in_params(equation.params):
            total += products(inner)
    return total


def test_it_computes_the_last_layer_for_the_first_token_alone(tmp_path):
    encoder = encoder_of("BertBackbone", tmp_path / "preset")
    stack, inputs = find_stack(encoder.model, encoder.family), batch(4, 9)
    whole = jax.make_jaxpr(lambda w: of_keras(encoder, w, inputs))(encoder.weights)
    mine = jax.make_jaxpr(lambda w: stack(w, inputs))(encoder.weights)
    # Query, output and two feed-forward products, scores and mixture, of 8 tokens in 9.
    per_token = 2 * 12 * 12 + 2 * 12 * 20 + 2 * 9 * 12
    assert products(whole.jaxpr) - products(mine.jaxpr) == 4 * 8 * per_token


def test_a_model_that_computes_in_bfloat16_is_left_to_keras():
    mixed = model_of(backbone_of("BertBackbone", "mixed_bfloat16"))
    assert find_stack(mixed, "BertBackbone") is None


@pytest.mark.parametrize("family", BACKBONES)
def test_dropout_falls_as_in_the_model(family, tmp_path):
    """By the distributions of each feature over 6,000 draws of ours, and of Keras's."""
    encoder = encoder_of(family, tmp_path / "preset", dropout=0.2)
    stack = find_stack(encoder.model, family)
    inputs, weights = batch(2, 5), encoder.weights
    rng = np.random.default_rng(3)
    states = [rng.integers(0, 2**32, (6000, 2), dtype=np.uint32) for _ in encoder.state]
    keys = jax.random.split(jax.random.key(4), 6000)
    wanted = {x.name: inputs[x.name] for x in encoder.model.inputs}

    def of_model(state):
        output, _ = encoder.model.stateless_call(weights, state, wanted, training=True)
        return output[:, 0]

    theirs = jax.vmap(of_model)(states).reshape(6000, -1)
    mine = jax.vmap(lambda key: stack(weights, inputs, key))(keys).reshape(6000, -1)
    tests = [ks_2samp(a, b) for a, b in zip(mine.T, theirs.T, strict=True)]
    assert min(test.pvalue for test in tests) > 0.01 / len(tests)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.999])
def test_dropout_meets_the_rate_on_the_mean_and_keeps_each_sum(rate):
    stack = find_stack(model_of(backbone_of("BertBackbone")), "BertBackbone")
    dropping = replace(stack, dropout=rate)
    ones = jnp.ones((20, 1001))
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = np.asarray(jax.vmap(lambda key: dropping.dropped(ones, key))(keys))
    rates = np.mean(drawn == 0, axis=(1, 2))
    met = min(rate, 255 / 256)
    error = np.sqrt(met * (1 - met) / ones.size)  # of one draw
    assert abs(rates.mean() - met) < 5 * (error + 1 / 512) / np.sqrt(len(keys))
    assert abs(rates - met).max() < 5 * error + 1 / 256
    relative = error / (1 - met)
    assert abs(drawn.mean(axis=(1, 2)) - 1).max() < 5 * relative + 1e-3
    neighbours = np.mean((drawn[..., 1:] == 0) & (drawn[..., :-1] == 0))
    assert abs(neighbours - np.mean(rates**2)) < 5e-3 * met
    assert dropping.dropped(ones, None) is ones


def test_dropout_is_drawn_in_training_from_a_state_that_goes_on(tmp_path):
    encoder = encoder_of("BertBackbone", tmp_path / "preset", dropout=0.5)
    inputs = batch()

    def features(state, training=True):
        return encoder.features(encoder.weights, state, inputs, training)

    drawn, state = features(encoder.state)
    again, _ = features(encoder.state)
    later, _ = features(state)
    plain, same = features(encoder.state, training=False)
    np.testing.assert_array_equal(drawn, again)
    for other in (plain, later):
        assert np.abs(drawn - other).max() > 0.1
    np.testing.assert_array_equal(same[0], encoder.state[0])
    np.testing.assert_allclose(
        plain, of_keras(encoder, encoder.weights, inputs), atol=1e-5
    )


def test_other_models_have_no_stack(tmp_path):
    encoder = encoder_of("BertBackbone", tmp_path / "preset")
    assert find_stack(encoder.model, "GPT2Backbone") is None
    assert find_stack(with_lora(encoder, 2).model, encoder.family) is None
    below = encoder.model.get_layer("transformer_layer_1").output
    inner = keras.layers.Dense(3)(encoder.model.output)
    assert find_stack(keras.Model(encoder.model.input, inner), encoder.family) is None
    short = find_stack(keras.Model(encoder.model.input, below), encoder.family)
    assert short.layers == 2
