import math

import keras
import pytest

from lrdist_keras.groups import (
    PatternScheme,
    Scheme,
    matches,
    partition,
    path_groups,
    transformer_groups,
)


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
