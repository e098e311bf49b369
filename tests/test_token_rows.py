import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trainer_cases import data, task, trained

from lrdist_keras.data.batches import Encoded
from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.strategies.averaging import Sfa
from lrdist_keras.training.strategies.dark_replay import DarkReplay
from lrdist_keras.training.strategies.elastic import Ewc, L2Sp
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.strategies.replay import Replay
from lrdist_keras.training.token_rows import room, used_rows, used_tokens
from lrdist_keras.training.trainer import SequentialTrainer

EXAMPLES = Encoded(
    ids=np.array([9, 4, 9, 20], np.int32),
    offsets=np.array([0, 3, 4]),
    second=np.array([3, 1], np.int32),
    labels=np.array([0, 1], np.int32),
    pad_id=2,
)


def test_the_tokens_that_are_used():
    np.testing.assert_array_equal(used_tokens(EXAMPLES), [0, 2, 4, 9, 20])


@pytest.mark.parametrize(
    "tokens, vocabulary, expected",
    [(5, 30, 8), (8, 30, 8), (9, 32, 16), (9, 31, None), (1, 2, 1)],
)
def test_room_is_a_power_of_two_of_at_most_half(tokens, vocabulary, expected):
    assert room(tokens, vocabulary) == expected


def test_rows_are_taken_and_put_back():
    used = used_rows(EXAMPLES, position=1, rows=8, vocabulary=30)
    narrowed = used.narrowed(EXAMPLES)
    table = jnp.arange(60.0).reshape(30, 2)
    other = np.ones(3)
    taken = used.take([other, table])
    assert taken[1].shape == (8, 2)
    assert taken[0] is other
    # Row by row what the old numbers gave, the row of padding with it.
    inputs = EXAMPLES.arrays(np.array([0, 1, -1]), 4)["token_ids"]
    renamed = narrowed.arrays(np.array([0, 1, -1]), 4)["token_ids"]
    np.testing.assert_array_equal(taken[1][renamed], table[inputs])
    taken[1] = taken[1] + 100
    expected = np.array(table)
    expected[[0, 2, 4, 9, 20]] += 100
    np.testing.assert_array_equal(used.put(table, taken)[1], expected)


def rows_of(trainer, name, with_penalty=False):
    """The rows of the token embeddings in the compiled programs of a function."""
    found = set()
    for function, structure, types in trainer.compiler._compiled:
        if function.__name__ == name:
            state, *_, terms = jax.tree.unflatten(structure, types)
            if (terms.penalty is not None) == with_penalty:
                ((rows, _), _) = state.weights[0]
                found.add(rows)
    return found


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    import keras_hub

    folder = tmp_path_factory.mktemp("presets") / "bert"
    backbone = keras_hub.models.BertBackbone(90, 2, 2, 8, 16, max_sequence_length=64)
    backbone.save_to_preset(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def encoder(preset):
    return load_encoder(preset)


@pytest.mark.parametrize(
    "strategy, dropout, optimizer",
    [
        (Plain(), 0.0, "adam"),
        (Plain(), 0.2, "adam"),
        (Sfa(alpha=0.5, period=0.3), 0.0, "adam"),
        (Replay(examples_per_class=3), 0.0, "adam"),
        pytest.param(
            DarkReplay(examples_per_class=3), 0.2, "adam", marks=pytest.mark.slow
        ),
        (Plain(), 0.0, "sgd"),
        (Replay(share=0.2), 0.0, "sgd"),
    ],
    ids=[
        "plain",
        "dropout",
        "SFA",
        "replay",
        "DER++ with dropout",
        "SGD",
        "replay with SGD",
    ],
)
def test_a_part_of_the_vocabulary_gives_the_same_weights(
    preset, strategy, dropout, optimizer, monkeypatch
):
    """Also where momentum moves rows whose token does not occur in a batch."""
    encoder = load_encoder(preset, dropout=dropout)
    settings = TrainingSettings(
        batch_size=8,
        max_length=32,
        steps_per_call=3,
        curve_points=2,
        optimizer=optimizer,
    )
    sizes = {"shortest": 4, "longest": 8} if optimizer == "sgd" else {}
    tasks = [task(name, i, train=data(i, **sizes)) for i, name in enumerate("ab")]
    rate = 0.3 if optimizer == "sgd" else 1e-2
    trainer = SequentialTrainer(encoder, settings)
    part = trained(trainer, tasks, flat(rate, trainer.scheme), strategy)
    assert rows_of(trainer, "train_steps") == {32}
    monkeypatch.setattr(type(encoder), "token_embedding", None)
    whole = SequentialTrainer(encoder, settings)
    for one, two in zip(
        part, trained(whole, tasks, flat(rate, whole.scheme), strategy), strict=True
    ):
        assert not np.array_equal(one[0], encoder.weights[0])
        for a, b in zip(one, two, strict=True):
            # Averages round what both sides have in common.
            np.testing.assert_allclose(
                a, b, rtol=0, atol=1e-7 * (strategy.name == "sfa")
            )


@pytest.mark.parametrize(
    "strategy, optimizer",
    [
        (Ewc(strength=1.0), "adam"),
        (L2Sp(strength=0.1, head_strength=0.1), "adam"),
        (L2Sp(strength=0.1, head_strength=0.1), "sgd"),
    ],
)
def test_what_pulls_at_all_rows_holds_them_all(encoder, strategy, optimizer):
    settings = TrainingSettings(
        batch_size=8, max_length=32, curve_points=0, optimizer=optimizer
    )
    trainer = SequentialTrainer(encoder, settings)
    rates = flat(1e-2, trainer.scheme)
    trained(trainer, [task("a", 0), task("b", 1)], rates, strategy)
    assert rows_of(trainer, "train_steps", with_penalty=True) == {90}


def test_adamw_decays_all_rows(encoder):
    settings = TrainingSettings(
        batch_size=8, max_length=32, optimizer="adamw", weight_decay=0.1, curve_points=0
    )
    trainer = SequentialTrainer(encoder, settings)
    after = trained(trainer, [task("a", 0)], flat(1e-2, trainer.scheme), Plain())[0]
    unused = np.arange(60, 90)
    assert (np.abs(after[0][unused]) < np.abs(encoder.weights[0][unused])).all()
