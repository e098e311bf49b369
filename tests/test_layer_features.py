from dataclasses import replace

import keras
import numpy as np
import pytest

from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.data.splits import Split
from lrdist_keras.data.tokenizer import encode, load_tokenizer
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.models.layer_features import FeatureReader

TEXTS = ["the film", "a good plot", "bad", "the dull actor is not fun " * 6]


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_encoder(str(tiny_preset))


@pytest.fixture(scope="module")
def data(tiny_preset, tmp_path_factory):
    split = Split((TEXTS,), np.zeros(len(TEXTS), np.int32))
    cache = tmp_path_factory.mktemp("cache")
    return encode(split, load_tokenizer(str(tiny_preset)), 64, cache)


def inputs(data):
    """All texts in one batch, as Keras's own models take them."""
    return {
        name: value
        for name, value in data.arrays(np.arange(len(data)), 64).items()
        if name in ("token_ids", "segment_ids", "padding_mask")
    }


def test_last_features_are_those_of_the_model_in_the_order_of_the_texts(encoder, data):
    found = FeatureReader(encoder, 64, batch_size=2).last(encoder.weights, data)
    expected = np.asarray(encoder.model(inputs(data)))[:, 0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_layers_are_what_keras_computes_layer_by_layer(encoder, data):
    found = FeatureReader(encoder, 64, batch_size=3).layers(encoder.weights, data)
    assert found.shape == (2, 4, 8)
    x = inputs(data)
    below = encoder.model.get_layer("embeddings_dropout").output
    hidden = keras.Model(encoder.model.input, below)(x)
    for i in range(2):
        layer = encoder.model.get_layer(f"transformer_layer_{i}")
        hidden = layer(hidden, padding_mask=x["padding_mask"])
        np.testing.assert_allclose(found[i], np.asarray(hidden)[:, 0], atol=1e-5)


def test_features_follow_the_weights_that_are_given(encoder, data):
    reader = FeatureReader(encoder, 64)
    changed = [w.copy() for w in encoder.weights]
    paths = [v.path for v in encoder.model.trainable_variables]
    changed[paths.index("transformer_layer_1/feedforward_output_dense/bias")][0] += 1
    before, after = (reader.layers(w, data) for w in (encoder.weights, changed))
    np.testing.assert_array_equal(before[0], after[0])
    assert not np.allclose(before[1], after[1], atol=1e-2)
    np.testing.assert_allclose(after[1], reader.last(changed, data), atol=1e-6)


def test_gpt2_is_read_at_its_last_token_before_the_final_norm(tmp_path):
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(9, 2, 1, 4, 4, max_sequence_length=32)
    backbone.save_to_preset(str(tmp_path / "gpt2"))
    encoder = load_encoder(str(tmp_path / "gpt2"))
    ids, offsets = np.array([2, 7, 3, 4], np.int32), np.array([0, 3, 4])
    data = Encoded(ids, offsets, np.array([3, 1]), np.zeros(2, np.int32), 0)
    reader = FeatureReader(encoder, 32)
    layers = reader.layers(encoder.weights, data)
    assert layers.shape == (2, 2, 4)
    norm = encoder.model.get_layer("layer_norm")
    last = reader.last(encoder.weights, data)
    np.testing.assert_allclose(np.asarray(norm(layers[1])), last, atol=1e-5)


def test_what_cannot_be_read_is_said(encoder, data):
    reader = FeatureReader(encoder, 64)
    with pytest.raises(ValueError, match="at least one text"):
        reader.last(encoder.weights, take(data, np.array([], int)))
    x = keras.Input((4,), name="token_ids")
    other = keras.Model(x, keras.layers.Dense(3, name="dense")(x))
    with pytest.raises(ValueError, match="transformer_layer_<i>.*BertBackbone"):
        FeatureReader(replace(encoder, model=other), 64)
