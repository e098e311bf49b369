"""Names from files and configurations stand in tables as they are."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from test_tables import SCHEME, record

from lrdist_keras.data.shifts import LabelShares
from lrdist_keras.distribution import Distribution, flat, spread
from lrdist_keras.laboratory.statistics import compare_arms
from lrdist_keras.laboratory.summaries import summarize
from lrdist_keras.report import comparison_tables, progress, tables

# Markup, an emoji's code, a colour, a mark of direction, a backslash at the end.
NAME = "[red]b[/b]:ox:\x1b[31m!\u202e\\"
SHOWN = r"[red]b[/b]:ox:\x1b[31m!\u202e" + "\\"


def shown(renderable):
    file = io.StringIO()
    Console(file=file, width=400, force_terminal=True).print(renderable)
    return file.getvalue()


def of_results():
    records = [record(NAME, seed, sequence=f"{NAME} -> b") for seed in (0, 1)]
    return [tables.results_table(summarize(records), NAME)], 2


def of_groups():
    return tables.group_tables([("head", 1, 1)], {NAME: flat(1e-5, SCHEME)}), 1


def of_labels():
    shares = LabelShares(NAME, (NAME, "b"), (0.5, 0.5), (0.5, 0.5), 0.0, 0.0)
    return [tables.labels_table({"s": [shares]})], 2


def of_a_distribution():
    found = Distribution(SCHEME, flat(1e-5, SCHEME).rates, {"strategy": NAME})
    pairs = [flat(1e-5, SCHEME), flat(5e-5, SCHEME)]
    combined = tables.spread_table(found, pairs, spread(pairs))
    return [tables.distribution_table(found, NAME), combined], 2


def of_measures():
    values = {
        "task_metrics": {m: [{"f1": 0.5}] * 3 for m in ("after", "final")},
        "calibration_error": {"after": [0.1] * 3, "final": [0.1] * 3},
        "average": 0.5,
        "majority_rates": [0.5] * 3,
        "accuracy": [[0.9] * 3] * 3,
        "examples": [100] * 3,
        "task_forgetting": [0.1, 0.1],
        "tasks": [NAME, "b", "c"],
    }
    records = [
        record(NAME, sequence=f"{name} -> b -> c") | values for name in (NAME, "a")
    ]
    return comparison_tables.measures_tables(records), 12


def of_statistics():
    arms = {NAME: 0.8, "b": 0.9, "c": 0.95}
    records = [
        record(arm, seed, p_s=p_s, sequence=sequence, learned=seed > 0)
        for arm, p_s in arms.items()
        for seed in range(3)
        for sequence in (f"{NAME} -> b", "b -> a")
    ]
    compared = compare_arms(records, NAME, {"b": 1e-5, "c": 1e-4})
    return comparison_tables.statistics_tables(compared), 12


@pytest.mark.parametrize(
    "build",
    [
        of_results,
        of_groups,
        of_labels,
        of_a_distribution,
        of_measures,
        of_statistics,
    ],
)
def test_names_are_shown_as_they_are_and_cannot_change_the_terminal(build):
    found, count = build()
    text = "".join(map(shown, found))
    assert text.count(SHOWN) >= count
    for unwanted in ("\x1b[31m!", "\u202e", "🐂", "\x1b[31mb"):
        assert unwanted not in text


class Prepared:
    """What `run_comparison` asks of a comparison, with one run."""

    def __init__(self, configuration):
        self.configuration = configuration

    def steps(self, sequence, arm):
        return 1

    def run(self, on_start, on_steps, on_record, keep=None):
        (arm,) = self.configuration.arms
        on_start(None, arm, 0)
        on_record(
            record(arm.name)
            | {"seconds": 1.0, "examples_per_second": 1.0, "compilations": 0}
        )
        return []


def test_the_line_of_a_run_and_its_progress_show_a_name_as_it_is(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    arms = [SimpleNamespace(name=NAME)]
    configuration = SimpleNamespace(arms=arms, seeds=[0], sequences=[None])
    progress.run_comparison(Prepared(configuration), [(None, arms[0], 0)])
    printed = "".join(capsys.readouterr())
    assert printed.count(SHOWN) >= 2
    assert "\x1b[31m!" not in printed and "\u202e" not in printed
