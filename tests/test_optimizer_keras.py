"""The cases that Keras's tests ask of every optimizer, asked of the wrapped one."""

import pickle

from optimizer_cases import (
    ABC,
    BACKEND,
    INNER,
    one_group,
    set_values,
    small_data,
    small_model,
    values,
)

# isort: split
import keras
import numpy as np
import pytest
from keras import ops

from lrdist_keras.optimizer import LayerwiseOptimizer

SGD = keras.optimizers.SGD
X, Y = small_data()
every_inner = pytest.mark.parametrize("inner", INNER, ids=lambda i: i.__name__)


def variable(value, name=None):
    return keras.Variable(np.array(value, "float32"), name=name)


def tensor(value):
    return ops.convert_to_tensor(np.array(value, "float32"))


def apply(optimizer, *pairs):
    optimizer.apply_gradients([(tensor(g), v) for g, v in pairs])


@every_inner
def test_a_step_then_a_run(inner):
    """One element after another, as the plain optimizer does it."""
    make = lambda: inner(0.05)  # noqa: E731
    results = []
    for optimizer in (make(), one_group(make())):
        x, matrix = variable(np.ones(10)), variable(np.ones((2, 3)))
        run = []
        for step in range(5):
            gradient = np.full(10, 0.01) if step == 0 else np.arange(0.1, 1.1, 0.1)
            apply(optimizer, (gradient, x), (gradient[:6].reshape(2, 3), matrix))
            run += values([x, matrix])
        results.append(run)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


# Lamb scales its step by the norm of the weights and ScheduleFreeAdamW interpolates
# with the copy made before: zero gradients leave more than decay in them.
@every_inner
def test_decay_alone(inner):
    """Zero gradients: v (1 - wd r m), excluded ones stay."""
    if inner in (keras.optimizers.ScheduleFreeAdamW, keras.optimizers.Ftrl):
        pytest.skip("its update of zero gradients is not zero")
    options = {"weight_decay": 0.004}
    if inner is keras.optimizers.Muon:
        options["adam_weight_decay"] = 0.004
    optimizer = one_group(inner(1.0, **options), 0.5)
    kept = [variable(2.0), variable(2.0, name="exclude")]
    decayed = variable(2.0)
    optimizer.exclude_from_weight_decay(var_list=kept[:1], var_names=["exclude"])
    apply(optimizer, (0.0, kept[0]), (0.0, kept[1]), (0.0, decayed))
    np.testing.assert_allclose(values(kept), [2.0, 2.0], rtol=1e-7)
    np.testing.assert_allclose(values([decayed]), [2 * (1 - 0.002)], rtol=1e-6)


@every_inner
def test_configuration_and_pickle(inner):
    optimizer = one_group(inner(0.5, clipnorm=2.0, use_ema=True))
    x = variable([1.0, 2.0])
    optimizer.build([x])
    config = optimizer.get_config()
    assert type(optimizer).from_config(config).get_config() == config
    fresh = LayerwiseOptimizer(inner(), {"all": "*"}, [0.5])
    assert pickle.loads(pickle.dumps(fresh)).get_config() == fresh.get_config()


@every_inner
def test_accumulation_is_the_mean_gradient(inner):
    if inner in (keras.optimizers.Muon, keras.optimizers.Lamb):
        options = {}
    else:
        options = {"weight_decay": 0.05}
    single = one_group(inner(0.01, **options), 0.5)
    third = one_group(inner(0.01, gradient_accumulation_steps=3, **options), 0.5)
    x, y = variable([[0.9], [0.5]]), variable([[0.9], [0.5]])
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradients = rng.uniform(size=(3, 2, 1)).astype("float32")
        apply(single, (gradients.mean(0), x))
        for gradient in gradients:
            apply(third, (gradient, y))
    np.testing.assert_allclose(*values([x, y]), rtol=2e-5)
    assert int(third.iterations) == int(single.iterations) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clipnorm": 1.0}, [2**-0.5, 2**-0.5]),
        ({"clipvalue": 1.0}, [1.0, 1.0]),
        ({"global_clipnorm": 1.0}, [2**-0.5, 2**-0.5]),
        ({"loss_scale_factor": 50.0}, [2.0, 2.0]),
    ],
)
def test_gradients_are_clipped_and_unscaled(options, expected):
    optimizer, x = one_group(SGD(1.0, **options)), variable([0.0, 0.0])
    apply(optimizer, ([100.0, 100.0], x))
    np.testing.assert_allclose(values([x])[0], -np.array(expected), rtol=1e-6)
    assert optimizer.scale_loss(1.0) == options.get("loss_scale_factor", 1.0)


def test_averages():
    """w: 2, 1, then in place of 0 the average .9 (.9 2 + .1 1) + .1 0."""
    optimizer = one_group(
        SGD(1.0, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    )
    x, seen = variable([3.0]), []
    for _ in range(3):
        apply(optimizer, ([1.0], x))
        seen.append(float(values([x])[0][0]))
    np.testing.assert_allclose(seen, [2.0, 1.0, 0.9 * 1.9 + 0.1 * 0.0], rtol=1e-6)
    apply(optimizer, ([1.0], x))  # w = 0.71, the average .9 1.71 + .1 0.71
    optimizer.finalize_variable_values([x])
    np.testing.assert_allclose(values([x])[0], [0.9 * 1.71 + 0.1 * 0.71], rtol=1e-6)


def test_counting_and_empty_gradients():
    optimizer, x, y = one_group(SGD(1.0)), variable([3.0]), variable([3.0])
    assert int(optimizer.iterations) == 0
    optimizer.build([x, y])
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply_gradients([(None, x), (None, y)])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        count = optimizer.apply_gradients([(None, x), (tensor([1.0]), y)])
    assert int(count) == int(optimizer.iterations) == 1
    np.testing.assert_array_equal(np.ravel(values([x, y])), [3.0, 2.0])
    optimizer.apply([tensor([1.0]), tensor([1.0])])
    np.testing.assert_array_equal(np.ravel(values([x, y])), [2.0, 1.0])
    optimizer.apply([])
    assert int(optimizer.iterations) == 2


def test_learning_rates_of_every_kind():
    for rate in (0.1, lambda: 0.1, keras.optimizers.schedules.ExponentialDecay(
        0.1, 1, 1.0
    )):  # fmt: skip
        optimizer, x = one_group(SGD(rate), 0.5), variable([1.0])
        apply(optimizer, ([1.0], x))
        np.testing.assert_allclose(values([x])[0], [0.95], rtol=1e-6)
    optimizer = one_group(SGD(0.1))
    optimizer.build([variable([1.0])])
    before = len(optimizer.variables)
    optimizer.learning_rate = keras.optimizers.schedules.CosineDecay(0.1, 4)
    assert len(optimizer.variables) == before - 1


@pytest.mark.parametrize("steps", [None, 2])
def test_overwriting_variables_take_their_gradients(steps):
    optimizer = one_group(SGD(1.0, gradient_accumulation_steps=steps), 0.5)
    x, y = variable([1.0, 2.0]), variable([1.0, 2.0])
    x.overwrite_with_gradient = True
    for gradient in [1.0, 2.0][: steps or 1]:
        apply(optimizer, ([gradient] * 2, x), ([gradient] * 2, y))
    last, mean = (2.0, 1.5) if steps else (1.0, 1.0)
    np.testing.assert_allclose(values([x])[0], [last, last])
    np.testing.assert_allclose(values([y])[0], [1 - mean / 2, 2 - mean / 2])


def test_constraints():
    x = variable([-0.5, 0.5])
    x.constraint = keras.constraints.NonNeg()
    apply(one_group(SGD(1e-4)), ([0.0, 0.0], x))
    np.testing.assert_array_equal(values([x])[0], [0.0, 0.5])


def test_float8_layers_that_overwrite():
    """Weights by the rate of the group, scales and histories by their gradients."""

    def trained(make):
        model = small_model()
        for name in "ab":
            model.get_layer(name).quantize("float8")
        model.compile(make(), "mse")
        model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return {v.path: values([v])[0] for v in model.trainable_variables}

    plain = trained(lambda: SGD(0.1))
    ours = trained(lambda: LayerwiseOptimizer(SGD(0.1), ABC))
    frozen = trained(lambda: LayerwiseOptimizer(SGD(0.1), ABC, {"a": 0.0}))
    assert any(path.endswith("amax_history") for path in plain)
    for path, value in plain.items():
        np.testing.assert_array_equal(ours[path], value)
    start = {v.path: values([v])[0] for v in small_model().trainable_variables}
    for path in ("a/kernel", "a/bias"):
        np.testing.assert_array_equal(frozen[path], start[path])
    assert np.abs(frozen["a/inputs_amax_history"]).max() > 0
    assert np.abs(frozen["b/kernel"] - start["b/kernel"]).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [{"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}],
    ids=lambda options: next(iter(options)),
)
def test_every_way_to_run_a_step(options):
    if BACKEND == "torch" and "jit_compile" in options:
        pytest.skip("compiling with PyTorch needs a C++ compiler and minutes")
    if BACKEND == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras has this on other backends only")

    def trained(options):
        model = small_model()
        optimizer = LayerwiseOptimizer(keras.optimizers.Adam(0.01), ABC, [0, 0.5, 1])
        model.compile(optimizer, "mse", **options)
        model.fit(X, Y, batch_size=2, shuffle=False, verbose=0)
        return model.get_weights()

    expected = trained({})
    for a, b in zip(trained(options), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    for a, b in zip(expected[:2], small_model().get_weights(), strict=False):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("gradient", [4.0, np.inf])
def test_loss_scale_outermost(gradient):
    """A finite step is unscaled; an infinite one is skipped and halves the scale."""
    ours = one_group(SGD(0.5), 0.5)
    optimizer = keras.optimizers.LossScaleOptimizer(ours, initial_scale=4.0)
    x = variable([1.0])
    if BACKEND == "jax":
        optimizer.build([x])
        weights, state = optimizer.stateless_apply(
            [v.value for v in optimizer.variables], [tensor([gradient])], [x.value]
        )
        set_values([x], weights)
        set_values(optimizer.variables, state)
    else:
        apply(optimizer, ([gradient], x))
    finite = np.isfinite(gradient)
    np.testing.assert_allclose(values([x])[0], [1 - 0.25 * finite])
    assert float(optimizer.dynamic_scale.value) == (4.0 if finite else 2.0)
    assert int(ours.iterations) == finite


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains(policy):
    model = small_model(dtype=policy)
    ours = one_group(SGD(0.1))
    model.compile(ours, "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4)).astype("float32")
    losses = model.fit(x, x[:, :2], epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert int(ours.iterations) == 20


def test_frozen_shared_and_lora_layers():
    shared = keras.layers.Dense(4, name="shared")
    frozen = keras.layers.Dense(4, name="frozen", trainable=False)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2, name="head")(shared(frozen(shared(inputs))))
    model = keras.Model(inputs, outputs)
    shared.enable_lora(2)
    groups = {"lora": "shared", "head": "head"}
    optimizer = LayerwiseOptimizer(SGD(0.1), groups, [1.0, 0.0])
    model.compile(optimizer, "mse")
    before = {v.path: values([v])[0] for v in model.variables}
    model.fit(np.ones((4, 4)), np.ones((4, 2)), epochs=2, verbose=0)
    moved = {
        v.path.split("/")[-1]
        for v in model.variables
        if v.path in before and np.abs(values([v])[0] - before[v.path]).max() > 0
    }
    assert moved == {"bias", "lora_kernel_a", "lora_kernel_b"}
    model.get_layer("frozen").trainable = True
    with pytest.raises(ValueError, match="compile again with a new optimizer"):
        optimizer.build(model.trainable_variables)
