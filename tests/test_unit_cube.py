"""Values of every kind as points, and points as values."""

import keras_tuner
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdist_keras.search.unit_cube import (
    categories,
    check_start_points,
    point_of,
    searched,
    values_at,
)


def every_kind():
    hp = keras_tuner.HyperParameters()
    hp.Float("rate", 1e-7, 1e-3, sampling="log")
    hp.Float("stepped", 0.0, 1.0, step=0.25)
    hp.Int("layers", 1, 4)
    hp.Int("width", 8, 64, step=2, sampling="log")
    hp.Boolean("bias")
    hp.Choice("size", [1, 10, 100])
    hp.Choice("kind", ["a", "b", "c"])
    hp.Fixed("version", 7)
    with hp.conditional_scope("kind", ["b", "c"]):
        hp.Int("depth", 2, 9, default=4)
    with hp.conditional_scope("kind", ["c"]):
        hp.Choice("shape", ["x", "y"], default="y")
    return hp.space


def test_numbers_and_what_is_ordered_lie_on_the_unit_interval():
    """Keras Tuner's map: a value of n lies in the middle of its share of [0, 1]."""
    values = {
        "rate": 1e-5, "stepped": 0.25, "layers": 4, "width": 8, "bias": True,
        "size": 10, "kind": "c", "depth": 2, "shape": "x", "version": 7,
    }  # fmt: skip
    expected = [0.5, 1.5 / 5, 3.5 / 4, 0.5 / 4, 0.75, 0.5, 2.5 / 3, 0.5 / 8, 0.25]
    assert point_of(values, every_kind()) == pytest.approx(expected)


def test_what_is_not_active_lies_at_its_default():
    values = {
        "rate": 1e-5, "stepped": 0.25, "layers": 4, "width": 8, "bias": True,
        "size": 10, "kind": "a", "version": 7,
    }  # fmt: skip
    *_, depth, shape = point_of(values, every_kind())
    assert (depth, shape) == (2.5 / 8, 0.75)
    # A value that is left over from another kind does not count.
    assert point_of(values | {"depth": 9}, every_kind())[-2] == depth


def test_values_without_an_order_are_counted():
    names = [hp.name for hp in searched(every_kind())]
    found = dict(zip(names, categories(every_kind()), strict=True))
    assert {name: n for name, n in found.items() if n} == {
        "bias": 2, "kind": 3, "shape": 2,
    }  # fmt: skip
    assert "version" not in found and categories([]) == []


@given(st.lists(st.floats(0.0, 1.0), min_size=9, max_size=9))
def test_a_point_of_values_gives_the_values_back(point):
    space = every_kind()
    values = values_at(space, point)
    assert ("depth" in values) == (values["kind"] != "a")
    assert ("shape" in values) == (values["kind"] == "c")
    assert values["version"] == 7
    again = values_at(space, point_of(values, space))
    assert again.pop("rate") == pytest.approx(values.pop("rate"), rel=1e-9)
    assert again == values
    assert all(0 <= p <= 1 for p in point_of(again | {"rate": 1e-5}, space))


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"kind": "a"}, None),
        ({"kind": "b", "depth": 3}, None),
        ({"kind": "a", "depth": 3}, None),  # not active, and not looked at
        (
            {"kind": "b"},
            r"must name every.*Received: \['kind'\]; .*\['depth', 'kind'\]",
        ),
        ({"kind": "a", "other": 1}, "no other"),
        ({"depth": 3}, "must name every"),
        (
            {"kind": "b", "depth": 1},
            r"'depth' must be a number in \[2, 9\], a whole one",
        ),
    ],
)
def test_a_start_point_names_what_is_active(point, message):
    hp = keras_tuner.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Int("depth", 2, 9)
    if message is None:
        check_start_points(hp.space, [point])
        return
    with pytest.raises(ValueError, match=message):
        check_start_points(hp.space, [point])
