"""`trials.csv` and `scheme.json`: what is written can be read, and nothing else can."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrdist_keras.errors import InputError
from lrdist_keras.groups import PatternScheme, Scheme
from lrdist_keras.search.trials import (
    Trials,
    correlations,
    ranked_combination,
    read_trials,
    write_trials,
)

SMALL = Scheme(1)
HEADER = "a1,p_s,p_o,embeddings,encoder_1,head"
ROW = "0.9,0.8,0.7,1e-5,1e-5,1e-4"


def row(**values):
    return {
        "a1": 0.9, "p_s": 0.8, "p_o": 0.7, "reward": 1.5, "embeddings": 1e-5,
        "encoder_1": 2e-5, "head": 1e-4, "budget": 1.0, "seed": 0, "learned": True,
        "seconds": 1.5, "sampler": "bayesian_hyperband", **values,
    }  # fmt: skip


accuracies = st.floats(0.0, 1.0)
rates = st.floats(1e-300, 1e3)
trials = st.fixed_dictionaries(
    {
        "a1": accuracies,
        "p_s": accuracies,
        "p_o": accuracies,
        "reward": st.floats(0.0, 100.0),
        "embeddings": rates,
        "encoder_1": rates,
        "head": rates,
        "strength": rates,
        "budget": st.floats(0.0, 1.0, exclude_min=True),
        "seed": st.integers(0, 2**31),
        "learned": st.booleans(),
        "seconds": st.floats(0.0, 1e6),
        "sampler": st.sampled_from(["tpe", 'a "quoted, name"']),
    }
)
OPTIONAL = ["a1", "reward", "strength", "budget", "seed", "learned", "seconds"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(trials, min_size=1, max_size=4),
    left_out=st.sets(st.sampled_from(OPTIONAL)),
    as_numpy=st.booleans(),
)
def test_what_is_written_is_read(tmp_path, rows, left_out, as_numpy):
    rows = [{k: v for k, v in row.items() if k not in left_out} for row in rows]
    if as_numpy:
        rows = [
            {k: np.float64(v) if isinstance(v, float) else v for k, v in row.items()}
            for row in rows
        ]
    write_trials(tmp_path, SMALL, rows)
    found = read_trials(tmp_path)
    assert found.scheme == SMALL
    for i, name in enumerate(SMALL.names):
        assert found.rates[:, i].tolist() == [row[name] for row in rows]
    for name in ("p_s", "p_o", "reward", "strength", "budget", "seed", "learned"):
        column = getattr(found, name)
        if name in left_out:
            assert column is None
        else:
            assert column.tolist() == [row[name] for row in rows]
    ranked_combination(found)


@pytest.mark.parametrize(
    ("reward", "accuracy"), [(0.0, 0.0), (2.0, 1.0), (5e-324, 5e-324)]
)
def test_the_least_and_the_most_that_a_run_can_give(tmp_path, reward, accuracy):
    write_trials(
        tmp_path,
        SMALL,
        [row(reward=reward, a1=accuracy, p_s=accuracy, p_o=accuracy, learned=False)],
    )
    assert read_trials(tmp_path).reward.tolist() == [reward]


@pytest.mark.parametrize(
    "wrong",
    [
        {"reward": float("nan")}, {"reward": float("inf")}, {"reward": -0.1},
        {"p_s": float("nan")}, {"p_o": 1.1}, {"head": 0.0}, {"head": float("inf")},
        {"budget": 0.0}, {"seed": -1}, {"learned": None},
    ],
)  # fmt: skip
def test_what_could_not_be_read_is_not_written(tmp_path, wrong):
    write_trials(tmp_path, SMALL, [row()])
    before = (tmp_path / "trials.csv").read_text()
    (name,) = wrong
    with pytest.raises(InputError, match=f"trials.csv, line 3, column {name}: "):
        write_trials(tmp_path, SMALL, [row(), row(**wrong)])
    assert (tmp_path / "trials.csv").read_text() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER},seed,p_s,head\n", r"once. Received twice: \['head', 'p_s'\]"),
        (f"{HEADER},learned\n{ROW},yes\n", "line 2, column learned: .* true or false"),
        (f"{HEADER},seed\n{ROW},0.5\n", "line 2, column seed: .* whole number"),
        (f"{HEADER},seed\n{ROW},-1\n", "line 2, column seed: .* whole number"),
        (f"{HEADER},seed\n{ROW},nan\n", "line 2, column seed: .* whole number"),
        (f"{HEADER},reward\n{ROW},-1\n", "line 2, column reward: .*sum of accuracies"),
        (f"{HEADER},reward\n{ROW},inf\n", "line 2, column reward: .*sum of accuracies"),
        (f"{HEADER}\n{ROW}\n\n\n{ROW.replace('0.8', '8')}\n", "line 5, column p_s"),
        (f"{HEADER}\n{ROW},1\n", "line 2: a row must have at most one value for each"),
        (f"{HEADER}\n0.9,0.8\n", "line 2, column embeddings: the value is missing"),
        (f'{HEADER}\n{ROW[:-1]}"\n{ROW}\n', "line 2"),
        (f'{HEADER}\n"{ROW}\n{ROW}\n', "line 3: unexpected end of data"),
        (f"{HEADER}\n{ROW}\0\n", "line 2"),
        (f"{HEADER}\n0.9,{'1' * 200_000},0.7,1e-5,1e-5,1e-5\n", "line 2"),
        ("", "Received: 0 columns"),
        ("\n\n", "Received: 0 columns"),
    ],
)
def test_wrong_files_are_named_with_their_line(tmp_path, text, message):
    path = tmp_path / "trials.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_trials(path, SMALL)
    assert str(path) in str(error.value)


def test_a_file_by_hand_may_be_of_a_spreadsheet(tmp_path):
    """With a byte-order mark, Windows' line ends, blank lines and capitals."""
    path = tmp_path / "trials.csv"
    text = f"{HEADER},seed,learned\r\n{ROW},0.0,TRUE\r\n\r\n{ROW},1,False\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_trials(path, SMALL)
    assert found.seed.tolist() == [0, 1] and found.learned.tolist() == [True, False]


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(alphabet='0159.,-e"\n\r \0xa1ps_o', max_size=80).map(
            lambda text: f"{HEADER}\n{ROW}\n{text}".encode()
        ),
    )
)
def test_any_trials_file_is_read_or_refused(tmp_path, content):
    path = tmp_path / "trials.csv"
    path.write_bytes(content)
    try:
        read_trials(path, SMALL)
    except InputError as error:
        assert str(path) in str(error)


SCHEMES = {
    "not JSON": "{",
    "not text": b"\xff\xfe\x00",
    "empty": "",
    "nested": "[" * 100_000 + "]" * 100_000,
    "nested in patterns": '{"patterns": ' * 100_000 + "1" + "}" * 100_000,
    "a list": "[1, 2]",
    "a number": "12",
    "null": "null",
    "text": '"patterns"',
    "a layer that is text": '{"layers": "12"}',
    "layers below one": '{"layers": 0}',
    "a number of 5000 digits": '{"layers": 1' + "0" * 5000 + "}",
    "infinitely many": '{"layers": 1e999}',
    "another key": '{"layers": 1, "depth": 2}',
    "patterns by number": '{"patterns": 5}',
    "no patterns": '{"patterns": {}}',
    "patterns that are no text": '{"patterns": {"a": [1]}}',
    "patterns and layers": '{"patterns": {"a": "b"}, "layers": 1}',
    "sizes of other layers": '{"layers": 2, "layer_groups": [1]}',
    "sizes below one": '{"layers": 1, "layer_groups": [1, 0]}',
    "sizes and a number": '{"layers": 1, "layer_groups": [1], "encoder_groups": 1}',
    "very many sizes": '{"layers": 1, "layer_groups": [' + "1, " * 10**5 + "1]}",
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_a_wrong_scheme_beside_it_is_named(tmp_path, scheme):
    (tmp_path / "trials.csv").write_text(f"{HEADER}\n{ROW}\n")
    content = scheme if isinstance(scheme, bytes) else scheme.encode()
    (tmp_path / "scheme.json").write_bytes(content)
    with pytest.raises(InputError, match="scheme.json is not the scheme of") as error:
        read_trials(tmp_path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "groups, wrong",
    [
        (10**4, "encoder groups.*Received: 6 columns"),
        (10**9, "`layers` must be an integer from 1 to 10000"),
        (10**18, "`layers` must be an integer from 1 to 10000"),
    ],
)
def test_a_scheme_of_very_many_groups_takes_no_memory(tmp_path, groups, wrong):
    (tmp_path / "trials.csv").write_text(f"{HEADER}\n{ROW}\n")
    scheme = json.dumps({"layers": groups, "encoder_groups": groups})
    (tmp_path / "scheme.json").write_text(scheme)
    with pytest.raises(InputError, match=wrong) as error:
        read_trials(tmp_path)
    assert len(str(error.value)) < 1000


def test_trials_of_groups_of_ones_own(tmp_path):
    scheme = Scheme(12, layer_groups=(1, 2, 9))
    rates = {name: 1e-5 * (i + 1) for i, name in enumerate(scheme.names)}
    write_trials(tmp_path, scheme, [{"p_s": 0.8, "p_o": 0.7, **rates}])
    content = json.loads((tmp_path / "scheme.json").read_text())
    assert content == {"layers": 12, "layer_groups": [1, 2, 9]}
    found = read_trials(tmp_path)
    assert found.scheme == scheme
    assert ranked_combination(found).rates == pytest.approx(rates)
    (tmp_path / "scheme.json").unlink()
    with pytest.raises(InputError, match="If the file is of another scheme, name it"):
        read_trials(tmp_path)
    assert read_trials(tmp_path, Scheme.parse("12/1-2-9")).scheme == scheme


def test_of_many_layers_in_few_groups_a_file_may_well_be(tmp_path):
    (tmp_path / "trials.csv").write_text(f"{HEADER}\n{ROW}\n")
    scheme = json.dumps({"layers": 10**4, "encoder_groups": 1})
    (tmp_path / "scheme.json").write_text(scheme)
    assert read_trials(tmp_path).rates.shape == (1, 3)


def test_a_group_is_not_called_as_another_column(tmp_path):
    scheme = PatternScheme({"seed": "a", "rest": "b"})
    (tmp_path / "trials.csv").write_text("p_s,p_o,seed,rest\n0.8,0.7,1e-5,1e-5\n")
    (tmp_path / "scheme.json").write_text(json.dumps(scheme.to_json()))
    with pytest.raises(InputError, match=r"called as another column.*\['seed'\]"):
        read_trials(tmp_path)


def of(rewards, **columns):
    rewards = np.array(rewards)
    rates = np.geomspace(1e-6, 1e-4, len(rewards))[:, None] * np.ones(3)
    columns = {name: np.array(values) for name, values in columns.items()}
    return Trials(SMALL, rates, rewards / 2, rewards / 2, **columns)


def test_a_combination_says_how_many_of_its_trials_did_not_learn():
    found = of([1.0, 1.5, 1.2, 1.1], learned=[False, True, True, False])
    combined = ranked_combination(found)
    assert combined.provenance["ranked"] == 4
    assert combined.provenance["not_learned"] == 2
    # They are ranked as the paper has it.
    same = ranked_combination(of([1.0, 1.5, 1.2, 1.1]))
    assert combined.rates == same.rates
    assert same.provenance["not_learned"] is None


def test_a_setting_learned_if_most_of_its_runs_did():
    found = of(
        [1.0] * 7,
        learned=[True, True, False, True, False, False, False],
        seed=[0, 1, 2, 0, 1, 0, 0],
    )
    found.rates[:3], found.rates[3:5] = 2e-5, 3e-5
    assert ranked_combination(found).provenance["ranked"] == 4
    # Two of three learned; of two one, which is not most; two single ones did not.
    assert found.ranked_without_learning() == 3


def test_of_what_is_not_ranked_nothing_is_counted():
    budget = [1.0] * 5 + [0.5]
    learned = [True] * 5 + [False]
    found = of([1.0] * 6, learned=learned, budget=budget)
    assert found.ranked_without_learning() == 0


def several(count, budget):
    rewards = [1.0 + 0.1 * i for i in range(count)]
    return [
        row(reward=r, p_o=1.0 - r / 4, head=1e-5 * r, budget=budget) for r in rewards
    ]


def test_no_correlation_of_fewer_than_eight():
    for count, expected in ((7, None), (8, pytest.approx(1.0))):
        found = correlations(several(count, 1.0) + several(count, 0.5))
        assert found == {
            "between_rungs": [
                {"budgets": [0.5, 1.0], "settings": count, "spearman": expected}
            ],
            "reward_and_forgetting": expected,
            "reward_and_forgetting_trials": count,
        }
    assert correlations([]) == {
        "between_rungs": [],
        "reward_and_forgetting": None,
        "reward_and_forgetting_trials": 0,
    }
