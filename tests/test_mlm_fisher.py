from dataclasses import replace

import jax
import numpy as np
import pytest

from lrdist_keras.data.batches import Encoded, take
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.training import mlm_fisher
from lrdist_keras.training.mlm_fisher import (
    PretrainingFisher,
    _MaskedLanguage,
    cached_pretraining_fisher,
    mask,
    pretraining_fisher,
)

MASK = 4


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_encoder(str(tiny_preset))


def texts(count, seed=0):
    """Ids between [CLS] = 2 and [SEP] = 3: one id, over and over."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 20, count)
    rows = [[2, *[5 + i % 20] * (size - 2), 3] for i, size in enumerate(sizes)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.concatenate(rows).astype(np.int32)
    return Encoded(ids, offsets, sizes, np.zeros(count, np.int32), 0)


def test_masks_are_berts():
    many = texts(3000)
    batch = many.arrays(np.arange(3000), 32)
    found = mask(batch, MASK, 1000, np.random.default_rng(0))
    counts = found["counts"] > 0
    lengths = many.lengths
    wanted = np.maximum(1, np.round(0.15 * (lengths - 2)))
    np.testing.assert_array_equal(counts.sum(1), wanted)
    positions = found["positions"][counts]
    of_row = np.repeat(lengths, counts.sum(1))
    assert (positions > 0).all() and (positions < of_row - 1).all()
    rows = np.repeat(np.arange(3000), counts.sum(1))
    np.testing.assert_array_equal(
        batch["token_ids"][rows, positions], found["targets"][counts]
    )
    assert len({*zip(rows, positions, strict=True)}) == len(rows)
    shown = found["token_ids"][rows, positions]
    n = len(shown)
    for share, hits in [
        (0.8, shown == MASK),
        (0.1, shown == found["targets"][counts]),
    ]:
        assert abs(hits.mean() - share) < 4 * np.sqrt(share * (1 - share) / n)
    changed = found["token_ids"] != batch["token_ids"]
    changed[rows, positions] = False
    assert not changed.any()


def test_a_head_is_fitted_where_the_text_tells_its_tokens(encoder, monkeypatch):
    """In texts that repeat one of 20 tokens, a head finds more than by chance."""
    monkeypatch.setattr(mlm_fisher, "_RATE", 0.02)  # the model is tiny
    monkeypatch.setattr(mlm_fisher, "_BATCH", 32)
    rng, index = np.random.default_rng(0), tied(encoder)
    # As large as if they were trained; else no token would hear of another.
    weights = [50 * w if w.ndim > 1 else w for w in encoder.weights]
    model = _MaskedLanguage(replace(encoder, weights=weights), index, MASK, rng)
    head = model.fit(texts(600), 32)
    found, count = model.accuracy(head, texts(300, 1), 32), 300
    assert found > 0.05 + 4 * np.sqrt(0.05 * 0.95 / count)


def tied(encoder):
    paths = [v.path for v in encoder.model.trainable_variables]
    return paths.index("token_embedding/embeddings")


def test_the_fisher_is_the_mean_of_squared_gradients_of_single_texts(encoder):
    """With the mean over the masked tokens of a text, by another way."""
    few = texts(5)
    model = _MaskedLanguage(encoder, tied(encoder), MASK, np.random.default_rng(3))
    rng = np.random.default_rng(1)
    shapes = [(8, 8), (8,), (8,), (8,), (model.vocabulary,)]
    head = [rng.normal(size=s).astype(np.float32) for s in shapes]
    batches = model._masked(few, 32, 2)
    model._masked = lambda *arguments: batches
    found = model.fisher(head, few, 32)

    @jax.jit
    @jax.grad
    def gradient_of(weights, inputs, wanted):
        """`wanted`: 1 / count at each masked position and its token, else 0."""
        output, _ = encoder.model.stateless_call(weights, encoder.state, inputs)
        x = jax.nn.gelu(output[0] @ head[0] + head[1], approximate=False)
        x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        scores = (x * head[2] + head[3]) @ weights[model.tied].T + head[4]
        return (wanted * jax.nn.log_softmax(scores)).sum()

    expected = [np.zeros(w.shape) for w in encoder.weights]
    for batch in batches:
        for row in np.flatnonzero(batch["weights"] > 0):
            inputs = {
                t.name: batch[t.name][row : row + 1] for t in encoder.model.inputs
            }
            real = batch["counts"][row] > 0
            length = batch["token_ids"].shape[1]
            wanted = np.zeros((length, model.vocabulary), np.float32)
            where = batch["positions"][row][real], batch["targets"][row][real]
            wanted[where] = 1 / real.sum()
            gradients = gradient_of(list(encoder.weights), inputs, wanted)
            for total, g in zip(expected, gradients, strict=True):
                total += np.asarray(g, np.float64) ** 2 / 5
    for v, a, b in zip(encoder.model.trainable_variables, found, expected, strict=True):
        if not v.path.endswith("key/bias"):
            assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(b), v.path


def test_what_is_said_of_a_poor_head():
    assert "this is not a pretraining Fisher" in str(PretrainingFisher([], 0.19, 5))
    assert "not a pretraining" not in str(PretrainingFisher([], 0.21, 5))


def test_what_it_cannot_be_of(encoder):
    none = take(texts(3), np.array([], int))
    with pytest.raises(ValueError, match="at least two texts.*Received: 0"):
        pretraining_fisher(encoder, none, MASK, 32, 5)
    for model, mask_id in [(encoder, None), (replace(encoder, last_token=True), MASK)]:
        with pytest.raises(ValueError, match="masked language modelling, with a mask"):
            pretraining_fisher(model, texts(3), mask_id, 32, 5)


def test_a_whole_estimate(encoder):
    found = pretraining_fisher(encoder, texts(40), MASK, 32, 10)
    assert found.examples == 10 and 0 <= found.accuracy <= 1
    for f, w in zip(found.fisher, encoder.weights, strict=True):
        assert f.shape == w.shape and float(f.min()) >= 0


def test_an_estimate_is_made_once(encoder, tmp_path, monkeypatch):
    few = texts(40)
    first = cached_pretraining_fisher(encoder, few, MASK, 32, 10, tmp_path)
    fresh = pretraining_fisher(encoder, few, MASK, 32, 10)
    monkeypatch.setattr(mlm_fisher, "pretraining_fisher", None)
    second = cached_pretraining_fisher(encoder, few, MASK, 32, 10, tmp_path)
    for found in (first, second):
        assert (found.accuracy, found.examples) == (fresh.accuracy, 10)
        for a, b in zip(found.fisher, fresh.fisher, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_estimate_is_made_again(encoder, tmp_path, monkeypatch, damage):
    made = []

    def estimate(*arguments):
        made.append(arguments)
        return PretrainingFisher(list(encoder.weights), 0.5, 1)

    monkeypatch.setattr(mlm_fisher, "pretraining_fisher", estimate)
    arguments = encoder, texts(40), MASK, 32, 10, tmp_path
    cached_pretraining_fisher(*arguments)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content[:-1] if damage == "truncated" else content)
    for _ in range(2):
        found = cached_pretraining_fisher(*arguments)
        for a, b in zip(found.fisher, encoder.weights, strict=True):
            np.testing.assert_array_equal(a, b)
        assert (found.accuracy, found.examples) == (0.5, 1)
    assert len(made) == 2


@pytest.mark.parametrize("other", ["weights", "texts", "number", "length", "mask"])
def test_an_estimate_of_something_else_is_another(
    encoder, tmp_path, monkeypatch, other
):
    few = texts(40)
    cached_pretraining_fisher(encoder, few, MASK, 32, 10, tmp_path)
    called = []

    def estimate(*arguments):
        called.append(arguments)
        return PretrainingFisher(list(encoder.weights), 0.5, 1)

    monkeypatch.setattr(mlm_fisher, "pretraining_fisher", estimate)
    changed = replace(encoder, weights=[w + 1 for w in encoder.weights])
    cached_pretraining_fisher(
        changed if other == "weights" else encoder,
        texts(40, seed=1) if other == "texts" else few,
        3 if other == "mask" else MASK,
        16 if other == "length" else 32,
        11 if other == "number" else 10,
        tmp_path,
    )
    assert len(called) == 1
