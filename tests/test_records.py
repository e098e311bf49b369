import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_cases import record, write_runs

from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import records

GOOD = record()


def test_a_record_is_read_as_it_was_written(tmp_path):
    one = record("ä\u202e\x1b[31m", 3, accuracy=((0.1, None), (None, None)))
    one |= {"diverged": True, "probe": {"after": [0.5]}, "drift": [1e-300, 2]}
    for r in (GOOD, one):
        records.append_run(tmp_path, r)
    assert records.read_runs(tmp_path) == [GOOD, one]
    assert records.read_runs(tmp_path / "none") == []


def test_half_a_line_is_cut_off(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n{{"seed": 1')
    assert records.read_runs(tmp_path) == [GOOD]
    records.cut_half_a_line(tmp_path)
    assert path.read_text() == json.dumps(GOOD) + "\n"


@pytest.mark.parametrize(
    "damage, wrong",
    [
        ('{"seed": ', "not JSON"),
        ("{}", "sequence: Field required"),
        ("1", "the record"),
        ("", "not JSON"),
        ("[]", "the record"),
        ("[" * 100_000, "nested too deeply"),
        ('{"seed": 0, "seed": 1}', "stands twice: 'seed'"),
        (json.dumps(GOOD).replace("0.5", "NaN", 1), "must be finite"),
        (json.dumps(GOOD).replace("0.5", "1e999", 1), "must be finite"),
        (json.dumps(GOOD | {"seed": 0.5}), "seed"),
        (json.dumps(GOOD | {"seed": True}), "seed"),
        (json.dumps(GOOD | {"learned": 1}), "learned"),
        (json.dumps(GOOD | {"p_s": "0.5"}), "p_s"),
        (json.dumps(GOOD | {"p_s": 0.75}), "p_s is 0.75, but its accuracies give 0.5"),
        (json.dumps(GOOD | {"p_o": None}), "p_o is None"),
        (json.dumps(GOOD | {"accuracy": [[1.5]]}), "less than or equal to 1"),
        (json.dumps(GOOD | {"accuracy": [[0.5], [0.5, 0.5]]}), "different lengths"),
        (json.dumps(GOOD | {"accuracy": []}), "accuracy"),
        (json.dumps(GOOD | {"examples": [100]}), "sizes that do not fit"),
        (json.dumps(GOOD | {"examples": [0, 1]}), "examples"),
        (json.dumps(GOOD | {"logits": {"file": "x"}}), "logits.sha256"),
        (json.dumps(GOOD | {"rates": [{"head": 0.0}] * 2}), "rates.0.head"),
        (json.dumps(GOOD | {"rates": [{"head": 1.0}]}), "rates: of 1 tasks, not 2"),
        (
            json.dumps(GOOD | {"rates": [{"head": 1.0}, {"tail": 1.0}]}),
            "rates: the groups of the tasks differ",
        ),
    ],
)
def test_a_damaged_line_is_named_with_what_is_wrong(tmp_path, damage, wrong):
    other = json.dumps(record(seed=2))
    (tmp_path / "runs.jsonl").write_text(f"{json.dumps(GOOD)}\n{damage}\n{other}\n")
    with pytest.raises(InputError, match="line 2 is damaged; remove the line") as error:
        records.read_runs(tmp_path)
    assert wrong in str(error.value)


def test_two_records_of_one_run_are_both_named(tmp_path):
    write_runs(tmp_path, GOOD, record(seed=1), GOOD | {"seconds": 3})
    with pytest.raises(InputError, match="lines 1 and 3.*'a -> b', arm 'x', seed 0"):
        records.read_runs(tmp_path)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=200, deadline=1000)
def test_whatever_the_file_holds_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "runs.jsonl").write_bytes(content)
    try:
        assert records.read_runs(folder) == [] and b"\n" not in content
    except InputError as error:
        assert "runs.jsonl, line" in str(error)


def test_logits_that_are_missing_or_of_another_run_are_noticed(tmp_path):
    of_run = {(0, 0): np.eye(2, dtype=np.float32)}
    told = records.save_logits(tmp_path, "logits/0-0-0.npz", of_run)
    run = GOOD | {"logits": told}
    assert not records.lost_logits(tmp_path, run)
    with np.load(tmp_path / "logits" / "0-0-0.npz") as arrays:
        assert np.array_equal(arrays["after_0_on_0"], np.eye(2))
    # The same logits, written again, are the same file.
    assert records.save_logits(tmp_path, "logits/0-0-0.npz", of_run) == told
    records.save_logits(tmp_path, "logits/0-0-0.npz", {(0, 0): np.ones((2, 2))})
    assert records.lost_logits(tmp_path, run)
    (tmp_path / "logits" / "0-0-0.npz").unlink()
    assert records.lost_logits(tmp_path, run)
    assert not records.lost_logits(tmp_path, GOOD)  # of a version that did not say
