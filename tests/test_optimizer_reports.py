"""What people reported of layer-wise rates elsewhere, as tests of ours.

Each test names the report. The last tests verify what README says of Keras's own
`MultiOptimizer`.
"""

from optimizer_cases import (
    ABC,
    BACKEND,
    GROUPS,
    by_hand,
    make_gradients,
    make_variables,
    small_data,
    small_model,
    train,
    values,
    without_tensorflow,
)

# isort: split
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

from lrdist_keras import PatternScheme, llrd
from lrdist_keras.optimizer import LayerwiseOptimizer

X, Y = small_data()
ADAM, SGD = keras.optimizers.Adam, keras.optimizers.SGD


def compiled(inner, multipliers=(0.5, 0.3, 1.7)):
    model = small_model()
    model.compile(LayerwiseOptimizer(inner, ABC, multipliers), "mse")
    return model


def rates(optimizer):
    """The learning rate of each group."""
    rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    return np.array([*optimizer.multipliers.values()]) * rate


def weights(model):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]


class Recorder(keras.callbacks.Callback):
    """The rates of the groups after each epoch."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_epoch_end(self, epoch, logs=None):
        self.rates.append(rates(self.model.optimizer))


def test_callbacks_with_one_absolute_rate_keep_the_ratios():
    """Keras pull request 22959: a scheduler, and the floor of ReduceLROnPlateau."""
    recorder = Recorder()
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.1, patience=1, min_delta=1e9, min_lr=0.01
    )
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.05 / (epoch + 1))
    for callback, last in ((scheduler, 0.05 / 4), (plateau, 0.01)):
        model = compiled(SGD(0.05))
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[callback, recorder])
        np.testing.assert_allclose(
            recorder.rates[-1], np.array([0.5, 0.3, 1.7]) * last, rtol=1e-5
        )
    for each in recorder.rates:
        np.testing.assert_allclose(each / each[0], [1, 0.6, 3.4], rtol=1e-5)


def test_multipliers_assigned_after_a_batch_hold_for_the_next():
    """keras#19054: on JAX, what a callback assigns was lost."""

    class Freeze(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.optimizer.multipliers = [0.0, 0.0, batch / 2]

    model, other = compiled(SGD(0.1)), compiled(SGD(0.1))
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(X, Y, callbacks=[Freeze()], **options)
    for batch, multipliers in enumerate(
        ([0.5, 0.3, 1.7], [0, 0, 0], [0, 0, 0.5], [0, 0, 1])
    ):
        rows = slice(4 * batch, 4 * batch + 4)
        other.optimizer.multipliers = multipliers
        other.fit(X[rows], Y[rows], **options)
    for a, b in zip(weights(model), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


BACKUP = """
    import os, sys
    sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
    from optimizer_cases import ABC, small_data, small_model
    import keras
    import numpy as np
    from lrdist_keras import LayerwiseOptimizer

    mode, folder = sys.argv[1:]
    x, y = small_data()
    model = small_model()
    rate = keras.optimizers.schedules.CosineDecay(0.05, 24, warmup_steps=3)
    inner = keras.optimizers.AdamW(rate, use_ema=True, ema_overwrite_frequency=5)
    model.compile(LayerwiseOptimizer(inner, ABC, [0.5, 0.3, 1.7]), "mse")

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3 and mode == "killed":
                os._exit(3)

    backup = keras.callbacks.BackupAndRestore(f"{folder}/backup-{mode[:3] == 'who'}")
    model.fit(
        x, y, batch_size=4, epochs=6, shuffle=False, verbose=0,
        callbacks=[backup, Kill()],
    )
    state = [v.value for v in model.weights + model.optimizer.variables]
    np.savez(f"{folder}/{mode}.npz", *map(keras.ops.convert_to_numpy, state))
"""


def test_backup_and_restore_in_a_new_process(tmp_path):
    """keras#19389: killed after three epochs of six, it ends as if undisturbed."""
    script = tmp_path / "backup.py"
    script.write_text(without_tensorflow(BACKUP))
    for mode, expected in {"whole": 0, "killed": 3, "resumed": 0}.items():
        run = subprocess.run([sys.executable, script, mode, tmp_path])
        assert run.returncode == expected
    whole, resumed = (np.load(tmp_path / f"{m}.npz") for m in ("whole", "resumed"))
    assert whole.files == resumed.files and len(whole.files) > 20
    for name in whole.files:
        if BACKEND == "jax":
            np.testing.assert_array_equal(resumed[name], whole[name])
        else:  # kernels that may sum in another order
            np.testing.assert_allclose(resumed[name], whole[name], atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("layer", ["a", "b"])
def test_freezing_a_layer_after_compile(layer, trained):
    """Keras pull requests 22104 and 22787: as with plain Adam in this Keras."""

    def outcome(optimizer):
        model = small_model()
        model.compile(optimizer, "mse")
        if trained:
            model.fit(X, Y, verbose=0)
        model.get_layer(layer).trainable = False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A group matches no trainable")
            try:
                model.fit(X, Y, epochs=2, verbose=0)
            except ValueError:
                return None  # JAX refuses where the optimizer is built
        return weights(model)

    plain = outcome(ADAM(0.01))
    ours = outcome(LayerwiseOptimizer(ADAM(0.01), ABC))
    assert (plain is None) == (ours is None)
    if plain is not None:
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_freezing_a_layer_moves_no_groups_multiplier():
    """Keras pull request 22787: the groups behind it keep their rates."""
    model = compiled(SGD(0.1), [5.0, 0.0, 1.0])
    model.get_layer("a").trainable = False
    before = weights(model)
    with pytest.warns(UserWarning, match="matches no trainable variable"):
        model.fit(X, Y, verbose=0)
    moved = [(a != b).any() for a, b in zip(weights(model), before, strict=True)]
    assert moved == [False, False, False, False, True, True]
    assert dict(model.optimizer.multipliers) == {"a": 5.0, "b": 0.0, "c": 1.0}


@pytest.mark.parametrize("inner", [SGD, ADAM], ids=["SGD", "Adam"])
def test_a_tenth_makes_the_first_step_exactly_a_tenth(inner):
    """Multiples of a rate are the same as that rate, bit for bit; 0.1 in float32."""
    start, gradients = values(make_variables()), make_gradients(1)
    tenth = np.float32(0.1)
    rate = float(np.float32(0.25) * tenth)
    scaled = train(LayerwiseOptimizer(inner(0.25), GROUPS, [0.1] * 3), gradients)
    plain = train(LayerwiseOptimizer(inner(rate), GROUPS), gradients)
    whole = train(LayerwiseOptimizer(inner(0.25), GROUPS), gradients)
    for s, p, w, zero in zip(scaled, plain, whole, start, strict=True):
        np.testing.assert_array_equal(s, p)
        np.testing.assert_allclose(s - zero, tenth * (w - zero), atol=5e-7)


def test_zero_is_a_number_and_not_unset():
    """optax#1101: of three groups one is at 0; the others move, that one does not."""
    for multipliers in ({"body": 0.0}, {"body": 0}, [1.0, 0.0, 1.0]):
        optimizer = LayerwiseOptimizer(ADAM(0.1), GROUPS, multipliers)
        assert optimizer.multipliers["body"] == 0.0
        start, after = values(make_variables()), train(optimizer, make_gradients(3))
        for (path, _), a, b in zip(
            [("embeddings", 0), ("body", 0), ("body", 0), ("head", 0), ("head", 0)],
            start,
            after,
            strict=True,
        ):
            if path == "body":
                np.testing.assert_array_equal(b, a)
            else:
                assert (b != a).all()
        copy = LayerwiseOptimizer.from_config(optimizer.get_config())
        assert copy.multipliers["body"] == 0.0


def test_rates_of_decay_above_a_frozen_block():
    """timm#2691: freezing the lowest block moves the rates of no other."""
    distribution = llrd(0.1, 0.5, PatternScheme(ABC))
    model = small_model()
    optimizer = LayerwiseOptimizer.from_distribution(SGD, distribution, model)
    model.compile(optimizer, "mse")
    optimizer.multipliers = {**optimizer.multipliers, "a": 0.0}
    frozen = weights(model)[:2]
    model.fit(X, Y, epochs=2, verbose=0)
    np.testing.assert_allclose(rates(optimizer), [0, 0.05, 0.1], rtol=1e-6)
    for a, b in zip(weights(model)[:2], frozen, strict=True):
        np.testing.assert_array_equal(a, b)


def test_ratios_are_constant_through_warmup():
    """DeepSpeed pull request 8171: every step of a group is its share of a rate's."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, 6, warmup_target=0.4, warmup_steps=3
    )
    optimizer = LayerwiseOptimizer(SGD(schedule), GROUPS, [0.25, 0.5, 1.0])
    ones = [np.ones_like(v) for v in values(make_variables())]
    variables, steps = make_variables(), []
    for _ in range(6):
        before = values(variables)
        after = train(optimizer, [ones], variables)
        steps.append([np.mean(a - b) for a, b in zip(before, after, strict=True)])
    steps = np.array(steps)
    np.testing.assert_allclose(steps[0], 0, atol=1e-7)  # the warm-up begins at 0
    assert (steps[1:] > 0.01).all()
    np.testing.assert_allclose(
        steps[1:] / steps[1:, -1:], [[0.25, 0.5, 0.5, 1, 1]] * 5, rtol=1e-4
    )


# What README says of `keras.optimizers.MultiOptimizer`.


def test_multi_optimizer_clips_each_group_by_itself():
    gradients = make_gradients(1)
    clipped = train(
        by_hand(lambda **o: SGD(global_clipnorm=0.5, **o), 1.0, [1, 1, 1]), gradients
    )
    moved = [a - b for a, b in zip(values(make_variables()), clipped, strict=True)]
    for members in (moved[:1], moved[1:3], moved[3:]):
        norm = np.sqrt(sum((m**2).sum() for m in members))
        np.testing.assert_allclose(norm, 0.5, rtol=1e-5)


def test_multi_optimizer_has_no_learning_rate():
    optimizer = by_hand(SGD, 0.1, [1, 1, 1])
    with pytest.raises(AttributeError, match="Learning rate cannot be accessed"):
        _ = optimizer.learning_rate
    with pytest.raises(AttributeError, match="Learning rate cannot be set"):
        optimizer.learning_rate = 0.1


def test_multi_optimizer_counts_steps_and_holds_schedules_once_per_group():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 5)
    optimizer = by_hand(
        lambda learning_rate: SGD(schedule if learning_rate == 0.1 else learning_rate),
        0.1,
        [1, 0.5, 0.25],
    )
    train(optimizer, make_gradients(2))
    counters = [each._iterations for each in optimizer.optimizers]
    assert len({id(c) for c in counters}) == len(GROUPS)
    assert [int(c) for c in counters] == [2] * len(GROUPS)
    held = [each._learning_rate is schedule for each in optimizer.optimizers]
    assert held == [True, False, False]


def test_one_absolute_rate_erases_the_distribution_of_multi_optimizer():
    """Where ours keeps the ratios, see above."""
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.1, patience=1, min_delta=1e9, min_lr=0.01
    )
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.02)
    for callback in (scheduler, plateau):
        model = small_model()
        optimizers = {f"{n}/.*": SGD(0.05 * (i + 1)) for i, n in enumerate("abc")}
        model.compile(
            keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(optimizers["a/.*"], optimizers)
            ),
            "mse",
        )
        model.fit(X, Y, epochs=4, verbose=0, callbacks=[callback])
        found = {round(float(each.learning_rate), 6) for each in optimizers.values()}
        assert len(found) == 1
