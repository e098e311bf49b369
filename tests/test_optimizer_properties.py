"""Laws over random models, groupings and multipliers."""

from optimizer_cases import BACKEND, INNER, make_gradients, make_variables, train

# isort: split
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrdist_keras.groups import partition
from lrdist_keras.optimizer import LayerwiseOptimizer

slow = settings(
    max_examples=4 if BACKEND == "jax" else 10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
layer_names = st.lists(
    st.from_regex(r"[a-c]{1,2}_[0-2]{1,2}", fullmatch=True),
    min_size=2, max_size=5, unique=True,
)  # fmt: skip


@st.composite
def groupings(draw):
    """Layers, the group of each, a multiplier per group."""
    layers = draw(layer_names)
    count = draw(st.integers(1, len(layers)))
    chosen = [*range(count), *draw(st.lists(
        st.integers(0, count - 1),
        min_size=len(layers) - count, max_size=len(layers) - count,
    ))]  # fmt: skip
    groups = {
        f"group_{g}": [n for n, c in zip(layers, chosen, strict=True) if c == g]
        for g in range(count)
    }
    multipliers = draw(
        st.lists(st.sampled_from([0.25, 0.3, 1.0, 1.7, 4.0]), min_size=count,
                 max_size=count)
    )  # fmt: skip
    return groups, dict(zip(groups, multipliers, strict=True))


def shapes_of(groups):
    names = [name for members in groups.values() for name in members]
    return {f"{name}/kernel": (2, 1 + i) for i, name in enumerate(names)}


@given(groupings())
def test_the_partition_is_exact(case):
    groups, _ = case
    paths = list(shapes_of(groups))
    found = partition(paths, groups)
    names = list(groups)
    for path, index in zip(paths, found, strict=True):
        assert path.split("/")[0] in groups[names[index]]
    assert set(found) == set(range(len(groups)))


@slow
@given(groupings())
def test_the_order_of_groups_does_not_matter(case):
    groups, multipliers = case
    shapes = shapes_of(groups)
    gradients = make_gradients(2, shapes=shapes)
    turned = dict(reversed(groups.items()))
    results = [
        train(
            LayerwiseOptimizer(keras.optimizers.Adam(0.01), order, multipliers),
            gradients,
            shapes=shapes,
        )
        for order in (groups, turned)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


# True for every optimizer: the rate reaches update and decay only as this product.
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner.__name__)
@settings(max_examples=1 if BACKEND == "jax" else 3, deadline=None)
@given(case=groupings(), factor=st.sampled_from([0.5, 0.3, 3.0]))
def test_a_common_factor_belongs_to_the_learning_rate(inner, case, factor):
    groups, multipliers = case
    shapes = shapes_of(groups)
    gradients = make_gradients(2, shapes=shapes)
    scaled = {name: factor * m for name, m in multipliers.items()}
    options = {"weight_decay": 0.1}
    a = train(
        LayerwiseOptimizer(inner(0.01, **options), groups, scaled),
        gradients, shapes=shapes,
    )  # fmt: skip
    b = train(
        LayerwiseOptimizer(inner(0.01 * factor, **options), groups, multipliers),
        gradients, shapes=shapes,
    )  # fmt: skip
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-7)


def test_variables_have_the_paths_of_their_layers():
    paths = [
        v.path for v in make_variables(shapes={"a_1/kernel": (1,), "b/bias": (1,)})
    ]
    assert paths == ["a_1/kernel", "b/bias"]
