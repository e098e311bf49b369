"""The data is checked before anything is trained, and by a command of its own."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import sentiment, write_rows
from test_cli import lrdist, refused

from lrdist_keras import config
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import checking, loading, task_data

RENAMED = "tasks.first.train=strange.csv"


@pytest.fixture
def path(tmp_path, toml):
    path = tmp_path / "small.toml"
    path.write_text(toml)
    return path


@pytest.fixture
def strange(tables):
    """A training file in which one text, one label and one class are strange."""
    texts, labels = sentiment(64, 7)
    texts[3], labels[3], labels[4] = " ", "POSITIVE", "positive|negative"
    texts[40:60], labels[40:60] = [texts[0]] * 20, [labels[0]] * 20
    labels[0] = labels[40]
    write_rows(tables / "strange.csv", texts, labels)
    return "strange.csv"


def test_the_command_needs_no_weights_and_shows_tables(path, tiny_preset, tmp_path):
    light = tmp_path / "light"
    shutil.copytree(tiny_preset, light, ignore=shutil.ignore_patterns("*.h5"))
    result = lrdist("check", path, "--set", f"model.preset={light}")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines()]
    (train,) = (row for row in rows if row[:2] == ["first", "train"])
    # 64 sentences of 4 to 20 words, with two special tokens each.
    assert train[2] == "64" and train[-1] == "0.0%"
    assert 6 <= int(train[3]) < int(train[4]) <= int(train[5]) <= int(train[6]) <= 22
    assert ["first", "negative"] in [row[:2] for row in rows]
    assert "0 errors and 0 warnings." in result.stdout


def test_the_command_names_all_that_is_wrong_and_writes_every_row(
    path, strange, tmp_path
):
    out = tmp_path / "found.json"
    write = ("--json", out)
    result = lrdist("check", path, "--set", f"tasks.first.train={strange}", *write)
    assert result.returncode == 2, result.stderr
    said = [x for x in result.stdout.splitlines() if x.startswith(("error", "warn"))]
    # Errors first: two classes that are one, several labels in a cell.
    assert [x.split(":")[0] for x in said][:3] == ["error", "error", "warning"]
    assert "almost certainly one" in "".join(said[:2])
    assert "several labels" in "".join(said[:2])
    assert any("empty in 1 of 64 training" in x and "line 5]" in x for x in said)
    (copies,) = (x for x in said if "repeats 20 of 64" in x)
    assert "lines 2, 42, 43, 44, 45 and 16 more]" in copies
    assert "--all lists every row" in result.stdout
    content = json.loads(out.read_text())
    (rows,) = (f["rows"] for f in content["findings"] if "repeats" in f["sentence"])
    assert [line for _, line in rows] == [2, *range(42, 62)]
    assert {Path(file).name for file, _ in rows} == {"strange.csv"}
    first = content["splits"][0]
    assert (first["task"], first["split"], first["examples"]) == ("first", "train", 64)
    assert sum(first["classes"].values()) == 64


def test_a_comparison_stops_with_all_errors_in_one_line(path, strange, tmp_path):
    held = ("--set", "tasks.second.validation=second.csv")
    message = refused(
        "compare", path, "--out", tmp_path / "out", "--set", RENAMED, *held
    )
    assert "3 things are wrong in the data: (1) Task 'first'" in message
    assert "(3) Task 'second': its validation examples are training" in message
    assert "lrdist check CONFIG --all" in message


def test_a_search_of_three_examples_is_an_input_error(path, tables, tmp_path):
    labels = ["negative", "positive", "positive"]
    write_rows(tables / "three.csv", ["a", "b", "c"], labels)
    message = refused(
        "search", path, "--out", tmp_path / "out",
        "--set", "tasks.first.train=three.csv",
    )  # fmt: skip
    assert "Task 'first': the slice of a search" in message
    assert "of the 3 training examples" in message and "Received: none" in message


@pytest.fixture
def load(path):
    def load(*overrides, text=None):
        if text is not None:
            path.write_text(text)
        return config.load(path, overrides)

    return load


def test_warnings_are_lines_on_stderr_with_their_first_rows(load, tables, capsys):
    texts, labels = sentiment(64, 7)
    texts[10:20], labels[10:20] = [texts[0]] * 10, [labels[0]] * 10
    write_rows(tables / "copies.csv", texts, labels)
    loading.load(load("tasks.first.train=copies.csv"), ["first"])
    warning, hint = capsys.readouterr().err.splitlines()
    assert warning.startswith("lrdist: warning: Task 'first': training repeats 10 of")
    assert warning.endswith("copies.csv, lines 2, 12, 13, 14, 15 and 6 more].")
    assert "lrdist check CONFIG --all" in hint


def test_all_tasks_that_cannot_be_loaded_are_named(load):
    broken = load("tasks.first.text=txt", "tasks.second.train=gone.csv")
    with pytest.raises(InputError, match=r"2 tasks.*\(1\).*'txt'.*\(2\).*'gone|gone"):
        task_data.load_texts(broken, ["first", "second"])
    with pytest.raises(FileNotFoundError, match="Task 'second': there is no file"):
        task_data.load_texts(broken, ["second"])


def errors(configuration):
    return [f.text() for f in checking.check(configuration).findings]


def test_parts_and_slices_are_checked_where_no_model_is_needed(load, toml):
    halved = toml.replace(
        'tasks = ["first", "second"]', 'tasks = ["second"]\nshift = "length"'
    )
    (error,) = errors(load("tasks.second.train_examples=1", text=halved))
    assert "`train_examples` examples" in error and "'short': 1, of class" in error
    assert errors(load("tasks.second.train_examples=10", text=halved)) == []
    searched = (
        "search.slice_examples=1",
        "search.budget=9.0",
        "tasks.second.train_examples=10",
    )
    (error,) = errors(load(*searched))
    assert "Task 'second (short)': the slice of a search" in error
    assert "'second (long)'" in error and "Received: 1, of class" in error


def test_clusters_are_said_to_be_unchecked(load, toml):
    clusters = toml.replace(
        'tasks = ["first", "second"]', 'tasks = ["second"]\nshift = "cluster"'
    )
    found = checking.check(load(text=clusters))
    assert found.unchecked == ["second (2 clusters)"] and not found.findings


@pytest.mark.parametrize(
    "examples, overrides, message",
    [
        (30, "search.slice_examples=1", "raise search.slice_examples.*: 1, of class"),
        (
            9,
            "search.seed=1",
            "slice.*a fifth of the 9 training examples.*: 1, of class",
        ),
        (30, "tasks.first.train_examples=27", "at most the 2. that the slice"),
        (30, "tasks.first.train_examples=1", "`train_examples` must"),
    ],
)
def test_slices_that_leave_too_little(load, tables, examples, overrides, message):
    texts = [f"film {i}" for i in range(examples)]
    labels = ["negative", "positive"] * (examples // 2) + ["positive"]
    write_rows(tables / "few.csv", texts, labels[:examples])
    found = errors(load("tasks.first.train=few.csv", "search.repeats=3", overrides))
    assert any(re.search(f"'first'.*{message}", error) for error in found), found
