"""Saving, resuming in a new process, refusing other groups, callbacks."""

import io
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

from optimizer_cases import (
    ABC,
    BACKEND,
    INNER,
    make_gradients,
    make_variables,
    one_group,
    small_data,
    small_model,
    train,
    without_tensorflow,
)

# isort: split
import h5py
import keras
import numpy as np
import pytest

from lrdist_keras.optimizer import GradualUnfreezing, LayerwiseOptimizer

X, Y = small_data()
MULTIPLIERS = [0.5, 0.3, 1.7]
CHECKPOINTS = Path(__file__).parent / "checkpoints"


def compiled(groups=ABC, multipliers=MULTIPLIERS, inner=None, names=("a", "b", "c")):
    model = small_model(names=names)
    inner = inner or keras.optimizers.AdamW(0.01)
    model.compile(LayerwiseOptimizer(inner, groups, multipliers), "mse")
    return model


RESUME = """
    import os, sys
    import keras
    import numpy as np
    sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
    mode, folder = sys.argv[1:]
    if mode == "keras":  # knows of no class
        import lrdist_keras
        model = keras.models.load_model(f"{folder}/middle.keras")
    from optimizer_cases import ABC, small_data, small_model
    from lrdist_keras import LayerwiseOptimizer

    x, y = small_data()
    rng = np.random.default_rng(0)
    # Two epochs of eleven batches; the first is cut after five of them.
    batches = [(x[i], y[i]) for i in rng.integers(0, 16, (22, 4))]

    def fresh():
        schedule = keras.optimizers.schedules.CosineDecay(0.02, 22, warmup_steps=2)
        inner = keras.optimizers.AdamW(
            schedule, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3,
            gradient_accumulation_steps=2,
        )
        model = small_model()
        model.compile(LayerwiseOptimizer(inner, ABC, [0.5, 0.3, 1.7]), "mse")
        return model

    def fit(batches, **options):
        source = (batch for batch in batches)
        model.fit(source, steps_per_epoch=len(batches), verbose=0, **options)

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                self.model.save(f"{folder}/middle.keras")
                self.model.save_weights(f"{folder}/middle.weights.h5")
                os._exit(3)

    start = 5
    if mode == "weights":
        model = fresh()
        model.optimizer.build(model.trainable_variables)
        model.optimizer.multipliers = [1.0, 1.0, 1.0]
        model.load_weights(f"{folder}/middle.weights.h5")
    elif mode != "keras":
        model, start = fresh(), 0
    fit(batches[start:11], callbacks=[Kill()] if mode == "killed" else [])
    fit(batches[11:])
    state = [v.value for v in model.trainable_variables + model.optimizer.variables]
    np.savez(f"{folder}/{mode}.npz", *map(keras.ops.convert_to_numpy, state))
"""


def test_resuming_in_a_new_process_changes_nothing(tmp_path):
    """After an odd number of steps: half an accumulation, between two overwrites."""
    script = tmp_path / "resume.py"
    script.write_text(without_tensorflow(RESUME))
    for mode, expected in {"whole": 0, "killed": 3, "keras": 0, "weights": 0}.items():
        run = subprocess.run([sys.executable, script, mode, tmp_path])
        assert run.returncode == expected
    whole = np.load(tmp_path / "whole.npz")
    for mode in ("keras", "weights"):
        resumed = np.load(tmp_path / f"{mode}.npz")
        assert len(resumed.files) == len(whole.files) > 20
        for name in whole.files:
            if BACKEND == "jax":
                np.testing.assert_array_equal(resumed[name], whole[name])
            else:  # kernels that may sum in another order
                np.testing.assert_allclose(resumed[name], whole[name], atol=1e-6)


def test_the_state_is_stored_once(tmp_path):
    model = compiled()
    model.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    stored = []
    with h5py.File(tmp_path / "m.weights.h5") as file:
        file["optimizer"].visititems(
            lambda name, item: stored.append(name) if hasattr(item, "shape") else None
        )
    count = len(model.optimizer.inner_optimizer.variables)
    assert sorted(stored) == sorted(
        f"group_state/vars/{name}"
        for name in ("layout", "multipliers", *(f"inner.{i}" for i in range(count)))
    )


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ({"a": "a", "bc": ["b", "c"]}, ["a", "bc"]),
        ({"x": "a", "b": "b", "c": "c"}, ["x", "b", "c"]),
        ({"c": "c", "b": "b", "a": "a"}, ["c", "b", "a"]),
    ],
    ids=["number", "names", "order"],
)
def test_a_checkpoint_of_other_groups_is_skipped_by_name(tmp_path, groups, names):
    model = compiled()
    model.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = compiled(groups, None)
    other.optimizer.build(other.trainable_variables)
    before = state(other)
    with pytest.warns(UserWarning, match="Skipping the saved state") as warned:
        other.load_weights(tmp_path / "m.weights.h5")
    assert str(["a", "b", "c"]) in str(warned[0].message)
    assert str(names) in str(warned[0].message)
    assert_equal(state(other), before)
    assert_equal(weights(other), weights(model))


def state(model):
    return [to_numpy(v) for v in model.optimizer.variables]


def weights(model):
    return [to_numpy(v) for v in model.weights]


def assert_equal(arrays, others):
    for a, b in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(a, b)


def optimizers():
    """Optimizers of which one could take another's state for its own, by name."""
    adam, sgd, lion = (
        getattr(keras.optimizers, name) for name in ("Adam", "SGD", "Lion")
    )
    rmsprop, scaled = keras.optimizers.RMSprop, keras.optimizers.LossScaleOptimizer
    layerwise = LayerwiseOptimizer
    return {
        "plain adam": lambda: adam(0.01),
        "plain lion": lambda: lion(0.01),
        "scaled adam": lambda: scaled(adam(0.01)),
        "multi": lambda: one_per_group(),
        "adam": lambda: layerwise(adam(0.01), ABC, MULTIPLIERS),
        "two groups": lambda: layerwise(adam(0.01), {"a": "a", "bc": ["b", "c"]}),
        "function": lambda: layerwise(adam(0.01), lambda v: v.path[:1], MULTIPLIERS),
        "amsgrad": lambda: layerwise(adam(0.01, amsgrad=True), ABC),
        "averages": lambda: layerwise(adam(0.01, use_ema=True), ABC),
        "momentum": lambda: layerwise(sgd(0.01, momentum=0.9), ABC),
        "lion": lambda: layerwise(lion(0.01), ABC),
        "nadam": lambda: layerwise(keras.optimizers.Nadam(0.01), ABC),
        "sgd": lambda: layerwise(sgd(0.01), ABC),
        "centered": lambda: layerwise(rmsprop(0.01, centered=True), ABC),
        "rmsprop": lambda: layerwise(rmsprop(0.01, momentum=0.9), ABC),
        "scaled": lambda: scaled(layerwise(adam(0.01), ABC, MULTIPLIERS)),
        "scaled two": lambda: scaled(layerwise(adam(0.01), {"a": "a", "bc": "[bc]"})),
    }


def one_per_group():
    one = keras.optimizers.Adam(0.01)
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(one))


# Who may take whose state; nobody else.
COMPATIBLE = {("adam", "function"), ("function", "adam")}


@pytest.mark.parametrize(
    ("writer", "trained"),
    [
        *((name, True) for name in optimizers()),
        *((name, False) for name in ("plain adam", "adam", "function", "scaled")),
    ],
)
def test_state_is_loaded_whole_or_skipped_with_a_warning(tmp_path, writer, trained):
    """By each of 17 optimizers, some of them not built, wherever one of two is ours.

    What Keras's `LossScaleOptimizer` loads by position, it does for any optimizer.
    """
    model = small_model()
    model.compile(optimizers()[writer](), "mse")
    if trained:
        model.fit(X, Y, verbose=0)
    file = tmp_path / "m.weights.h5"
    model.save_weights(file)
    keras_own = {"plain adam", "plain lion", "scaled adam", "multi"}
    unbuilt = {"plain adam", "scaled adam", "adam", "function", "lion", "scaled"}
    for reader, make in optimizers().items():
        for built in (True, False):
            if {reader, writer} <= keras_own or (not built and reader not in unbuilt):
                continue
            other = small_model(seed=1)
            other.compile(make(), "mse")
            if built:
                other.optimizer.build(other.trainable_variables)
            before = state(other)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always", UserWarning)
                other.load_weights(file)
            assert_equal(weights(other), weights(model))
            fits = reader == writer or (trained and (writer, reader) in COMPATIBLE)
            if trained == built and fits:
                assert_equal(state(other), state(model))
                assert not warned
            elif {reader, writer} != {"scaled", "scaled two"}:
                assert_equal(state(other), before)
                assert any("Skipping" in str(w.message) for w in warned)
            elif built:
                inner = other.optimizer.inner_optimizer
                given = {"scaled": MULTIPLIERS, "scaled two": [1, 1]}[reader]
                assert [*inner.multipliers.values()] == [*np.float32(given)]


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.__name__)
def test_the_state_of_every_optimizer_loads(tmp_path, inner):
    model, other = (compiled(inner=inner(0.01)) for _ in range(2))
    model.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    assert_equal(state(other), state(model))
    assert int(other.optimizer.iterations) == 1


def test_state_of_one_layer_is_not_taken_for_that_of_another(tmp_path):
    """Equal shapes, and one layer frozen here, another there."""

    def frozen(layer, groups):
        names = [*"abcd"]
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((4,)), *(keras.layers.Dense(4, name=n) for n in names)]
        )
        model.get_layer(layer).trainable = False
        adam = keras.optimizers.Adam(0.01)
        model.compile(LayerwiseOptimizer(adam, groups), "mse")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A group matches no trainable")
            model.optimizer.build(model.trainable_variables)
        return model

    for groups in ({n: n for n in "abcd"}, {"body": "[a-c]", "head": "d"}):
        model, other, same = (frozen(layer, groups) for layer in "aba")
        model.fit(X, X, verbose=0)
        model.save_weights(tmp_path / "m.weights.h5")
        before = state(other)
        with pytest.warns(UserWarning, match="trains 'a/kernel' where .* 'b/kernel'"):
            other.load_weights(tmp_path / "m.weights.h5")
        assert_equal(state(other), before)
        same.load_weights(tmp_path / "m.weights.h5")
        assert_equal(state(same), state(model))


def test_what_an_inner_optimizer_saves_of_its_own_is_kept(tmp_path):
    class Counting(keras.optimizers.SGD):
        counter = 0

        def save_own_variables(self, store):
            super().save_own_variables(store)
            store["counter"] = np.array(self.counter)

        def load_own_variables(self, store):
            super().load_own_variables({k: store[k] for k in store if k.isdecimal()})
            self.counter = int(store["counter"])

    model, other = (compiled(inner=Counting(0.01, momentum=0.9)) for _ in range(2))
    model.fit(X, Y, verbose=0)
    model.optimizer.inner_optimizer.counter = 7
    model.save_weights(tmp_path / "m.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    assert other.optimizer.inner_optimizer.counter == 7
    assert_equal(state(other), state(model))


def test_a_layout_of_a_later_version_is_skipped(tmp_path):
    model, other = compiled(), compiled(multipliers=None)
    model.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other.optimizer.build(other.trainable_variables)
    before = state(other)
    for content in (b'{"format": 2, "more": []}', b"[]", b"{"):
        with h5py.File(tmp_path / "m.weights.h5", "a") as file:
            place = file["optimizer/group_state/vars"]
            del place["layout"]
            place["layout"] = np.frombuffer(content, np.uint8)
        with pytest.warns(UserWarning, match="another version of this package"):
            other.load_weights(tmp_path / "m.weights.h5")
        assert_equal(state(other), before)
        assert_equal(weights(other), weights(model))


REGISTRATION = {
    "first": "import lrdist_keras, keras",
    "last": "import keras, lrdist_keras",
    "only looked for": """
        import importlib.util, lrdist_keras
        importlib.util.find_spec("keras")
        import keras""",
    "from": "import lrdist_keras\n        from keras import models",
    "failed at first": """
        import os, sys, lrdist_keras
        backend, os.environ["KERAS_BACKEND"] = os.environ["KERAS_BACKEND"], "none"
        try:
            import keras
        except ValueError:
            os.environ["KERAS_BACKEND"] = backend
            for name in [n for n in sys.modules if n.split(".")[0] == "keras"]:
                del sys.modules[name]
        import keras""",
    "in threads": """
        import threading, lrdist_keras
        failed = []
        def run(code):
            try:
                exec(code)
            except BaseException as error:
                failed.append(error)
        codes = ("import keras", "from lrdist_keras import LayerwiseOptimizer") * 2
        threads = [threading.Thread(target=run, args=(code,)) for code in codes]
        [t.start() for t in threads], [t.join() for t in threads]
        assert not failed, failed""",
}


@pytest.mark.parametrize("order", REGISTRATION)
def test_a_file_loads_after_the_package_alone_is_imported(order):
    code = f"""
        {REGISTRATION[order]}
        import keras, sys
        assert "lrdist_keras.optimizer" not in sys.modules or {order == "in threads"}
        model = keras.models.load_model({str(CHECKPOINTS / "dense_0.1.keras")!r})
        assert type(model.optimizer).__name__ == "LayerwiseOptimizer"
        assert isinstance(model.optimizer, keras.optimizers.Optimizer)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert run.returncode == 0


def test_a_model_of_version_0_1_loads():
    """Two steps of Adam at 0.01, saved when the state lay in other places."""
    model = keras.models.load_model(CHECKPOINTS / "dense_0.1.keras")
    np.testing.assert_allclose(
        model.predict(X, verbose=0)[:2],
        [[0.7067385, -0.1638914], [-0.7758036, 0.05640855]],
        rtol=1e-5,
    )
    optimizer = model.optimizer
    assert int(optimizer.iterations) == 2
    assert [*optimizer.multipliers.values()] == [*np.float32(MULTIPLIERS)]
    with zipfile.ZipFile(CHECKPOINTS / "dense_0.1.keras") as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(content) as file:
        saved = file["optimizer/inner_optimizer/vars"]
        assert len(saved) == len(optimizer.inner_optimizer.variables) == 14
        for i, variable in enumerate(optimizer.inner_optimizer.variables):
            np.testing.assert_array_equal(to_numpy(variable), saved[str(i)])


def test_a_task_of_version_0_1_loads_into_one_that_is_compiled_with_ours():
    """Its own Adam takes the old state for its own; the documented way out."""
    keras_hub = pytest.importorskip("keras_hub", reason="needs KerasHub")
    file = CHECKPOINTS / "bert_0.1.keras"
    backbone = keras_hub.models.BertBackbone(10, 1, 1, 2, 2, max_sequence_length=4)
    task = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor=None)
    with pytest.raises(ValueError, match="could not be loaded"):
        task.load_weights(file)
    adam = keras.optimizers.Adam(1e-3)
    task.compile(LayerwiseOptimizer(adam, task, {"head": 10.0}))
    task.optimizer.build(task.trainable_variables)
    task.load_weights(file)
    assert int(task.optimizer.iterations) == 1
    rng = np.random.default_rng(0)
    tokens = {
        "token_ids": rng.integers(0, 10, (8, 4)),
        "segment_ids": np.zeros((8, 4), "int32"),
        "padding_mask": np.ones((8, 4), "int32"),
    }
    logits = keras.ops.convert_to_numpy(task(tokens))
    np.testing.assert_allclose(logits[0], [0.00970969, -0.01306387], rtol=1e-4)


def test_a_checkpoint_in_shards_loads(tmp_path):
    model, other = compiled(), compiled(multipliers=None)
    model.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "m.weights.json", max_shard_size=1e-6)
    assert len([*tmp_path.glob("*.h5")]) > 1
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.json")
    assert_equal(state(other), state(model))


@pytest.mark.parametrize("kind", ["mapping", "function", "schedule", "scaled"])
def test_keras_file_round_trip(tmp_path, kind):
    if kind == "function":
        model = compiled(lambda v: v.path.split("/")[0], dict(a=0.5, b=0.3))
    elif kind == "schedule":
        model = compiled(multipliers=GradualUnfreezing(1, MULTIPLIERS))
    else:
        model = compiled()
    if kind == "scaled":
        wrapped = keras.optimizers.LossScaleOptimizer(model.optimizer, 8.0)
        model.compile(wrapped, "mse")
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save(tmp_path / "m.keras")
    other = keras.models.load_model(tmp_path / "m.keras")
    for a, b in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*(np.array(v) for v in map(to_numpy, (a, b))))
    for each in (model, other):
        each.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@keras.saving.register_keras_serializable(package="tests")
class Regressor(keras.Model):
    """Loaded again, its variables have other paths: the scope of the model is gone."""

    def __init__(self, **options):
        super().__init__(**options)
        self.hidden = keras.layers.Dense(5)
        self.final = keras.layers.Dense(2)

    def call(self, inputs):
        return self.final(self.hidden(inputs))


def test_keras_file_of_a_subclassed_model(tmp_path):
    keras.utils.set_random_seed(0)
    model = Regressor()
    kind = lambda v: "biases" if "bias" in v.path else "kernels"  # noqa: E731
    model.compile(LayerwiseOptimizer(keras.optimizers.Adam(0.1), kind, [0.5, 2]), "mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "m.keras")
    other = keras.models.load_model(tmp_path / "m.keras")
    assert other.optimizer.multipliers == {"kernels": 0.5, "biases": 2.0}
    for each in (model, other):
        each.fit(X, Y, verbose=0)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_configuration_serves_a_model_with_new_names():
    optimizer = LayerwiseOptimizer(
        keras.optimizers.Adam(), lambda v: "even" if v.shape[-1] % 2 else "odd"
    )
    optimizer.build(built_regressor().trainable_variables)
    copy = LayerwiseOptimizer.from_config(optimizer.get_config())
    copy.build(built_regressor().trainable_variables)
    assert copy.get_config()["indices"] == optimizer.get_config()["indices"]


def built_regressor():
    model = Regressor()
    model(X)
    return model


@pytest.mark.parametrize("frozen", ["all", "a"])
def test_keras_file_of_a_model_frozen_since(tmp_path, frozen):
    model = compiled()
    model.fit(X, Y, verbose=0)
    (model if frozen == "all" else model.get_layer("a")).trainable = False
    model.save(tmp_path / "m.keras")
    with pytest.warns(UserWarning) as warned:
        other = keras.models.load_model(tmp_path / "m.keras")
    assert any("matches no trainable variable" in str(w.message) for w in warned)
    np.testing.assert_array_equal(
        other.predict(X, verbose=0), model.predict(X, verbose=0)
    )
    if frozen == "a":
        other.fit(X, Y, verbose=0)
        before, after = model.get_layer("c"), other.get_layer("c")
        assert np.abs(to_numpy(after.kernel) - to_numpy(before.kernel)).max() > 1e-4


def test_an_older_file_format_is_loaded(tmp_path):
    model = small_model()
    optimizer = LayerwiseOptimizer(keras.optimizers.Adam(0.1), ABC)
    model.compile(optimizer, keras.losses.MeanSquaredError())
    model.fit(X, Y, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "m.h5")
        other = keras.models.load_model(tmp_path / "m.h5")
    np.testing.assert_allclose(
        other.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-6
    )


def to_numpy(variable):
    return keras.ops.convert_to_numpy(variable.value)


def test_set_weights_moves_the_whole_state():
    model, other = compiled(), compiled(multipliers=None)
    model.fit(X, Y, verbose=0)
    other.set_weights(model.get_weights())
    other.optimizer.build(other.trainable_variables)
    other.optimizer.set_weights([to_numpy(v) for v in model.optimizer.variables])
    assert other.optimizer.multipliers == model.optimizer.multipliers
    assert int(other.optimizer.iterations) == 1
    for each in (model, other):
        each.train_on_batch(X, Y)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_set_weights_of_other_groups_changes_nothing():
    model, other = compiled(), compiled({"a": "a", "bc": ["b", "c"]}, None)
    for each in (model, other):
        each.fit(X, Y, verbose=0)
    before = state(other)
    with pytest.raises(ValueError, match="each of the 2 groups. Received: shape"):
        other.optimizer.set_weights(state(model))
    assert_equal(state(other), before)


def test_groups_that_are_not_known_yet_take_none(tmp_path):
    """SGD without momentum has as many variables before it is built as after."""
    model = compiled(inner=keras.optimizers.SGD(0.01))
    model.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    kind = lambda v: "biases" if "bias" in v.path else "kernels"  # noqa: E731
    other = compiled(kind, [0.5, 2.0], keras.optimizers.SGD(0.01))
    with pytest.warns(UserWarning, match="not known before it is built"):
        other.load_weights(tmp_path / "m.weights.h5")
    other.fit(X, Y, verbose=0)
    assert dict(other.optimizer.multipliers) == {"kernels": 0.5, "biases": 2.0}


def test_callbacks_of_the_learning_rate(tmp_path):
    model = compiled(inner=keras.optimizers.SGD(0.5))
    model.fit(
        X, Y, epochs=3, verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        ],
    )  # fmt: skip
    assert float(to_numpy(model.optimizer.learning_rate)) == 0.0625
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=1, min_delta=1e9
    )
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[plateau])
    assert float(to_numpy(model.optimizer.learning_rate)) < 0.0625
    assert "learning_rate" in history.history


def test_a_callback_between_batches_reads_and_assigns():
    """Batch i runs at the multiplier (i + 1) / 4 that the callback set before it."""

    class Ramp(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            optimizer = self.model.optimizer
            assert optimizer.multipliers["c"] == (batch / 4 if batch else 1)
            optimizer.multipliers = [(batch + 1) / 4] * 3

    model = compiled(ABC, [1, 1, 1], keras.optimizers.SGD(0.1))
    other = small_model()
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(X, Y, callbacks=[Ramp()], **options)
    other.compile(keras.optimizers.SGD(0.1), "mse")
    for batch in range(4):
        rows = slice(4 * batch, 4 * batch + 4)
        other.optimizer.learning_rate = 0.1 * (batch + 1) / 4
        other.fit(X[rows], Y[rows], **options)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_swap_ema_weights(scaled):
    """Evaluation sees the averages, training goes on with the weights."""

    def evaluated(optimizer, scaled=False):
        model = small_model()
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 4.0)
        model.compile(optimizer, "mse")
        history = model.fit(
            X, Y, epochs=3, shuffle=False, verbose=0, validation_data=(X, Y),
            callbacks=[keras.callbacks.SwapEMAWeights()],
        )  # fmt: skip
        return history.history["val_loss"], model.get_weights()

    sgd = {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.9}
    ours = evaluated(LayerwiseOptimizer(keras.optimizers.SGD(**sgd), ABC), scaled)
    # The callback unwraps one optimizer, so an unscaled one is the reference.
    plain = evaluated(keras.optimizers.SGD(**sgd))
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-5)
    for a, b in zip(ours[1], plain[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_tensorboard_writes_the_learning_rate(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    from tensorflow.core.util import event_pb2
    from tensorflow.python.lib.io import tf_record

    model = compiled(inner=keras.optimizers.SGD(0.25))
    board = keras.callbacks.TensorBoard(tmp_path, write_steps_per_second=False)
    model.fit(X, Y, verbose=0, callbacks=[board])
    rates = [
        np.frombuffer(value.tensor.tensor_content, "float32")[0]
        for path in tmp_path.rglob("events.*")
        for record in tf_record.tf_record_iterator(str(path))
        for value in event_pb2.Event.FromString(record).summary.value
        if value.tag == "epoch_learning_rate"
    ]
    assert rates == [0.25]


def test_the_configuration_keeps_everything():
    optimizer = LayerwiseOptimizer(
        keras.optimizers.Adam(0.5, clipnorm=2.0), ABC, MULTIPLIERS, name="mine"
    )
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(optimizer)
    )
    assert copy.get_config() == optimizer.get_config()
    assert copy.name == "mine" and copy.inner_optimizer.clipnorm == 2.0
    assert copy.multipliers == dict(zip(ABC, MULTIPLIERS, strict=True))


def test_decoded_multiplier_survives_float32():
    optimizer = one_group(keras.optimizers.SGD(1.0), 0.1)
    variables = make_variables()
    train(optimizer, make_gradients(1), variables)
    assert optimizer.multipliers == {"all": float(np.float32(0.1))}
