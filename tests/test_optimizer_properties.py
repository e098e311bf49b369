"""Laws over random models, groupings and multipliers."""

from optimizer_cases import BACKEND, INNER, set_values, train, values

# isort: split
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrdist_keras.groups import partition
from lrdist_keras.optimizer import LayerwiseOptimizer

# JAX compiles every example anew.
EXAMPLES = 6 if BACKEND == "jax" else 30
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
MULTIPLIERS = st.sampled_from([0.25, 0.3, 1.0, 1.7, 4.0])


def dense(name, width):
    return keras.layers.Dense(width, name=name)


LAYERS = {
    "dense": dense,
    "normalization": lambda name, width: keras.layers.LayerNormalization(name=name),
    "bare": lambda name, width: keras.layers.Dense(width, use_bias=False, name=name),
    "block": lambda name, width: keras.Sequential(
        [dense("inner", width), keras.layers.ReLU(), dense("outer", 2)], name=name
    ),
}


@st.composite
def specifications(draw):
    """Layers as (name, kind, width, group of each part); multiplier per group.

    Names begin and end alike (`a`, `a_1`, `aa`), so that a pattern that matches parts
    of names would be caught; blocks hold layers of equal names.
    """
    names = draw(
        st.lists(st.from_regex(r"[ab]{1,2}(_[01])?", fullmatch=True),
                 min_size=1, max_size=5, unique=True)
    )  # fmt: skip
    labels = st.sampled_from(["embedding", "body", "head"])
    layers = [
        (name, draw(st.sampled_from(sorted(LAYERS))), draw(st.integers(1, 3)),
         draw(st.tuples(labels, labels)))
        for name in names
    ]  # fmt: skip
    return (
        layers,
        draw(st.permutations(["embedding", "body", "head"])),
        draw(st.tuples(MULTIPLIERS, MULTIPLIERS, MULTIPLIERS)),
    )


def build(specification):
    """Returns variables, groups by pattern, group of each variable, multipliers."""
    layers, order, multipliers = specification
    model = keras.Sequential([keras.Input((2,))])
    patterns, owners = {}, {}
    for name, kind, width, labels in layers:
        layer = LAYERS[kind](name, width)
        model.add(layer)
        parts = {name: layer}
        if kind == "block":
            parts = {f"{name}/{part.name}": part for part in layer.layers[::2]}
        for (pattern, part), label in zip(parts.items(), labels, strict=False):
            patterns.setdefault(label, []).append(pattern)
            owners |= {id(v): label for v in part.trainable_variables}
    groups = {label: patterns[label] for label in order if label in patterns}
    variables = model.trainable_variables
    rates = dict(zip(groups, multipliers, strict=False))
    return variables, groups, [owners[id(v)] for v in variables], rates


def gradients_for(variables, steps=2):
    rng = np.random.default_rng(1)
    return [
        [rng.normal(size=v.shape).astype("float32") for v in variables]
        for _ in range(steps)
    ]


def run(optimizer, variables, gradients):
    """The weights after training; the variables are as before."""
    before = values(variables)
    after = train(optimizer, gradients, variables)
    set_values(variables, before)
    return after


@given(specifications())
@settings(max_examples=30, **QUIET)
def test_the_partition_is_exact(case):
    variables, groups, owners, _ = build(case)
    found = partition([v.path for v in variables], groups)
    assert [list(groups)[index] for index in found] == owners


@given(specifications())
@settings(max_examples=EXAMPLES, **QUIET)
def test_every_variable_moves_at_the_rate_of_its_group(case):
    variables, groups, owners, multipliers = build(case)
    before = values(variables)
    optimizer = LayerwiseOptimizer(keras.optimizers.SGD(0.5), groups, multipliers)
    (step,) = gradients_for(variables, 1)
    after = run(optimizer, variables, [step])
    for v, new, gradient, owner in zip(before, after, step, owners, strict=True):
        expected = v - 0.5 * multipliers[owner] * gradient
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)


@given(specifications(), st.data())
@settings(max_examples=EXAMPLES, **QUIET)
def test_the_order_of_groups_does_not_matter(case, data):
    variables, groups, _, multipliers = build(case)
    turned = {name: groups[name] for name in data.draw(st.permutations(list(groups)))}
    gradients = gradients_for(variables)
    first, second = (
        run(
            LayerwiseOptimizer(keras.optimizers.Adam(0.01), order, multipliers),
            variables,
            gradients,
        )
        for order in (groups, turned)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


# True for every optimizer: the rate reaches update and decay only as this product.
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.__name__)
@given(case=specifications(), factor=st.sampled_from([0.5, 0.3, 3.0]))
@settings(max_examples=1 if BACKEND == "jax" else 6, **QUIET)
def test_a_common_factor_belongs_to_the_learning_rate(inner, case, factor):
    variables, groups, _, multipliers = build(case)
    scaled = {name: factor * m for name, m in multipliers.items()}
    gradients = gradients_for(variables)
    first, second = (
        run(
            LayerwiseOptimizer(inner(rate, weight_decay=0.1), groups, numbers),
            variables,
            gradients,
        )
        for rate, numbers in ((0.01, scaled), (0.01 * factor, multipliers))
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7)
