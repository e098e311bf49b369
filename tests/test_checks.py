"""What is wrong with the data of tasks is found, with every row."""

import time

import numpy as np
import pytest

from lrdist_keras.config import DataSettings, TaskSettings
from lrdist_keras.data.checks import check_tasks, summarize_split
from lrdist_keras.data.findings import Finding, stop_at_errors
from lrdist_keras.data.splits import Rows, Split, Task
from lrdist_keras.data.tasks import load_task
from lrdist_keras.errors import InputError


def split(texts, labels, source="train.csv"):
    columns = texts if isinstance(texts, tuple) else (texts,)
    rows = Rows(source, np.arange(len(labels)) + 2, "line")
    return Split(columns, np.array(labels, np.int32), rows)


def some(count, word="text"):
    return [f"{word} number {i}" for i in range(count)]


def task(train=None, validation=None, classes=("a", "b"), named=False, name="t"):
    train = train or split(some(20, "train"), [0, 1] * 10)
    validation = validation or split(some(10, "held"), [0, 1] * 5, "validation.csv")
    splits = {"train": train, "validation": validation}
    return Task(name, "files", splits, tuple(classes), named)


def found(one, *others, **settings):
    tasks = {t.name: t for t in (one, *others)}
    return check_tasks(tasks, [list(tasks)], **settings)


def the_only(findings, level, *words):
    """The one finding, of which level, sentence and rows are checked."""
    (one,) = findings
    assert one.level == level
    for word in words:
        assert word in one.sentence
    return one


def lines(finding):
    """Lines by file."""
    return {rows.source: rows.numbers.tolist() for rows in finding.rows}


def test_nothing_is_said_of_what_is_in_order():
    assert found(task(), task(split(some(9), [0, 1, 1] * 3), name="u")) == []


def test_copies_are_counted_and_all_are_listed():
    texts = some(20, "train")
    texts[7], texts[9], texts[11] = "  Train\tNUMBER 3", texts[3], texts[5]
    one = the_only(
        found(task(split(texts, [0, 1] * 10))),
        "warning",
        "repeats 3 of 20 training examples (15.0%)",
    )
    assert lines(one) == {"train.csv": [5, 7, 9, 11, 13]}


def test_one_text_with_several_labels_is_listed_text_by_text():
    texts = some(20, "train")
    texts[10], texts[17] = texts[3], texts[0]
    one = the_only(
        found(task(split(texts, [0, 1] * 10))), "warning", "another label for 4 of 20"
    )
    assert lines(one) == {"train.csv": [2, 19, 5, 12]}


def test_copies_and_contrary_labels_of_one_text_are_both_found():
    texts = some(20, "train")
    texts[2] = texts[3] = texts[0]
    copies, contrary = found(task(split(texts, [0, 1] * 10)))
    assert lines(copies) == {"train.csv": [2, 4]}
    assert lines(contrary) == {"train.csv": [2, 4, 5]}


def test_a_file_of_few_different_texts():
    train = split(["one", "two", "three"] * 7, [0, 1, 0] * 7)
    the_only(found(task(train)), "warning", "only 3 different texts", "`text`")


def test_pairs_are_the_same_only_if_both_texts_are():
    first, second = some(20, "one"), some(20, "two")
    first[5] = first[0]
    assert found(task(split((first, second), [0, 1] * 10), pairs(10))) == []
    second[5] = second[0]
    the_only(found(task(split((first, second), [0, 1] * 10), pairs(10))), "warning")


def pairs(count):
    return split((some(count, "x"), some(count, "y")), [0, 1] * (count // 2), "v.csv")


@pytest.mark.parametrize(
    "leaked, level", [(1, "warning"), (5, "warning"), (6, "error")]
)
def test_validation_examples_that_are_trained_on(leaked, level):
    validation = some(10, "held")
    validation[:leaked] = [f"TRAIN  number {i}" for i in range(leaked)]
    one = the_only(
        found(task(validation=split(validation, [0, 1] * 5, "validation.csv"))),
        level,
        f"holds the texts of {leaked} of 10 validation examples",
    )
    numbers = list(range(2, 2 + leaked))
    assert lines(one) == {"validation.csv": numbers, "train.csv": numbers}


def test_texts_are_the_same_however_unicode_composes_them():
    validation = ["Stra\u00dfe  cafe\u0301", *some(9, "held")]
    train = ["STRASSE caf\u00e9", *some(19, "train")]
    one = task(
        split(train, [0, 1] * 10), split(validation, [0, 1] * 5, "validation.csv")
    )
    assert lines(the_only(found(one), "warning")) == {
        "validation.csv": [2],
        "train.csv": [2],
    }


def test_a_validation_file_that_is_the_training_file():
    train = split(some(20), [0, 1] * 10)
    the_only(found(task(train, train)), "error", "are training examples")


def test_validation_examples_in_the_training_of_another_task():
    one = task(name="one")
    texts = some(20, "other")
    texts[4:7] = one.splits["validation"].texts[0][:3]
    other = task(
        split(texts, [0, 1] * 10, "other.csv"),
        split(some(10, "last"), [0, 1] * 5, "last.csv"),
        name="other",
    )
    finding = the_only(
        found(one, other), "warning", "of 'other', of the same", "3 of 10 validation"
    )
    assert finding.task == "one"
    assert lines(finding) == {"validation.csv": [2, 3, 4], "other.csv": [6, 7, 8]}
    tasks = {"one": one, "other": other}
    assert check_tasks(tasks, [["one"], ["other"]]) == []
    assert len(check_tasks(tasks, [["one", "other"], ["other", "one"]])) == 1


def test_of_a_pair_one_text_is_enough_in_another_task():
    one = task(name="one")
    second = some(20, "second")
    second[8] = one.splits["validation"].texts[0][0]
    train = split((some(20, "first"), second), [0, 1] * 10, "pairs.csv")
    finding = the_only(found(one, task(train, pairs(10), name="two")), "warning")
    assert lines(finding) == {"validation.csv": [2], "pairs.csv": [10]}


@pytest.mark.parametrize("empty", ["", " \t\n", "\u200b\xa0", "\x00"])
def test_empty_texts(empty):
    texts = some(20, "train")
    texts[3] = texts[4] = empty
    held = [empty, *some(9, "held")]
    train, validation = found(
        task(split(texts, [0, 1] * 10), split(held, [0, 1] * 5, "validation.csv"))
    )
    assert {train.level, validation.level} == {"warning"}
    assert "2 of 20 training examples" in train.sentence
    assert lines(train) == {"train.csv": [5, 6]}
    assert lines(validation) == {"validation.csv": [2]}


def test_a_column_that_is_empty():
    held = split((some(10, "x"), [" "] * 10), [0, 1] * 5, "v.csv")
    train = split((some(20, "x "), some(20, "y")), [0, 1] * 10)
    the_only(found(task(train, held)), "error", "all 10 validation examples", "`text`")


def test_a_class_that_validation_does_not_have():
    train = split(some(21, "train"), [0, 1, 2] * 7)
    one = task(train, classes=("a", "b", "c\x1b"))
    the_only(found(one), "warning", r"no example of the class 'c\x1b'")


def test_a_class_that_training_does_not_have():
    held = split(some(12, "held"), [0, 1, 2] * 4, "validation.csv")
    one = task(validation=held, classes=("a", "b", "c", "d"), named=True)
    error, warning = found(one)
    the_only([error], "error", "no example of the class 'c'", "has 4")
    assert lines(error) == {"validation.csv": [4, 7, 10, 13]}
    the_only([warning], "warning", "no example is of the class 'd'")


@pytest.mark.parametrize(
    "classes",
    [("METHOD", "method"), ("a b", "a  b"), ("e\u0301", "\xe9"), ("x", "x\u200b")],
)
def test_classes_that_are_almost_certainly_one(classes):
    train = split(some(20, "train"), [0, 1, 1, 1] * 5)
    one = the_only(found(task(train, classes=classes)), "error", "almost certainly one")
    # The rarer of the two.
    assert lines(one)["train.csv"] == [2, 6, 10, 14, 18]
    assert lines(one)["validation.csv"] == [2, 4, 6, 8, 10]
    assert one.sentence.isprintable()
    assert found(task(train, classes=classes, named=True)) == []


def test_gaps_in_integer_labels():
    def of(*classes):
        n = len(classes)
        train = split(some(4 * n, "train"), list(range(n)) * 4)
        return found(
            task(train, split(some(n, "held"), list(range(n)), "v.csv"), classes)
        )

    the_only(of("1", "2", "4"), "warning", "from 1 to 4, but none is 3;", "3 classes")
    the_only(of("0", "99999"), "warning", "none is 1, 2, 3, 4, 5 and 99,993 more")
    assert of("-1", "1") == of("1", "2") == of("0", "1", "2") == of("a", "4") == []


def test_numbers_that_look_like_a_regression():
    def of(classes, each, named=False):
        labels = list(range(classes)) * each
        train = split(some(len(labels), "train"), labels)
        held = split(some(classes, "held"), list(range(classes)), "v.csv")
        names = [str(i) for i in range(classes)]
        return found(task(train, held, names, named))

    the_only(of(45, 4), "error", "45 different numbers", "4.0 training", "regression")
    assert of(20, 4) == of(21, 10) == of(45, 4, named=True) == []


def test_several_labels_in_one_cell():
    train = split(some(20, "train"), [0, 1, 2, 3] * 5)
    held = split(some(8, "held"), [0, 1, 2, 3] * 2, "v.csv")
    for separator in ("|", ";", ",", ", "):
        classes = ("a", f"a{separator}b", "b", "c|d")
        one = the_only(found(task(train, held, classes)), "error", "several labels")
        assert repr(classes[1]) in one.sentence and "c|d" not in one.sentence
        assert lines(one) == {"train.csv": [3, 7, 11, 15, 19], "v.csv": [3, 7]}
        assert found(task(train, held, classes, named=True)) == []


def test_labels_that_could_be_names_or_positions():
    of = {"named": True, "classes": ("1", "0")}
    the_only(found(task(**of)), "warning", "read as names")
    for classes in (("0", "1"), ("1", "2"), ("x", "0")):
        assert found(task(**(of | {"classes": classes}))) == []


@pytest.mark.parametrize(
    "examples, words",
    [
        (1, ["`train_examples` must be", "Received: 1, of class 'b'"]),
        (2, ["`train_examples` must be", "Received: 2, all of class 'b'"]),
        (31, ["at most the 30", "Received: 31"]),
    ],
)
def test_subsets_that_cannot_be_trained_on(examples, words):
    train = split(some(30, "train"), [0, *[1] * 29])
    one = found(task(train), train_examples={"t": examples})
    the_only(one, "error", *words)


def test_classes_that_a_subset_leaves_out():
    train = split(some(90, "train"), [0, 1] * 44 + [2, 2])
    held = split(some(9, "held"), [0, 1, 2] * 3, "v.csv")
    one = task(train, held, ("a", "b", "c"))
    the_only(
        found(one, train_examples={"t": 10}),
        "warning",
        "no example is trained of the class 'c'",
    )
    assert found(one, train_examples={"t": 90}) == []


@pytest.mark.parametrize(
    "labels, lack", [([1], "1, of class 'b'"), ([1] * 4, "4, all of class 'b'")]
)
def test_a_validation_that_cannot_judge(labels, lack):
    held = split(some(len(labels), "held"), labels, "validation.csv")
    error, missing = found(task(validation=held))
    the_only([error], "error", "validation must be at least 2", f"Received: {lack}")
    assert missing.level == "warning"


def test_all_errors_are_named_at_once_and_no_warning():
    rows = Rows("f.csv", np.arange(30), "line")
    findings = [
        Finding("error", "x\u202e", "one", (rows,)),
        Finding("warning", "y", "two"),
        Finding("error", "z", "three", (rows.take(np.arange(3)),)),
    ]
    with pytest.raises(InputError) as caught:
        stop_at_errors(findings)
    message = str(caught.value)
    assert message.startswith(
        r"2 things are wrong in the data: (1) Task 'x\u202e': one [f.csv, lines 0, 1, "
        "2, 3, 4 and 25 more]. (2) Task 'z': three [f.csv, lines 0, 1, 2]. "
    )
    assert "two" not in message and "lrdist check CONFIG --all" in message
    stop_at_errors(findings[1:2])


def test_a_finding_has_every_place():
    rows = Rows("f.csv", np.arange(30), "line"), Rows("glue/x, train", np.array([7]))
    found = Finding("warning", "t", "s", rows)
    assert found.places == [*(("f.csv", i) for i in range(30)), ("glue/x, train", 7)]
    assert found.text().endswith("and 25 more; glue/x, train, row 7].")
    assert found.text(None).endswith("28, 29; glue/x, train, row 7].")


def test_a_summary_of_a_split():
    labels = [0] * 15 + [2] * 5
    one = task(split(some(20), labels), classes=("a", "b", "c"))
    lengths = np.arange(1, 21)
    summary = summarize_split(one, "train", lengths, 16)
    assert summary.classes == {"a": 15, "b": 0, "c": 5}
    # Of 1 to 20: 10 halves them, 19 of 20 are 95 %.
    assert summary.lengths == (1, 10, 19, 20)
    assert (summary.examples, summary.cut) == (20, 0.2)


def test_errors_come_first():
    held = split(some(12, "held"), [0, 1, 2] * 4, "validation.csv")
    texts = some(20, "train")
    texts[2] = texts[0]
    train = split(texts, [0, 1] * 10)
    levels = [f.level for f in found(task(train, held, ("a", "b", "c"), True))]
    assert levels == ["error", "warning"]


def test_four_hundred_thousand_rows_take_seconds():
    count = 400_000
    texts = [
        f"a sentence of some length with the number {i % 390_000}" for i in range(count)
    ]
    train = split(texts, np.arange(count) % 2)
    start = time.process_time()
    copies, leak = found(task(train, split(texts[:4000], [0, 1] * 2000, "v.csv")))
    assert time.process_time() - start < 20
    assert len(copies.rows[0].numbers) + len(leak.rows[0].numbers) > 20_000


@pytest.mark.parametrize("name", ["mrpc", "cola", "rte"])
def test_glue_has_warnings_only(shared, name):
    settings = TaskSettings(name=name, source=f"glue/{name}")
    glue = load_task(settings, DataSettings(dir=str(shared / "tfds")))
    findings = check_tasks({name: glue})
    assert {f.level for f in findings} <= {"warning"}
    for finding in findings:
        for source, row in finding.places:
            assert source in (f"glue/{name}, train", f"glue/{name}, validation")
            assert 0 <= row < len(glue.splits[source.rpartition(" ")[2]])
    if name == "cola":
        leak = next(f for f in findings if "validation" in f.sentence)
        train, validation = (
            {" ".join(t.lower().split()) for t in glue.splits[s].texts[0]}
            for s in ("train", "validation")
        )
        texts = glue.splits["validation"].texts[0]
        rows = [row for source, row in leak.places if source.endswith("validation")]
        assert {" ".join(texts[r].lower().split()) for r in rows} == train & validation
