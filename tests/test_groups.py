import json
import math

import keras
import numpy as np
import pytest

from lrdist_keras.distribution import Distribution, kenneweg2022, scheme_from_json
from lrdist_keras.groups import (
    PatternScheme,
    Scheme,
    matches,
    partition,
    path_groups,
    transformer_groups,
)
from lrdist_keras.optimizer import LayerwiseOptimizer


def layers_of(scheme):
    return [[layer + 1 for layer in group] for group in scheme.layer_ranges]


def test_paper_and_authors_groups_of_12_layers():
    floor = [[1], [2, 3], [4], [5, 6], [7], [8, 9], [10], [11, 12]]
    ceil = [[1, 2], [3], [4, 5], [6], [7, 8], [9], [10, 11], [12]]
    assert layers_of(Scheme(12, 8, "floor")) == floor
    assert layers_of(Scheme(12, 8, "ceil")) == ceil


@pytest.mark.parametrize("rounding", ["floor", "ceil"])
@pytest.mark.parametrize("layers", range(1, 49))
@pytest.mark.parametrize("encoder_groups", [1, 3, 8, 48])
def test_scheme_is_the_formula_for_any_depth(layers, encoder_groups, rounding):
    scheme = Scheme(layers, encoder_groups, rounding)
    groups = min(layers, encoder_groups)
    round_ = getattr(math, rounding)
    expected = tuple(
        range(round_(layers * (i - 1) / groups), round_(layers * i / groups))
        for i in range(1, groups + 1)
    )
    assert scheme.layer_ranges == expected
    assert [layer for group in expected for layer in group] == list(range(layers))
    assert all(len(group) > 0 for group in expected)
    assert len(scheme.names) == groups + 2


def test_schemes_are_equal_by_what_they_divide():
    assert Scheme(12, 6, "floor") == Scheme(12, 6, "ceil")
    assert Scheme(12, 8, "floor") != Scheme(12, 8, "ceil")
    assert Scheme(6, 8) == Scheme(6, 6)
    assert Scheme(6) != Scheme(12)
    assert len({Scheme(12, 6, "floor"), Scheme(12, 6, "ceil")}) == 1


def test_scheme_text_and_json_round_trip():
    scheme = Scheme.parse("12/8/ceil")
    assert scheme == Scheme(12, 8, "ceil")
    assert str(scheme) == "12/8/ceil"
    assert Scheme(**scheme.to_json()) == scheme


def test_groups_of_ones_own_are_given_by_their_sizes():
    scheme = Scheme(12, layer_groups=[1, 2, 9])
    assert layers_of(scheme) == [[1], [2, 3], [*range(4, 13)]]
    assert scheme.names == (
        "embeddings", "encoder_1", "encoder_2", "encoder_3", "head",
    )  # fmt: skip
    assert (scheme.encoder_groups, scheme.layer_groups) == (3, (1, 2, 9))
    # What counts is what they divide, however that was said.
    same = Scheme(12, layer_groups=(2, 1, 2, 1, 2, 1, 2, 1))
    assert same == Scheme(12, 8, "ceil") and hash(same) == hash(Scheme(12, 8, "ceil"))
    assert scheme not in (Scheme(12, 3), Scheme(12, layer_groups=(1, 9, 2)))


@pytest.mark.parametrize(
    "sizes, text", [((1, 2, 9), "12/1-2-9"), ((12,), "12/1/floor"), ((6, 6), "12/6-6")]
)
def test_sizes_as_text_and_json(sizes, text):
    scheme = Scheme(12, layer_groups=sizes)
    assert str(scheme) == text
    assert Scheme.parse(text) == scheme
    content = json.loads(json.dumps(scheme.to_json()))
    assert content == {"layers": 12, "layer_groups": list(sizes)}
    read = scheme_from_json(content)
    assert read == scheme and read.layer_groups == sizes


def test_schemes_by_number_are_written_as_ever():
    expected = {"layers": 12, "encoder_groups": 8, "rounding": "ceil"}
    assert list(Scheme(12, 8, "ceil").to_json().items()) == list(expected.items())


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((1, 2, 8), r"add up to the 12 trans.*=\[1, 2, 8\], which add up to 11"),
        ((12, 0), r"integers from 1 to 10000. Received: layer_groups=\[12, 0\]"),
        ((13, -1), "integers from 1"),
        ((6.0, 6.0), "integers from 1"),
        ((True, 11), "integers from 1"),
        ((), "a list of the number of layers"),
        ("66", "a list of the number of layers.*'66'"),
        (12, "a list of the number of layers.*=12"),
        ((10**400, 1), "integers from 1"),
        ([1] * 10**5, "add up to the 12.*…, which add up to 100000"),
    ],
)
def test_sizes_that_are_none(sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        Scheme(12, layer_groups=sizes)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("beside", [{"encoder_groups": 4}, {"rounding": "ceil"}])
def test_sizes_stand_in_place_of_number_and_rounding(beside):
    with pytest.raises(ValueError, match="`layer_groups` stand in place of"):
        Scheme(12, layer_groups=(1, 2, 9), **beside)


@pytest.mark.parametrize("text", ["12/1-2", "12/1-2-9/floor", "12/-1-13", "12/1--11"])
def test_text_of_sizes_errors(text):
    with pytest.raises(ValueError, match="add up|for example 12/1-2-9"):
        Scheme.parse(text)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "`layers` must be an integer from 1 to 10000. Received: layers=0"),
        ((12, 0), "`encoder_groups` must be an integer from 1"),
        (
            (12, 8, "up"),
            "`rounding` must be 'floor' or 'ceil'. Received: rounding='up'",
        ),
        ((12.0,), "`layers` must be an integer"),
        ((10**12,), "`layers` must be an integer from 1 to 10000"),
    ],
)
def test_scheme_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scheme(*arguments)


@pytest.mark.parametrize("text", ["12", "12/8", "12/8/round", "a/8/ceil", "12/8/ceil "])
def test_scheme_text_errors(text):
    with pytest.raises(ValueError, match="layers/encoder_groups/rounding"):
        Scheme.parse(text)


@pytest.mark.parametrize(
    "pattern, path, expected",
    [
        ("transformer_layer_1", "transformer_layer_1/query/kernel", True),
        ("transformer_layer_1", "transformer_layer_10/query/kernel", False),
        ("transformer_layer_[0-3]", "model/transformer_layer_3/kernel", True),
        ("transformer_layer_[0-3]", "transformer_layer_4/kernel", False),
        ("a/*", "a/b/kernel", True),
        ("a/*", "b/a", False),
        ("query/kernel", "layer/query/kernel", True),
        ("query/kernel", "query/dense/kernel", False),
        ("kernel", "layer/Kernel", False),
        ("a/b/c", "b/c", False),
        ("/a/b", "a/b/c", True),
        ("/a/b", "c/a/b", False),
    ],
)
def test_patterns_match_whole_segments_side_by_side(pattern, path, expected):
    assert matches(pattern, path) is expected


def test_partition_reports_every_problem_by_path():
    groups = {"low": "a", "high": ["b", "a/kernel"], "empty": "z"}
    with pytest.raises(ValueError) as error:
        partition(["a/kernel", "b/kernel", "c/kernel", "d/bias"], groups)
    message = str(error.value)
    assert "variable 'a/kernel' is in several groups: ['low', 'high']" in message
    assert "variable 'c/kernel' is in no group" in message
    assert "variable 'd/bias' is in no group" in message
    assert "group 'empty' (z) matches no variable" in message
    assert "b/kernel" not in message


def test_partition_gives_the_index_of_each_path():
    groups = {"low": "a", "high": ["b", "c*"]}
    assert partition(["c1/kernel", "a/kernel", "b/bias"], groups) == [1, 0, 1]


@pytest.mark.parametrize("groups", [{}, {"a": []}, {"a": ""}, {"a": [1]}, ["a"]])
def test_malformed_groups_are_refused(groups):
    with pytest.raises(ValueError, match="at least one"):
        PatternScheme(groups)


FAMILIES = {
    "BertBackbone": ("BertTextClassifier", {"pooled_dense", "logits"}),
    "RobertaBackbone": ("RobertaTextClassifier", {"pooled_dense", "logits"}),
    "DistilBertBackbone": ("DistilBertTextClassifier", {"pooled_dense", "logits"}),
    "GPT2Backbone": (None, {"layer_norm"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_keras_hub_families(family):
    import keras_hub

    backbone = getattr(keras_hub.models, family)(
        vocabulary_size=11,
        num_layers=3,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    task, head_segments = FAMILIES[family]
    model = backbone
    if task is not None:
        model = getattr(keras_hub.models, task)(backbone, num_classes=2)
    scheme, groups = transformer_groups(model, encoder_groups=2)
    assert scheme == Scheme(3, 2)
    paths = [v.path for v in model.trainable_variables]
    names = list(groups)
    found = {name: set() for name in names}
    for path, index in zip(paths, partition(paths, groups), strict=True):
        found[names[index]].add(path)
    assert {path.split("/")[0] for path in found["head"]} == head_segments
    layer_1 = {p for p in paths if p.startswith("transformer_layer_0/")}
    assert found["encoder_1"] == layer_1
    assert all("embedding" in path for path in found["embeddings"])
    layers = {p for p in paths if p.startswith("transformer_layer_")}
    assert found["encoder_2"] == layers - layer_1


def small_bert(layers=3):
    import keras_hub

    return keras_hub.models.BertBackbone(11, layers, 2, 4, 8, max_sequence_length=8)


def test_sizes_divide_the_layers_of_a_model():
    model = small_bert()
    scheme, groups = transformer_groups(model, layer_groups=(1, 2))
    assert scheme == Scheme(3, layer_groups=(1, 2))
    assert groups["encoder_1"] == ("transformer_layer_0",)
    assert groups["encoder_2"] == ("transformer_layer_1", "transformer_layer_2")
    paths = [v.path for v in model.trainable_variables]
    assert path_groups(paths, layer_groups=[1, 2]) == (scheme, groups)
    with pytest.raises(ValueError, match=r"3 transformer layers.*add up to 4"):
        transformer_groups(model, layer_groups=(2, 2))


def test_a_distribution_over_sizes_gives_each_layer_its_rate():
    model = small_bert()
    scheme = Scheme(3, layer_groups=(1, 2))
    rates = Distribution.in_order(scheme, [1e-4, 2e-4, 4e-4, 1e-3])
    build = LayerwiseOptimizer.from_distribution
    optimizer = build(keras.optimizers.SGD, rates, model)
    before = [np.array(v.value) for v in model.trainable_variables]
    optimizer.apply([np.ones_like(w) for w in before], model.trainable_variables)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        first, *_ = variable.path.split("/")
        rate = {"transformer_layer_0": 2e-4, "pooled_dense": 1e-3}.get(first, 4e-4)
        rate = 1e-4 if "embedding" in variable.path else rate
        np.testing.assert_allclose(variable.value, old - rate, rtol=1e-5, atol=1e-7)
    published = build(keras.optimizers.SGD, kenneweg2022().resample(scheme), model)
    assert list(published.multipliers) == list(scheme.names)
    with pytest.raises(ValueError, match=r"3/1-2, the model has 2 layers; .*Scheme\(2"):
        build(keras.optimizers.SGD, rates, small_bert(2))


def test_a_users_head_is_the_head_also_in_a_flat_functional_model():
    import keras_hub

    backbone = keras_hub.models.RobertaBackbone(
        vocabulary_size=11,
        num_layers=2,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    output = keras.layers.Dense(3, name="my_head")(backbone.output[:, 0])
    model = keras.Model(backbone.input, output)
    _, groups = transformer_groups(model)
    assert groups["head"] == ("/my_head/kernel", "/my_head/bias")


def test_two_transformers_and_none_are_refused():
    with pytest.raises(ValueError, match="transformer_layer_<i>"):
        path_groups(["dense/kernel"])
    twice = ["token_embedding/embeddings", "transformer_layer_0/kernel"] * 2
    with pytest.raises(ValueError, match="share one path"):
        path_groups(twice)


def test_more_groups_than_any_model_has_are_refused():
    groups = {f"g{i}": f"layer_{i}" for i in range(100_000)}
    with pytest.raises(ValueError, match="at most 10000. Received: 100000 groups"):
        PatternScheme(groups)
