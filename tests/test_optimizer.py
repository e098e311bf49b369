"""Updates: agreement with one optimizer per group, and what is refused."""

import ast
import inspect
import re
from pathlib import Path

from optimizer_cases import (  # first, because it chooses Keras's backend
    ABC,
    BACKEND,
    GROUPS,
    INNER,
    NOT_INNER,
    SHAPES,
    by_hand,
    make_gradients,
    make_variables,
    one_group,
    set_values,
    small_data,
    small_model,
    train,
    values,
)

# isort: split
import keras
import numpy as np
import pytest

import lrdist_keras
from lrdist_keras import (
    PatternScheme,
    Scheme,
    kenneweg2022,
    llrd,
    transformer_groups,
)
from lrdist_keras.distribution import Distribution
from lrdist_keras.optimizer import GradualUnfreezing, LayerwiseOptimizer

ADAM = keras.optimizers.Adam
SGD = keras.optimizers.SGD
OPTIONS = {
    "decay-averaging-clipnorm": {
        "weight_decay": 0.05,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "clipnorm": 0.3,
    },
    "accumulation": {"weight_decay": 0.05, "gradient_accumulation_steps": 2},
}
VARIANTS = [
    (SGD, {"momentum": 0.9, "clipvalue": 0.3}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (keras.optimizers.RMSprop, {"momentum": 0.9, "centered": True}),
    (ADAM, {"amsgrad": True}),
    (keras.optimizers.Adafactor, {"relative_step": False}),
    (keras.optimizers.Muon, {"weight_decay": None, "adam_weight_decay": 0.1}),
    (keras.optimizers.ScheduleFreeAdamW, {"warmup_steps": 3}),
]
MOMENTUM = [SGD, keras.optimizers.RMSprop]
CASES = [(inner, options) for inner in INNER for options in OPTIONS.values()] + VARIANTS
CASE_NAMES = [f"{i.__name__}-{name}" for i in INNER for name in OPTIONS] + [
    f"{inner.__name__}-{'-'.join(options)}" for inner, options in VARIANTS
]


@pytest.mark.parametrize(("inner", "options"), CASES, ids=CASE_NAMES)
def test_agrees_with_one_optimizer_per_group(inner, options):
    gradients, rate = make_gradients(4), 0.01
    variables, other_variables = make_variables(), make_variables()
    ours = LayerwiseOptimizer(inner(rate, **options), GROUPS)
    other = by_hand(lambda **rate: inner(**rate, **options), rate, [1, 1, 1])
    ours.build(variables)
    other.build(other_variables)
    states = [values(ours.variables), values(other.variables)]
    weights = values(variables)

    def both(multipliers):
        set_values([*variables, *other_variables], weights + weights)
        set_values(ours.variables, states[0])
        set_values(other.variables, states[1])
        ours.multipliers = multipliers
        for optimizer, m in zip(other.optimizers, multipliers, strict=True):
            optimizer.learning_rate = rate * m
        results = train(ours, gradients, variables)
        return zip(results, train(other, gradients, other_variables), strict=True)

    # A power of two scales a float32 exactly ...
    for a, b in both([0.25, 0.5, 2.0]):
        np.testing.assert_array_equal(a, b)
    # ... others round once more, by up to 6e-8 of the rate.
    for a, b in both([0.3, 0.7, 1.9]):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    if options in OPTIONS.values():
        plain = train(inner(rate, **options), gradients)
        for (a, _), b in zip(both([1, 1, 1]), plain, strict=True):
            np.testing.assert_array_equal(a, b)


# Exception: Ftrl divides by the learning rate and refuses 0.
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.__name__)
def test_zero_freezes(inner):
    if inner is keras.optimizers.Ftrl:
        with pytest.raises(ValueError, match="must be positive, because `Ftrl`"):
            LayerwiseOptimizer(inner(), GROUPS, {"body": 0.0})
        return
    momentum = {"momentum": 0.9} if inner in MOMENTUM else {}
    optimizer = LayerwiseOptimizer(inner(0.01, weight_decay=0.1, **momentum), GROUPS)
    variables, gradients = make_variables(), make_gradients(8)

    def moved(gradients):
        before = values(variables)
        after = train(optimizer, gradients, variables)
        return [np.abs(a - b).max() for a, b in zip(after, before, strict=True)]

    optimizer.multipliers = [1.0, 0.0, 1.0]
    np.testing.assert_array_equal(moved(gradients[:3])[1:3], 0)
    optimizer.multipliers = [1.0, 1.0, 1.0]
    assert min(moved(gradients[3:6])) > 1e-5
    optimizer.multipliers = [1.0, 0.0, 1.0]  # with momentum gathered
    first, *frozen, _, last = moved(gradients[6:])
    np.testing.assert_array_equal(frozen, 0)
    assert min(first, last) > 1e-5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weight_decay", 0.1),
        ("clipnorm", 0.5),
        ("global_clipnorm", 0.5),
        ("clipvalue", 0.5),
        ("use_ema", True),
        ("ema_momentum", 0.5),
        ("ema_overwrite_frequency", 3),
        ("gradient_accumulation_steps", 2),
        ("loss_scale_factor", 8.0),
    ],
)
def test_options_of_the_inner_optimizer(option, value):
    optimizer = LayerwiseOptimizer(SGD(0.1), GROUPS)
    assert getattr(optimizer, option) == getattr(SGD(0.1), option)
    setattr(optimizer, option, value)
    assert getattr(optimizer, option) == value
    variables, gradients = make_variables(), make_gradients(4)
    results = train(optimizer, gradients, variables)
    assert getattr(optimizer, option) == getattr(optimizer.inner_optimizer, option)
    assert getattr(optimizer.inner_optimizer, option) == value
    plain = train(SGD(0.1, **{option: value}), gradients)
    for a, b in zip(results, plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_exported_optimizer_is_covered():
    exported = {
        name
        for name, value in vars(keras.optimizers).items()
        if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer)
    }
    assert {i.__name__ for i in INNER} == exported - set(NOT_INNER)
    assert len(INNER) >= 14


def test_update_and_decay_by_hand():
    """SGD with decay: v (1 - wd r m) - r m g, with r m the group's rate."""
    gradients = make_gradients(1)
    optimizer = LayerwiseOptimizer(
        SGD(0.1, weight_decay=0.5), GROUPS, {"embeddings": 0.5, "head": 3.0}
    )
    after = train(optimizer, gradients)
    rates = 0.1 * np.array([0.5, 1.0, 1.0, 3.0, 3.0])
    before = values(make_variables())
    for v, new, g, rate in zip(before, after, gradients[0], rates, strict=True):
        np.testing.assert_allclose(new, v * (1 - 0.5 * rate) - rate * g, rtol=1e-5)


def test_the_global_norm_is_clipped_over_all_groups():
    gradients = make_gradients(1)
    optimizer = LayerwiseOptimizer(SGD(0.1, global_clipnorm=1.0), GROUPS, [0.5, 1, 2])
    after = train(optimizer, gradients)
    norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients[0]))
    rates = 0.1 * np.array([0.5, 1.0, 1.0, 2.0, 2.0])
    before = values(make_variables())
    for v, new, g, rate in zip(before, after, gradients[0], rates, strict=True):
        np.testing.assert_allclose(new, v - rate * g / norm, rtol=1e-5)
    with pytest.raises(ValueError, match="global norm of each group by itself"):
        optimizer.to_multi_optimizer()


def test_exclusion_from_decay_is_the_inner_optimizers():
    optimizer = LayerwiseOptimizer(SGD(1.0, weight_decay=0.5), GROUPS, [1, 0.5, 1])
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    variables = make_variables()
    before = values(variables)
    zeros = [[np.zeros_like(v) for v in before]]
    after = train(optimizer, zeros, variables)
    for v, new, factor in zip(before, after, [0.5, 0.75, 1, 0.5, 1], strict=True):
        np.testing.assert_allclose(new, factor * v, rtol=1e-6)


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.__name__)
def test_to_multi_optimizer(inner):
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 10)
    ours = LayerwiseOptimizer(
        inner(schedule, weight_decay=0.1), GROUPS, [0.25, 0.5, 2.0]
    )
    ours.exclude_from_weight_decay(var_names=["bias"])
    variables = make_variables()
    ours.build(variables)
    multi = ours.to_multi_optimizer()
    start, gradients = values(variables), make_gradients(3)
    expected = train(ours, gradients, variables)
    set_values(variables, start)
    if inner is keras.optimizers.ScheduleFreeAdamW:  # it copies the weights when built
        multi = ours.to_multi_optimizer()
    for a, b in zip(train(multi, gradients, variables), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert len(multi.optimizers) == 3


def test_multipliers_are_read_and_assigned():
    variables = make_variables()
    optimizer = LayerwiseOptimizer(SGD(1.0), GROUPS, {"head": 3.0})
    assert optimizer.multipliers == {"embeddings": 1.0, "body": 1.0, "head": 3.0}
    optimizer.multipliers = [0.5, 2.0, 0.0]
    optimizer.build(variables)
    assert optimizer.multipliers == {"embeddings": 0.5, "body": 2.0, "head": 0.0}
    before, gradients = values(variables), make_gradients(2)
    optimizer.multipliers = {"embeddings": 2.0, "body": 0.0, "head": 1.0}
    middle = train(optimizer, gradients[:1], variables)
    optimizer.multipliers = {**optimizer.multipliers, "body": 4.0}
    after = train(optimizer, gradients[1:], variables)
    for i, (m1, m2) in enumerate(zip([2, 0, 0, 1, 1], [2, 4, 4, 1, 1], strict=True)):
        expected = before[i] - m1 * gradients[0][i]
        np.testing.assert_allclose(middle[i], expected, rtol=1e-5, atol=1e-6)
        expected = expected - m2 * gradients[1][i]
        np.testing.assert_allclose(after[i], expected, rtol=1e-5, atol=1e-6)


def test_own_state_is_one_vector():
    inner = ADAM()
    optimizer = LayerwiseOptimizer(inner, GROUPS)
    optimizer.build(make_variables())
    own = optimizer.variables[: -len(inner.variables)]
    assert [(tuple(v.shape), str(v.dtype)) for v in own] == [((3,), "float32")]
    assert optimizer.variables[1:] == inner.variables


def test_a_function_of_the_step():
    """Group i of n starts at step (n - 1 - i) * steps."""
    schedule = GradualUnfreezing(2, [0.5, 1.0, 2.0])
    optimizer = LayerwiseOptimizer(SGD(1.0), GROUPS, schedule)
    variables, gradients = make_variables(), make_gradients(6)
    for step in range(6):
        before = values(variables)
        after = train(optimizer, gradients[step : step + 1], variables)
        used = [0.5 * (step >= 4), 1.0 * (step >= 2), 2.0]
        assert list(optimizer.multipliers.values()) == used
        for i, group in enumerate([0, 1, 1, 2, 2]):
            expected = before[i] - used[group] * gradients[step][i]
            np.testing.assert_allclose(after[i], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="follow a function of the step"):
        optimizer.multipliers = [1, 1, 1]
    with pytest.raises(ValueError, match="follow a function of the step"):
        optimizer.to_multi_optimizer()


def test_groups_by_a_function():
    def kind(variable):
        return "vectors" if len(variable.shape) == 1 else "matrices"

    optimizer = LayerwiseOptimizer(SGD(1.0), kind, {"vectors": 0.5})
    with pytest.raises(AttributeError, match="optimizer.build"):
        _ = optimizer.multipliers
    gradients = make_gradients(1)
    before, after = values(make_variables()), train(optimizer, gradients)
    for v, new, g in zip(before, after, gradients[0], strict=True):
        rate = 0.5 if v.ndim == 1 else 1.0
        np.testing.assert_allclose(new, v - rate * g, rtol=1e-5, atol=1e-6)
    assert optimizer.multipliers == {"matrices": 1.0, "vectors": 0.5}
    copy = LayerwiseOptimizer.from_config(optimizer.get_config())
    copy.build(make_variables())
    assert copy.multipliers == optimizer.multipliers


def tiny_bert(layers=3):
    import keras_hub

    return keras_hub.models.BertBackbone(
        vocabulary_size=11,
        num_layers=layers,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=8,
    )


def test_rates_of_a_distribution():
    model = tiny_bert()
    distribution = llrd(2e-3, 0.5, Scheme(3))
    optimizer = LayerwiseOptimizer.from_distribution(
        keras.optimizers.AdamW,
        distribution,
        model,
        schedule=lambda peak: keras.optimizers.schedules.CosineDecay(
            0.0, 8, warmup_target=peak, warmup_steps=2
        ),
        weight_decay=0.1,
    )
    optimizer.build(model.trainable_variables)
    schedule = optimizer.inner_optimizer.get_config()["learning_rate"]["config"]
    assert schedule["warmup_target"] == distribution.reference_rate == 2e-3
    assert optimizer.inner_optimizer.weight_decay == 0.1
    for name, multiplier in optimizer.multipliers.items():
        rate = multiplier * schedule["warmup_target"]
        assert rate == pytest.approx(distribution.rates[name], rel=1e-6)
    flat = LayerwiseOptimizer.from_distribution(SGD, distribution, model)
    assert float(flat.learning_rate.value) == np.float32(2e-3)
    with pytest.raises(ValueError, match="resample"):
        LayerwiseOptimizer.from_distribution(SGD, distribution, tiny_bert(2))
    by_name = LayerwiseOptimizer.from_distribution(SGD, "kenneweg2022", model)
    published = kenneweg2022().resample(Scheme(3))
    assert by_name.multipliers == published.multipliers
    with pytest.raises(ValueError, match="one of kenneweg2022.*`Distribution.load`"):
        LayerwiseOptimizer.from_distribution(SGD, "kenneweg2023", model)
    pattern = Distribution(PatternScheme(ABC), {"a": 1.0, "b": 0.5, "c": 2.0})
    by_pattern = LayerwiseOptimizer.from_distribution(SGD, pattern, small_model())
    assert by_pattern.multipliers == {"a": 0.5, "b": 0.25, "c": 1.0}


def test_groups_of_a_model():
    model = tiny_bert()
    optimizer = LayerwiseOptimizer(ADAM(), model, {"head": 10.0})
    assert list(optimizer.multipliers) == list(transformer_groups(model)[1])
    optimizer.build(model.trainable_variables)
    assert optimizer.multipliers["head"] == 10.0


def test_summary():
    optimizer = LayerwiseOptimizer(
        keras.optimizers.AdamW(1e-2, weight_decay=0.1), GROUPS, [0.5, 1.0, 0.0]
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    with pytest.raises(ValueError, match="optimizer.build"):
        optimizer.summary()
    optimizer.build(make_variables())
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["group", "variables", "parameters", "rate", "decay"],
        ["embeddings", "1", "18", "5.000e-03", "5.000e-04 (1/1)"],
        ["body", "2", "16", "1.000e-02", "1.000e-03 (1/2)"],
        ["head", "2", "10", "0.000e+00", "0.000e+00 (1/2)"],
    ]


def wrap_built():
    inner = ADAM()
    inner.build(make_variables())
    LayerwiseOptimizer(inner, GROUPS)


def wrap_again():
    inner = ADAM()
    LayerwiseOptimizer(inner, GROUPS)
    LayerwiseOptimizer(inner, GROUPS)


class OwnCollectiveUpdate(ADAM):
    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        pass


def wrong_schedule(step):
    return np.ones(2, "float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LayerwiseOptimizer("adam", GROUPS), r"`keras.optimizers.AdamW\(2e-5"),
        (wrap_built, "must not be built yet; make a new one"),
        (wrap_again, "already inside another `LayerwiseOptimizer`; make a new one"),
        (
            lambda: LayerwiseOptimizer(LayerwiseOptimizer(ADAM(), GROUPS), GROUPS),
            "must be a plain optimizer; give it one group",
        ),
        (
            lambda: LayerwiseOptimizer(by_hand(SGD, 0.1, [1, 1, 1]), GROUPS),
            "must be a plain optimizer; give it one group",
        ),
        (
            lambda: LayerwiseOptimizer(
                keras.optimizers.LossScaleOptimizer(ADAM()), GROUPS
            ),
            "`LossScaleOptimizer` goes outermost",
        ),
        (
            lambda: LayerwiseOptimizer(OwnCollectiveUpdate(), GROUPS),
            "override `update_step` instead. Received: OwnCollectiveUpdate",
        ),
        (lambda: LayerwiseOptimizer(ADAM(), {}), "at least one group"),
        (lambda: LayerwiseOptimizer(ADAM(), GROUPS, [1.0]), "Received: 1 values"),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, [1.0, -1.0, 1.0]),
            "group 'body' must be finite and at least 0; use 0 to freeze",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, [1.0, np.nan, 1.0]),
            "group 'body' must be finite",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, {"head": np.inf}),
            "group 'head' must be finite",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, {"haed": 1.0}),
            r"must name groups: embeddings, body, head. Unknown: \['haed'\]",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, wrong_schedule),
            r"one value for each of the 3 groups .* Received: shape \(2,\)",
        ),
        (
            lambda: setattr(
                LayerwiseOptimizer(ADAM(), GROUPS), "multipliers", {"body": 1.0}
            ),
            r"start from `{\*\*optimizer.multipliers",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), {"a": "head"}).build(make_variables()),
            "variable 'embeddings/table' is in no group",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), {**GROUPS, "x": "kernel"}).build(
                make_variables()
            ),
            r"'body/kernel' is in several groups: \['body', 'x'\]",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), lambda v: None).build(make_variables()),
            "must return the name of a group",
        ),
        (
            lambda: GradualUnfreezing(2, [-1.0, 1.0]),
            "must be finite and at least 0",
        ),
        (lambda: LayerwiseOptimizer(ADAM(), GROUPS, 0.5), "Received: 0.5"),
        (lambda: LayerwiseOptimizer(ADAM(), GROUPS, "012"), "Received: '012'"),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, {"head": None}),
            "a mapping from group name to number",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS, np.ones((3, 1))),
            "a sequence of numbers in group order",
        ),
        (lambda: LayerwiseOptimizer(ADAM(), {"a": 3}), "needs at least one path"),
        (lambda: LayerwiseOptimizer(ADAM(), {1: "a"}), "name must be a string"),
        (
            lambda: LayerwiseOptimizer(ADAM(), keras.layers.Dense(2)),
            "a mapping, a function or a model",
        ),
        (
            lambda: LayerwiseOptimizer.from_distribution("adamw", None, None),
            "must be the class of an optimizer",
        ),
        (
            lambda: LayerwiseOptimizer.from_distribution(
                ADAM, None, None, learning_rate=0.1
            ),
            "whose learning rate the distribution gives",
        ),
        (
            lambda: LayerwiseOptimizer.from_distribution(
                ADAM, None, None, keras.optimizers.schedules.CosineDecay(0.1, 2)
            ),
            "must be a function from peak to schedule",
        ),
        (
            lambda: LayerwiseOptimizer.from_distribution(
                ADAM, "kenneweg2022", small_model(), groups=ABC
            ),
            r"`groups` belong to the distribution.*PatternScheme\(groups\)",
        ),
        (
            lambda: LayerwiseOptimizer.from_distribution(
                ADAM, "kenneweg2022", small_model()
            ),
            r"layers of a KerasHub transformer.*PatternScheme\(groups\), rates",
        ),
        (
            lambda: LayerwiseOptimizer.from_distribution(
                ADAM, {"a": 1e-3}, small_model()
            ),
            r"must be a `Distribution`.*PatternScheme\(groups\).*\{'a': 0.001\}",
        ),
        (
            lambda: GradualUnfreezing(0, [1.0]),
            "`steps` must be an integer of at least 1",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS).set_weights([]),
            "optimizer.build",
        ),
        (
            lambda: LayerwiseOptimizer(ADAM(), GROUPS).to_multi_optimizer(),
            "optimizer.build",
        ),
    ],
)
def test_wrong_use_names_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_variables_that_changed_after_build():
    variables = make_variables()
    optimizer = LayerwiseOptimizer(SGD(), GROUPS)
    optimizer.build(variables)
    with pytest.raises(ValueError, match="new optimizer. Changed: head/kernel, head/b"):
        optimizer.build(variables[:3])
    other = make_variables()
    with pytest.raises(ValueError, match="compile again with a new optimizer"):
        train(optimizer, make_gradients(1), [*variables[:4], other[4]])
    if BACKEND == "jax":
        state = [v.value for v in optimizer.variables]
        gradients = make_gradients(1)[0]
        with pytest.raises(ValueError, match="built for 5 variables and got 4"):
            optimizer.stateless_apply(state, gradients[:4], gradients[:4])


def test_an_update_of_ones_own_is_scaled():
    """A subclass that brings its own `update_step`: the sign of the gradient."""

    class SignDescent(SGD):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, learning_rate * keras.ops.sign(gradient))

    gradients = make_gradients(1)
    optimizer = LayerwiseOptimizer(SignDescent(0.5), GROUPS, [1.0, 0.5, 2.0])
    before, after = values(make_variables()), train(optimizer, gradients)
    rates = [0.5, 0.25, 0.25, 1.0, 1.0]
    for v, new, g, rate in zip(before, after, gradients[0], rates, strict=True):
        np.testing.assert_allclose(new, v - rate * np.sign(g), rtol=1e-5, atol=1e-6)


def test_an_update_that_reads_the_learning_rate_is_scaled():
    class Own(keras.optimizers.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, self.learning_rate * gradient)

    gradients = make_gradients(1)
    optimizer = LayerwiseOptimizer(Own(0.5), GROUPS, [1.0, 0.5, 2.0])
    before, after = values(make_variables()), train(optimizer, gradients)
    for v, new, g, rate in zip(
        before, after, gradients[0], [0.5, 0.25, 0.25, 1.0, 1.0], strict=True
    ):
        np.testing.assert_allclose(new, v - rate * g, rtol=1e-5, atol=1e-6)


def awry(step):
    later = keras.ops.convert_to_tensor(step) > 0
    return keras.ops.where(later, np.array([np.nan, -1, 1], "float32"), 1.0)


def test_multipliers_that_go_astray_freeze():
    """A function gives NaN and -1 from the second step on; -0.0 is a weight too."""
    optimizer = LayerwiseOptimizer(SGD(0.1, weight_decay=0.5), GROUPS, awry)
    variables, gradients = make_variables(), make_gradients(3)
    variables[1].assign(np.where(values(variables)[1] > 0, -0.0, 1.0))
    optimizer.build(variables)
    optimizer.iterations.assign(1)
    before = values(variables)
    after = train(optimizer, gradients, variables)
    for i, (a, b) in enumerate(zip(after, before, strict=True)):
        if i < 3:
            np.testing.assert_array_equal(a.view("uint32"), b.view("uint32"))
        else:
            assert np.abs(a - b).max() > 1e-3


def test_assigning_after_a_build_that_failed():
    optimizer = LayerwiseOptimizer(ADAM(), lambda v: v.path.split("/")[0], [1.0, 2.0])
    with pytest.raises(ValueError, match="Received: 2 values"):
        optimizer.build(make_variables())
    optimizer.multipliers = [1.0, 2.0, 3.0]
    optimizer.build(make_variables())
    assert optimizer.multipliers == {"embeddings": 1.0, "body": 2.0, "head": 3.0}
    with pytest.raises(TypeError, match="does not support item assignment"):
        optimizer.multipliers["head"] = 0.0


def test_variables_of_one_path_in_groups_by_a_function():
    twins = [keras.Variable(np.ones(2, "float32"), name="same") for _ in range(2)]
    chosen = {id(twins[0]): "first", id(twins[1]): "second"}
    optimizer = LayerwiseOptimizer(SGD(1.0), lambda v: chosen[id(v)], [0.0, 1.0])
    first, second = train(optimizer, [[np.ones(2, "float32")] * 2], twins)
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(second, 0)


def test_a_function_as_learning_rate_has_a_multi_optimizer():
    ours = LayerwiseOptimizer(SGD(lambda: 0.5), GROUPS, [0.5, 1.0, 2.0])
    variables, gradients = make_variables(), make_gradients(2)
    ours.build(variables)
    start = values(variables)
    expected = train(ours, gradients, variables)
    set_values(variables, start)
    for a, b in zip(
        train(ours.to_multi_optimizer(), gradients, variables), expected, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_summary_before_the_optimizer_is_built():
    model = tiny_bert()
    published = LayerwiseOptimizer.from_distribution(
        keras.optimizers.AdamW, "kenneweg2022", model
    )
    for optimizer in (LayerwiseOptimizer(ADAM(), model, {"head": 10}), published):
        before, after = [], []
        optimizer.summary(print_fn=before.append)
        assert not optimizer.built
        optimizer.build(model.trainable_variables)
        optimizer.summary(print_fn=after.append)
        assert before == after and len(before) == 1 + len(optimizer.multipliers)


def test_a_group_without_a_trainable_variable_keeps_its_place():
    optimizer = LayerwiseOptimizer(SGD(1.0), {"x": "tail", **GROUPS}, [9, 1, 2, 3])
    variables = make_variables()
    with pytest.warns(
        UserWarning, match=r"frozen, or its pattern is wrong.*'x' \(tail"
    ):
        optimizer.build(variables)
    ones = [np.ones(v.shape, "float32") for v in variables]
    start = values(variables)
    after = train(optimizer, [ones], variables)
    moved = [(a - b).ravel()[0] for a, b in zip(start, after, strict=True)]
    np.testing.assert_allclose(moved, [1, 2, 2, 3, 3], rtol=1e-5)


def test_summary_of_two_decays():
    muon = keras.optimizers.Muon(0.01, weight_decay=None, adam_weight_decay=0.5)
    optimizer = LayerwiseOptimizer(muon, GROUPS)
    optimizer.build(make_variables())
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines[2].endswith("5.000e-03 (1/2)")  # the bias is Adam's


def private_names(module):
    """The private attributes that a module reads or assigns."""
    source = (Path(lrdist_keras.__file__).parent / f"{module}.py").read_text("utf-8")
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        if node.attr.startswith("_") and not node.attr.startswith("__")
    }


def test_private_names_of_keras_stand_in_one_module():
    core = (
        "checkpoint fitting multi_optimizer multipliers optimizer summary wrapper"
    ).split()
    for module in core:
        assert not private_names(module) & set(dir(ADAM())), module
    assert {"_iterations", "_var_key"} <= private_names("_keras_private")


def test_fit_agrees_with_one_optimizer_per_group():
    x, y = small_data()
    models = [small_model(), small_model()]
    rates = {"a/.*": 0.0025, "b/.*": 0.005, "c/.*": 0.02}
    adams = {k: ADAM(r, weight_decay=0.1) for k, r in rates.items()}
    multi = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(adams["a/.*"], adams)
    )
    ours = LayerwiseOptimizer(ADAM(0.01, weight_decay=0.1), ABC, [0.25, 0.5, 2.0])
    for model, optimizer in zip(models, [ours, multi], strict=True):
        model.compile(optimizer, "mse")
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_one_group_of_all():
    gradients = make_gradients(2)
    ours = train(one_group(ADAM(0.1), 0.5), gradients)
    for a, b in zip(ours, train(ADAM(0.05), gradients), strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(ours) == len(SHAPES)
