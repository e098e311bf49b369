import io

import numpy as np
import pytest
from rich.console import Console

from lrdist_keras.data.shifts import LabelShares
from lrdist_keras.distribution import Distribution, flat, kenneweg2022, spread
from lrdist_keras.groups import Scheme
from lrdist_keras.laboratory.metrics import METRICS
from lrdist_keras.laboratory.statistics import compare_arms
from lrdist_keras.laboratory.summaries import mean_rates, summarize
from lrdist_keras.report import comparison_tables, figures, tables

SCHEME = Scheme(2)


def text(renderable, width=80):
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue()


def record(arm="flat", seed=0, learned=True, p_s=0.8, sequence="a -> b"):
    return {
        "sequence": sequence,
        "arm": arm,
        "seed": seed,
        "tasks": sequence.split(" -> "),
        "learned": learned,
        "curves": {
            sequence.split(" -> ")[-1]: {
                "steps": [0, 5, 10],
                "accuracy": {sequence.split(" -> ")[0]: [0.9, 0.8, 0.7]},
            }
        },
        "accuracy": [[0.9, None], [0.7, p_s]],
        "examples": [100, 400],
        **dict(zip(METRICS, [0.9, p_s, 0.7, p_s + 0.7, 0.2], strict=True)),
    }


def test_results_have_mean_deviation_and_what_did_not_learn():
    records = [record(p_s=0.7), record(seed=1, p_s=0.9, learned=False)]
    lines = text(tables.results_table(summarize(records), "title"), 120).splitlines()
    row = next(line for line in lines if "flat" in line)
    assert row.split() == (
        "flat 0.900±.000 0.800±.141 0.700±.000 1.500±.141 0.200 1/2".split()
    )


def test_the_results_fit_a_terminal_of_80_columns():
    records = [record("kenneweg2022 at 5e-5", seed, p_s=seed / 4) for seed in (1, 2)]
    shown = text(tables.results_table(summarize(records), "title"))
    assert "0.375±.177" in shown and "0.200±.000" in shown and "2/2" in shown
    assert "…" not in shown


def differences(seeds, sequences=("a -> b",), learned=True):
    arms = {"flat 5e-5": 0.8, "flat 2e-4": 0.9, "kenneweg2022 at 5e-5": 0.84}
    records = [
        record(arm, seed, learned or seed > 0, p_s + seed % 3 / 100, sequence)
        for sequence in sequences
        for arm, p_s in arms.items()
        for seed in range(seeds)
    ]
    return compare_arms(records, "flat 5e-5", {"flat 5e-5": 5e-5, "flat 2e-4": 2e-4})


def test_the_differences_fit_a_terminal_of_80_columns():
    found = comparison_tables.statistics_tables(differences(21, ("a -> b", "b -> a")))
    shown = [text(table) for table in found]
    assert len(shown) == 4 and not any("…" in part for part in shown)
    assert "Differences to flat 5e-5 on b -> a" in shown[1]
    assert "on average over sequences" in shown[2] and "two-level" in shown[2]
    assert "at equal p_s" in shown[3]
    assert "n = 21: p is not exact, but of 19,999 drawn flips." in shown[1]


def test_a_difference_is_shown_with_its_intervals_tests_and_mark():
    (table, equal) = comparison_tables.statistics_tables(differences(8))
    rows = [line.split() for line in text(table).splitlines()]
    # 2 / 2^8 = 0.0078, and twice that for two comparisons.
    shown = "kenneweg2022 at 5e-5 +.040* +.040 +.040 +.040 +.040 .008 .016 8 7"
    assert shown.split() in rows
    # sqrt(0.8 * 0.2 / 400), on average over p_s from 0.80 to 0.82.
    assert ["p_s", "±.020"] in rows
    caption = " ".join(text(table, 300).split())
    assert "too few" not in caption and "did not learn" not in caption
    # p_o is .700 everywhere: nothing but rounding lies between arm and line.
    shown = "kenneweg2022 at 5e-5 +.000 +.000 +.000 +.000 +.000 1 1 8 -"
    assert shown.split() in [line.split() for line in text(equal).splitlines()]


def test_what_is_missing_for_a_mark_is_said():
    (table, _) = comparison_tables.statistics_tables(differences(7, learned=False))
    caption = " ".join(text(table, 300).split())
    assert "3 of 21 runs did not learn (flat 5e-5: 1, flat 2e-4: 1, kenn" in caption
    assert (
        "n = 6: too few to mark anything (forgetting). 2 comparisons take at least 7."
    ) in caption


def test_an_arm_outside_the_flat_curve_is_named():
    records = [
        record(arm, seed, p_s=p_s)
        for arm, p_s in {"[a]": 0.7, "b": 0.8, "c": 0.9}.items()
        for seed in range(2)
    ]
    compared = compare_arms(records, "b", {"[a]": 1e-5, "b": 1e-4})
    (_, equal) = comparison_tables.statistics_tables(compared)
    shown = " ".join(text(equal, 200).split())
    assert "'c' on a -> b: p_s of 2 of 2 runs lies outside the flat arms'" in shown
    assert "c - - - - - 1 1 0 -" in shown


def test_the_group_table_fits_a_terminal_whatever_the_number_of_arms():
    arms = {f"arm number {i}": flat(10.0 ** -(i + 2), SCHEME) for i in range(9)}
    arms["same as 0"] = arms["arm number 0"]
    groups = [(name, 16, 1_774_464) for name in SCHEME.names]
    found = tables.group_tables(groups, arms)
    shown = [text(table) for table in found]
    assert len(found) == 3
    assert not any("…" in part for part in shown)
    for i in range(9):
        assert any(f"{10.0 ** -(i + 2):.2e}" in part for part in shown)
    assert "7,097,856" in shown[0]


def test_groups_that_are_not_trained_have_no_rate(tmp_path):
    from matplotlib.image import imread

    arms = {"all": flat(1e-5, SCHEME), "head alone": flat(1e-5, SCHEME)}
    still = {"head alone": [name for name in SCHEME.names if name != "head"]}
    groups = [(name, 16, 1_774_464) for name in SCHEME.names]
    (table,) = tables.group_tables(groups, arms, still)
    rows = [
        line.split()[3:] for line in text(table).splitlines() if "1,774,464" in line
    ]
    assert rows == (len(SCHEME.names) - 1) * [["1.00e-05", "frozen"]] + [
        ["1.00e-05"] * 2
    ]
    drawn = []
    for frozen in ({}, still):
        figures.save_picture(tmp_path / "p.png", [record()], arms, frozen=frozen)
        drawn.append(imread(tmp_path / "p.png"))
    assert (drawn[0] != drawn[1]).any()


def test_correlations_are_shown_and_missing_ones_are_dashes():
    found = {
        "between_rungs": [{"budgets": [1 / 9, 1], "settings": 4, "spearman": 0.61}],
        "reward_and_forgetting": None,
    }
    shown = text(tables.correlations_table(found))
    rows = [line.split() for line in shown.splitlines()]
    assert ["rewards", "at", "budgets", "0.11", "and", "1.00", "4", "0.61"] in rows
    assert ["reward", "and", "forgetting,", "largest", "budget", "-"] in rows


def test_the_spread_of_pairs_is_shown():
    pairs = [flat(1e-5, SCHEME), flat(5e-5, SCHEME)]
    shown = text(tables.spread_table(flat(2e-5, SCHEME), pairs, spread(pairs)))
    row = next(line for line in shown.splitlines() if "head" in line)
    assert row.split() == ["head", "2.0000e-05", "1.0000e-05", "5.0000e-05", "5.00"]


def test_the_faults_that_were_on_are_one_line_and_the_title(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    assert tables.compat_line([]) == ""
    line = "compat: no_shuffling, carry_moments"
    assert tables.compat_line(["no_shuffling", "carry_moments"]) == line
    titles = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *_, **__: titles.append(self.get_suptitle())
    )
    arms = {"flat": flat(1e-5, SCHEME)}
    for compat in ([], ["no_shuffling", "carry_moments"]):
        figures.save_picture(tmp_path / "p.png", [record()], arms, compat)
    assert titles == ["", line]


def test_a_searched_strength_has_a_column_and_a_place_in_the_caption():
    found = Distribution(
        SCHEME, flat(1e-5, SCHEME).rates, {"strategy": "ewc", "strength": 123.0}
    )
    shown = text(tables.distribution_table(found, "best"), 120)
    assert "strategy ewc; strength 123.0" in " ".join(shown.split())
    row = {
        "budget": 1.0,
        "reward": 1.5,
        "a1": 0.8,
        "p_s": 0.8,
        "p_o": 0.7,
        "head": 1e-5,
    }
    row |= {"seed": 0, "seconds": 3.0, "sampler": "x"}
    without = text(tables.trials_table([row], "trials", 1))
    searched = text(tables.trials_table([row | {"strength": 456.7}], "trials", 1))
    assert "457" in searched and "strength" in searched
    assert "strength" not in without and searched.split()[-1] == "1e-05"


@pytest.mark.parametrize("sequences", [["a -> b"], ["a -> b", "a -> c -> b"]])
def test_the_picture_is_a_picture_of_the_data(tmp_path, sequences):
    from matplotlib.image import imread

    def picture(p_s):
        records = [
            record(arm, seed, seed == 0, p_s, sequence)
            for sequence in sequences
            for arm in ("flat", "other")
            for seed in (0, 1)
        ]
        arms = {"flat": flat(1e-5, SCHEME), "other": kenneweg2022().resample(SCHEME)}
        figures.save_picture(tmp_path / "p.png", records, arms)
        return imread(tmp_path / "p.png")

    one, other = picture(0.8), picture(0.6)
    assert one.shape[1] > 1000
    assert not np.array_equal(one, other)


def measured(arm="flat", seed=0, tasks=("a", "b"), **changes):
    """A record with all measures; numbers differ by seed."""
    last, shift = len(tasks) - 1, seed / 100
    both = {"after": 0.8 + shift, "final": 0.6 + shift}
    matrix = [
        [0.9 - 0.1 * (i - j) + shift if j <= i else None for j in range(last + 1)]
        for i in range(last + 1)
    ]
    groups = {"embeddings": 0.01, "encoder_1": 0.02 + shift}
    return {
        **record(arm, seed, sequence=" -> ".join(tasks)),
        "accuracy": matrix,
        "majority_rates": [0.6] * (last + 1),
        "examples": [400] * (last + 1),
        "average_accuracy": 0.7 + shift,
        "learning_accuracy": 0.8,
        "backward_transfer": -0.1 - shift,
        "task_forgetting": [0.1 + j / 100 + shift for j in range(last)],
        "forward_transfer": 0.01,
        "task_metrics": {
            name: [*[{"accuracy": x}] * last, {"matthews": x - 0.5}]
            for name, x in both.items()
        },
        "calibration_error": {name: [x / 10] * (last + 1) for name, x in both.items()},
        "probe": {name: [x] * last for name, x in both.items()},
        "probe_after": both["after"],
        "probe_p_o": both["final"],
        "drift": {"pretrained": [groups] * (last + 1), "after_first": groups},
        "similarity": {"pretrained": [1.0, 0.9], "after_first": [1.0, None]},
        **changes,
    }


def rows_of(table, width=80):
    shown = text(table, width)
    assert "…" not in shown
    return [line.split() for line in shown.splitlines()]


def test_further_measures_are_means_over_the_seeds():
    runs = [measured(seed=0), measured(seed=2), measured(seed=4, learned=False)]
    arms, tasks = comparison_tables.measures_tables(runs)
    # The third run learned nothing and changes no backward transfer: -.10 and -.12.
    shown = "flat .720±.020 .800±.000 -.110±.014 .010±.000 .820±.020 .620±.020"
    assert shown.split() in rows_of(arms)
    rows = rows_of(tasks)
    assert "flat .820±.020 .620±.020 .082±.002 .062±.002 .820±.020 .620±.020" in [
        " ".join(row) for row in rows
    ]
    # The last task is kept by no one yet, and has no probe.
    assert "flat .320±.020 .120±.020 .082±.002 .062±.002 - -".split() in rows
    assert ["b", "Matthews"] in rows


def test_longer_sequences_get_their_matrix_and_forgetting_per_task():
    names = ("sst2", "cola", "rte", "mrpc")
    runs = [measured("kenneweg2022 at 5e-5", seed, names) for seed in (0, 2, 4)]
    # Of rte, the third answered no better than 0.93 + 2 sqrt(0.93 * 0.07 / 400).
    runs[2] |= {"majority_rates": [0.6, 0.6, 0.93, 0.6], "learned": False}
    *_, matrices = comparison_tables.measures_tables(runs)
    rows = rows_of(matrices)
    assert "rte .720±.020 .820±.020 .920±.020 -".split() in rows
    assert "mrpc .620±.020 .720±.020 .820±.020 .920±.020".split() in rows
    assert "forgetting .120±.020 .130±.020 .130±.014".split() in rows


def test_rates_that_were_found_are_shown_with_their_means():
    def found(seed, factor, **changes):
        given = {"embeddings": 1e-3, "head": 1e-3}
        later = {"embeddings": factor * 1e-5, "head": 1e-2}
        return record("fisher", seed) | {"rates": [given, later], **changes}

    runs = [record(), found(0, 1.0), found(1, 4.0), found(2, 9.0, diverged=True)]
    assert mean_rates(runs) == {
        ("a -> b", "fisher", "b"): {
            "embeddings": pytest.approx(2e-5),
            "head": pytest.approx(1e-2),
        }
    }
    (table,) = comparison_tables.measures_tables(runs)
    rows = rows_of(table)
    assert "embeddings 2.00e-05".split() in rows and "head 1.00e-02".split() in rows
    assert "fisher on b" in text(table)
    many = [r | {"arm": f"{r['arm']} {i}"} for i in range(5) for r in runs]
    shown = comparison_tables.measures_tables(many)
    assert [text(t).count("2.00e-05") for t in shown] == [4, 1]


def test_the_picture_shows_the_rates_that_were_found(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        figures, "_draw_distributions", lambda axis, rates, _: drawn.append(rates)
    )
    given, later = flat(1e-3, SCHEME), flat(1e-4, SCHEME)
    runs = [
        record("flat"),
        record("fisher") | {"rates": [dict(given.rates), dict(later.rates)]},
    ]
    arms = {"flat": given, "fisher": given}
    figures.save_picture(tmp_path / "x.png", runs, arms)
    (rates,) = drawn
    assert rates["flat"] == given.rates
    assert list(rates["fisher"].values()) == pytest.approx(list(later.values))


def test_records_without_measures_have_no_tables_of_them(tmp_path):
    assert comparison_tables.measures_tables([record(), record(seed=1)]) == []
    # Nor has an arm that no measure has a meaning for a number there.
    absent = ("backward_transfer", "forward_transfer", "probe_after", "probe_p_o")
    gone = {"probe", "drift", "similarity", "task_forgetting", *absent}
    joint = {k: v for k, v in measured("joint").items() if k not in gone}
    arms, tasks = comparison_tables.measures_tables([measured(), joint])
    assert "joint .700 .800 - - - -".split() in rows_of(arms)
    assert "joint .800 .600 .080 .060 - -".split() in rows_of(tasks)
    arms, tasks = comparison_tables.measures_tables([joint])
    assert "joint .700 .800".split() in rows_of(arms)
    assert "joint .800 .600 .080 .060".split() in rows_of(tasks)


def test_labels_are_shown_once_with_their_distances():
    nan = float("nan")
    names = ("negative", "positive")
    short = LabelShares("sst2 (short)", names, (0.4, 0.6), (0.5, 0.5), 0.0, 0.0)
    long = LabelShares("sst2 (long)", names, (0.5, 0.5), (0.5, 0.5), 0.1, 0.0)
    sst2 = LabelShares("sst2", names, (0.44, 0.56), (0.49, 0.51), 0.0, 0.0)
    rte = LabelShares("rte", ("a", "b"), (0.3, 0.7), (0.2, 0.8), nan, nan)
    labels = {"x": [sst2, rte], "y": [rte], "sst2 (length)": [short, long]}
    rows = rows_of(tables.labels_table(labels))
    assert "sst2 negative .440 .490 .000 .000".split() in rows
    assert "sst2 (long) negative .500 .500 .100 .000".split() in rows
    assert rows.count("rte a .300 .200 - -".split()) == 1
    assert "b .700 .800".split() in rows


def test_the_picture_of_drift_is_one_of_the_data(tmp_path):
    from matplotlib.image import imread

    def picture(*records):
        figures.save_drift_picture(tmp_path / "d.png", records)
        return imread(tmp_path / "d.png")

    one = picture(measured(), measured(seed=1))
    assert not np.array_equal(one, picture(measured(), measured(seed=9)))
    # Several sequences, and an arm that has no drift.
    more = picture(measured(), record("joint"), measured(tasks=("b", "$a$")))
    assert more.shape[0] > 1.5 * one.shape[0]
    half = {k: v for k, v in measured().items() if k != "similarity"}
    assert picture(half).shape == one.shape


def test_names_are_not_markup(tmp_path):
    arm, sequence = "EWC [/old] $_$ [red]", "a$^$ -> [b]"
    records = [record(arm, sequence=sequence), record(arm, sequence="a -> b")]
    shown = text(tables.results_table(summarize(records), "[bold]"), 120)
    assert arm in shown and sequence in shown and "[bold]" in shown
    (table,) = tables.group_tables([("head", 1, 1)], {arm: flat(1e-5, SCHEME)})
    assert "[/old]" in text(table, 120)
    figures.save_picture(tmp_path / "p.png", records, {arm: flat(1e-5, SCHEME)})
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_one_task_alone_can_be_drawn(tmp_path):
    single = record(sequence="b") | {"curves": {}, "p_o": None, "forgetting": None}
    figures.save_picture(tmp_path / "p.png", [single], {"flat": flat(1e-5, SCHEME)})
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_trials_that_did_not_learn_are_told_apart():
    row = {"budget": 1.0, "reward": 1.5, "a1": 0.8, "p_s": 0.8, "p_o": 0.7}
    row |= {"seed": 0, "seconds": 3.0, "head": 1e-4, "learned": True}
    rows = [row, row | {"learned": False, "reward": 1.0}]
    assert "Red:" not in text(tables.trials_table(rows[:1], "Best", 5))
    table = tables.trials_table(rows, "Best", 5)
    assert [r.style for r in table.rows] == [None, "red"] and "Red:" in text(table)
    found = {"between_rungs": [], "reward_and_forgetting": 0.5}
    line = text(tables.correlations_table(found | {"reward_and_forgetting_trials": 9}))
    assert "largest budget" in line and " 9 " in line
