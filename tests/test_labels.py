"""Which labels of local files are the same class, and what the classes are called."""

import json

import numpy as np
import pytest
from conftest import write_rows

from lrdist_keras.config import DataSettings, TaskSettings
from lrdist_keras.data.tasks import load_task
from lrdist_keras.errors import InputError


@pytest.fixture
def load(tmp_path):
    """Loads a task from labels of training and validation, as CSV or JSON lines."""

    def write(name, labels):
        texts = [f"{name} {i}" for i in range(len(labels))]
        if all(isinstance(label, str) for label in labels):
            write_rows(tmp_path / f"{name}.csv", texts, labels)
            return f"{name}.csv"
        rows = [
            json.dumps({"text": t, "label": label})
            for t, label in zip(texts, labels, strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        return f"{name}.jsonl"

    def load(train, validation, **settings):
        files = {"train": write("train", train)}
        if validation is not None:
            files["validation"] = write("validation", validation)
        task = TaskSettings(
            name="t", source="files", text="text", label="label", **files, **settings
        )
        return load_task(task, DataSettings(dir=str(tmp_path)))

    return load


def named(task, split):
    return [task.class_names[i] for i in task.splits[split].labels]


@pytest.mark.parametrize(
    "train, validation",
    [
        (["1.0", "2.0", "3.0"], ["1", "2"]),
        (["1", "2", "3"], ["1.0", " 2 "]),
        ([1, 2, 3], ["01", "+2"]),
        ([1.0, 2.0, 3.0], [1, "2.00"]),
        (["1.", "2", " 3 "], [1.0, 2]),
    ],
)
def test_an_integer_is_one_label_however_it_is_written(load, train, validation):
    task = load(train, validation)
    assert task.class_names == ("1", "2", "3")
    assert task.splits["train"].labels.tolist() == [0, 1, 2]
    assert task.splits["validation"].labels.tolist() == [0, 1]
    assert task.splits["train"].labels.dtype == np.int32


def test_integers_are_names_in_the_order_of_their_value(load):
    task = load(["10", "9", "2", "10", "1"], ["9", "1"])
    assert task.class_names == ("1", "2", "9", "10")
    assert named(task, "train") == ["10", "9", "2", "10", "1"]
    assert named(task, "validation") == ["9", "1"]
    assert load(["5", "4", "3", "2", "1"], ["5"]).class_names == tuple("12345")
    assert load(["99999", "0"], ["0"]).class_names == ("0", "99999")


@pytest.mark.parametrize(
    "train, validation",
    [
        ([True, False, True], ["true", "False"]),
        (["TRUE", "FALSE", "True"], [True, False]),
        (["true", "false", "true"], ["True", "false"]),
    ],
)
def test_a_truth_is_one_label_however_it_is_written(load, train, validation):
    task = load(train, validation)
    assert task.class_names == ("false", "true")
    assert named(task, "train") == ["true", "false", "true"]
    assert named(task, "validation") == ["true", "false"]


def test_minus_one_and_one_are_a_pair(load):
    task = load(["-1", "1", "1.0"], ["-1.0", "1"])
    assert task.class_names == ("-1", "1")
    assert task.splits["train"].labels.tolist() == [0, 1, 1]
    assert task.splits["validation"].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "train, validation",
    [
        (["0", "1", "-1"], ["0"]),
        (["-1", "-1", "-1"], ["-1"]),
        (["0", "1", "0"], ["0", "1", "-1"]),
        (["1", "-2", "-1"], ["1"]),
    ],
)
def test_other_negative_labels_are_taken_for_hidden_ones(load, train, validation):
    with pytest.raises(InputError, match="labels must be at least 0.*hidden"):
        load(train, validation)
    task = load(["0", "1", "-1", "-2"], ["0"], class_names=["-2", "-1", "0", "1"])
    assert named(task, "train") == ["0", "1", "-1", "-2"]


def test_labels_that_training_does_not_have_are_named_with_their_lines(load):
    with pytest.raises(
        InputError,
        match=r"validation\.csv, lines 3, 5, 6: .*those of the training file "
        r".*train\.csv.*\['a', 'b'\].*Received: 'c', 'B'",
    ):
        load(["a", "b"], ["a", "c", "b", "B", "c"])
    with pytest.raises(
        InputError,
        match=r"lines 2, 3, 4, 5, 6 and 25 more.*Received: 0, 1, 2, 3, 4 and 25 more",
    ):
        load(["100", "101"], [str(i) for i in range(30)])


def test_a_label_that_differs_in_case_only_is_pointed_out(load):
    with pytest.raises(InputError, match=r"did you mean 'method'\?.*'METHOD'"):
        load(["method", "result"], ["METHOD"])


@pytest.mark.parametrize(
    "labels",
    [
        ["3.7", "1", "2.25"],
        [3.7, 1, 2.25],
        ["0.5", "2", ".25"],
        ["1.5e-05", "1", "2.5"],
    ],
)
def test_numbers_with_a_fraction_look_like_a_regression(load, labels):
    unit = "csv" if isinstance(labels[0], str) else "jsonl"
    lines = "lines 2, 4" if unit == "csv" else "lines 1, 3"
    with pytest.raises(
        InputError, match=rf"train\.{unit}, {lines}: .*regression.*`class_names`"
    ):
        load(labels, ["1"])


@pytest.mark.parametrize("label", [float("nan"), float("inf"), "nan", "NaN"])
def test_what_is_not_a_number_is_no_label(load, label):
    with pytest.raises(InputError, match="a label must be an integer or a class name"):
        load([1, 0, label] if not isinstance(label, str) else ["a", "b", label], None)


def test_class_names_may_be_what_would_not_be_a_label(load):
    names = ["1.1", "nan", "-7"]
    task = load(["nan", "1.1", "-7"], ["-7"], class_names=names)
    assert named(task, "train") == ["nan", "1.1", "-7"]
    assert load([1.1, -7, "nan"], None, class_names=names).class_names == tuple(names)


def test_integers_among_names_are_refused_with_all_lines(load):
    with pytest.raises(
        InputError,
        match=r"lines 3, 5: some labels are integers.*Received: 'maybe', 'true'",
    ):
        load(["0", "maybe", "1", "True"], None)


def test_class_names_are_names_or_positions(load):
    settings = {"class_names": ["no", "yes"]}
    for labels in (["0", "1"], ["no", "yes"], ["0", "yes"], [0, 1.0]):
        task = load(labels, None if len(labels) > 2 else labels, **settings)
        assert task.class_names == ("no", "yes")
        assert task.splits["train"].labels.tolist() == [0, 1]


def test_of_class_names_that_are_integers_none_is_a_position(load):
    settings = {"class_names": ["1", "2", "3"]}
    task = load(["3", "1.0", "2"], ["1"], **settings)
    assert named(task, "train") == ["3", "1", "2"]
    with pytest.raises(
        InputError, match=r"line 3: .*class names \['1', '2', '3'\].*Received: 0"
    ):
        load(["1", "0"], None, **settings)


@pytest.mark.parametrize("names", [["1", "1.0"], ["True", "true"], [" a", "a"]])
def test_class_names_must_differ_as_labels(load, names):
    with pytest.raises(InputError, match="class_names.*the same label"):
        load(["0", "1"], None, class_names=names)


def test_classes_know_whether_the_settings_named_them(load):
    assert not load(["a", "b"], ["a"]).named
    assert load(["a", "b"], ["a"], class_names=["b", "a"]).named


def test_rows_know_their_lines(load, tmp_path):
    split = load(["a", "b", "a"], ["a"]).splits["train"]
    assert split.rows.source == str(tmp_path / "train.csv")
    assert split.rows.numbers.tolist() == [2, 3, 4]
    assert split.take(np.array([2, 0])).rows.numbers.tolist() == [4, 2]
    held = load(["a", "b"] * 20, None).splits["validation"]
    assert [f"train {i - 2}" for i in held.rows.numbers] == list(held.texts[0])


def test_what_a_name_hides_is_escaped_in_messages(load):
    with pytest.raises(InputError) as caught:
        load(["a\x1b[31m", "b\u202e"], ["c\u200b"])
    assert str(caught.value).isprintable()
    assert r"'a\x1b[31m', 'b\u202e'" in str(caught.value)
