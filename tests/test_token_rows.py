import jax.numpy as jnp
import numpy as np
import pytest

from lrdist_keras.config import ArmSettings, TrainingSettings
from lrdist_keras.data.batches import Encoded
from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.training.token_rows import room, used_rows, used_tokens
from lrdist_keras.training.trainer import SequentialTrainer
from tests.trainer_cases import task, trained

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
    "arm",
    [
        ArmSettings(name="plain", rate=1e-2),
        ArmSettings(name="dropout", rate=1e-2),
        ArmSettings(name="SFA", rate=1e-2, strategy="sfa", alpha=0.5, period=0.3),
        ArmSettings(name="replay", rate=1e-2, strategy="replay", examples_per_class=3),
    ],
    ids=lambda arm: arm.name,
)
def test_a_part_of_the_vocabulary_gives_the_same_weights(preset, arm, monkeypatch):
    encoder = load_encoder(preset, dropout=0.2 * (arm.name == "dropout"))
    settings = TrainingSettings(
        batch_size=8, max_length=32, steps_per_call=3, curve_points=2
    )
    tasks = [task("a", 0), task("b", 1)]
    trainer = SequentialTrainer(encoder, settings)
    part = trained(trainer, tasks, flat(1e-2, trainer.scheme), arm)
    shapes = {key[2] for key in trainer.programs._compiled if key[0] != "evaluate"}
    assert shapes == {32}
    monkeypatch.setattr(type(encoder), "token_embedding", None)
    whole = SequentialTrainer(encoder, settings)
    for one, two in zip(
        part, trained(whole, tasks, flat(1e-2, whole.scheme), arm), strict=True
    ):
        assert not np.array_equal(one[0], encoder.weights[0])
        for a, b in zip(one, two, strict=True):
            # Averages round what both sides have in common.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-7 * (arm.name == "SFA"))


@pytest.mark.parametrize(
    "strategy",
    [
        {"strategy": "ewc", "strength": 1.0},
        {"strategy": "l2_sp", "strength": 0.1, "head_strength": 0.1},
    ],
)
def test_what_pulls_at_all_rows_holds_them_all(encoder, strategy):
    arm = ArmSettings(name="arm", rate=1e-2, **strategy)
    settings = TrainingSettings(batch_size=8, max_length=32, curve_points=0)
    trainer = SequentialTrainer(encoder, settings)
    trained(trainer, [task("a", 0), task("b", 1)], flat(1e-2, trainer.scheme), arm)
    keys = [key for key in trainer.programs._compiled if key[0] == arm.strategy]
    assert {key[2] for key in keys} == {None}


def test_adamw_decays_all_rows(encoder):
    settings = TrainingSettings(
        batch_size=8, max_length=32, optimizer="adamw", weight_decay=0.1, curve_points=0
    )
    trainer = SequentialTrainer(encoder, settings)
    arm = ArmSettings(name="plain", rate=1e-2)
    after = trained(trainer, [task("a", 0)], flat(1e-2, trainer.scheme), arm)[0]
    unused = np.arange(60, 90)
    assert (np.abs(after[0][unused]) < np.abs(encoder.weights[0][unused])).all()
