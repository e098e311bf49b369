import itertools
import json
import math

import numpy as np
import pytest
from scipy import special, stats

from lrdist_keras.laboratory import metrics, paired_tests
from lrdist_keras.laboratory.metrics import METRICS
from lrdist_keras.laboratory.statistics import NoStatistics, compare_arms
from lrdist_keras.laboratory.summaries import summarize


def record(arm, seed, learned=True, sequence="a -> b", **values):
    base = dict.fromkeys(METRICS, 0.5) | values
    return {
        "sequence": sequence,
        "arm": arm,
        "seed": seed,
        "learned": learned,
        "accuracy": [[0.5, None], [0.5, 0.5]],
        "examples": [100, 400],
        **base,
    }


def runs(arm, sequence="a -> b", **values):
    """A run per seed, with each metric's value of that seed."""
    names = list(values)
    return [
        record(arm, seed, sequence=sequence, **dict(zip(names, of_seed, strict=True)))
        for seed, of_seed in enumerate(zip(*values.values(), strict=True))
    ]


def found(differences, arm, metric, sequence="a -> b"):
    (difference,) = (
        d
        for d in differences
        if (d.arm, d.metric, d.sequence) == (arm, metric, sequence)
    )
    return difference


def test_mean_and_deviation_over_seeds_per_arm():
    first, second = summarize(
        [record("x", 0, p_s=0.6), record("y", 0, p_s=0.9), record("x", 1, p_s=0.8)]
    )
    assert (first.arm, first.seeds, second.arm, second.seeds) == ("x", 2, "y", 1)
    assert first.mean["p_s"] == pytest.approx(0.7)
    # sqrt(((0.6 - 0.7)^2 + (0.8 - 0.7)^2) / (2 - 1))
    assert first.deviation["p_s"] == pytest.approx(math.sqrt(0.02))
    assert math.isnan(second.deviation["p_s"])


def test_runs_that_did_not_learn_are_left_out_of_forgetting_alone():
    (summary,) = summarize(
        [
            record("x", 0, forgetting=0.3, p_o=0.6),
            record("x", 1, learned=False, forgetting=0.0, p_o=0.8),
        ]
    )
    assert summary.mean["forgetting"] == 0.3
    assert summary.mean["p_o"] == pytest.approx(0.7)
    assert (summary.learned, summary.seeds) == (1, 2)


def test_nothing_learned_leaves_no_forgetting_to_average():
    (summary,) = summarize([record("x", 0, learned=False)])
    assert math.isnan(summary.mean["forgetting"])


def test_one_task_has_no_p_o():
    (summary,) = summarize([record("x", 0, p_o=None, forgetting=None)])
    assert math.isnan(summary.mean["p_o"])


@pytest.mark.parametrize("n", [2, 3, 8, 20])
def test_the_t_interval_is_scipys(n):
    one, other = np.random.default_rng(n).normal(size=(2, n))
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert paired_tests.t_interval(one - other) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3],
        [0.1, -0.2, 0.1, 0.0, 0.4],
        [0.0, 0.0, 0.0],
        [0.1, 0.2, -0.3],  # sums of nothing but rounding
        list(np.random.default_rng(0).normal(0.5, 1, 11)),
        list(np.random.default_rng(1).integers(-3, 4, 8) / 872),  # ties
    ],
)
def test_the_sign_flip_test_is_scipys(differences):
    d = np.array(differences)
    expected = stats.permutation_test(
        (d, np.zeros(len(d))),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert paired_tests.sign_flip(d) == (pytest.approx(expected.pvalue), True)


def exact_p(differences):
    """The sign-flip p of whole numbers, from the distribution of their sum.

    Coefficient by coefficient of prod (x^d + x^-d) / 2.
    """
    probability = np.ones(1)
    for d in np.abs(differences):
        step = np.zeros(2 * d + 1)
        step[0] += 0.5
        step[-1] += 0.5
        probability = np.convolve(probability, step)
    reach = np.sum(np.abs(differences))
    sums = np.arange(-reach, reach + 1)
    return probability[np.abs(sums) >= abs(np.sum(differences))].sum()


def test_the_sign_flip_test_is_exact_up_to_20_pairs_and_drawn_beyond():
    rng = np.random.default_rng(3)
    d = rng.integers(-4, 8, 20)
    assert paired_tests.sign_flip(d / 7) == (pytest.approx(exact_p(d)), True)
    for shift in (4, 5, 6):
        d = rng.integers(-9, 2 * shift, 40)
        p, exact = paired_tests.sign_flip(d / 7)
        expected = exact_p(d)
        error = math.sqrt(expected * (1 - expected) / 20_000)
        assert not exact
        assert abs(p - expected) < 4 * error + 1 / 20_000
    # None of the drawn patterns reaches it, and still p is not 0.
    assert paired_tests.sign_flip(np.ones(60)) == (1 / 20_000, False)


def test_no_pair_proves_nothing():
    assert paired_tests.sign_flip(np.array([])) == (1.0, True)
    assert paired_tests.sign_flip(np.array([0.3])) == (1.0, True)
    for interval in (paired_tests.t_interval, paired_tests.bca_interval):
        assert np.isnan(interval(np.array([0.3]))).all()
    assert paired_tests.pairs_needed(np.array([0.3]), 1) is None


def test_holm_is_the_closure_of_bonferroni():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert paired_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )
    p_values = np.random.default_rng(0).random(6) ** 3
    members = range(len(p_values))
    sets = [s for r in range(1, 7) for s in itertools.combinations(members, r)]
    expected = [
        max(min(1, len(s) * min(p_values[list(s)])) for s in sets if i in s)
        for i in members
    ]
    assert paired_tests.holm(list(p_values)) == pytest.approx(expected)
    assert paired_tests.holm([0.6, 0.7]) == [1, 1]


def test_the_bca_interval_is_efrons():
    """By hand from all 6^6 resamples instead of some."""
    d = np.array([0.113, 0.541, -0.227, 1.419, 0.309, 0.072])
    resamples = np.array(list(itertools.product(d, repeat=6))).mean(axis=1)
    below, equal = (resamples < d.mean() - 1e-12), np.isclose(resamples, d.mean())
    bias = special.ndtri(np.mean(below) + np.mean(equal) / 2)
    left_out = (d.sum() - d) / 5
    u = left_out.mean() - left_out
    acceleration = np.sum(u**3) / (6 * np.sum(u**2) ** 1.5)
    z = bias + special.ndtri([0.025, 0.975])
    shares = special.ndtr(bias + z / (1 - acceleration * z))
    expected = np.quantile(resamples, shares)
    low, high = paired_tests.bca_interval(d)
    assert (low, high) == pytest.approx(expected, abs=0.025)
    assert not np.allclose(np.quantile(resamples, [0.025, 0.975]), expected, atol=0.04)
    assert paired_tests.bca_interval(d) == (low, high)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_equal_differences_have_an_interval_without_width(value):
    d = np.full(8, value)
    d[3] += 1e-17
    assert paired_tests.bca_interval(d) == pytest.approx((value, value))
    assert paired_tests.t_interval(d) == pytest.approx((value, value))
    (decision,) = paired_tests.decide([d])
    assert decision.marked == (value != 0)


def test_the_smallest_numbers_of_pairs():
    assert [paired_tests.least_pairs(k) for k in (1, 2, 5, 17)] == [6, 7, 8, 10]


# G*Power 3.1, difference between two dependent means, two-sided, 5 %, power 0.8.
@pytest.mark.parametrize("effect, n", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_seeds_needed_are_those_of_gpower(effect, n):
    d = np.array([-1.0, 1.0, -1.0, 1.0])
    d = effect + d / d.std(ddof=1)
    assert paired_tests.pairs_needed(d, 1) == n
    assert paired_tests.pairs_needed(-d, 1) == n
    assert paired_tests.power(effect, n, 0.05) >= 0.8
    assert paired_tests.power(effect, n - 1, 0.05) < 0.8


def test_the_power_is_that_of_drawn_t_tests():
    d = np.random.default_rng(0).normal(0.9, 1, (20_000, 8))
    share = np.mean(stats.ttest_1samp(d, 0, axis=1).pvalue < 0.05 / 5)
    expected = paired_tests.power(0.9, 8, 0.05 / 5)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)


def test_the_seeds_needed_have_their_limits():
    wide = np.array([-1.0, 1.0, 1.001, -1.0])
    assert paired_tests.pairs_needed(wide, 1) is None
    assert paired_tests.pairs_needed(np.array([-1.0, 1.0]), 1) is None
    for d in (np.array([0.1, 0.1]), np.array([0.1, 0.1 + 1e-9])):
        assert paired_tests.pairs_needed(d, 17) == 10


def test_the_t_interval_covers_the_mean_of_normal_differences():
    draws = np.random.default_rng(0).normal(0.3, 2, (2000, 8))
    intervals = np.array([paired_tests.t_interval(d) for d in draws])
    covered = np.mean((intervals[:, 0] <= 0.3) & (0.3 <= intervals[:, 1]))
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("n, k", [(8, 5), (10, 17)])
def test_where_nothing_differs_at_most_5_percent_of_tables_have_a_mark(n, k):
    rng = np.random.default_rng(n)
    draws = 400
    marked = 0
    for _ in range(draws):
        # The reference's noise is in every difference.
        noise = rng.normal(size=(k + 1, n))
        decisions = paired_tests.decide(list(noise[1:] - noise[0]))
        marked += any(decision.marked for decision in decisions)
    assert marked / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_a_large_difference_is_found():
    rng = np.random.default_rng(0)
    draws = [[rng.normal(2, 1, 8), *rng.normal(0, 1, (4, 8))] for _ in range(100)]
    decisions = [paired_tests.decide(samples) for samples in draws]
    assert np.mean([first.marked for first, *_ in decisions]) > 0.8


def test_a_mark_takes_interval_test_and_pairs_enough():
    one_sided = np.linspace(1, 1.2, 6)
    (alone,) = paired_tests.decide([one_sided])
    # 2 / 2^6 = 0.031; with two comparisons 0.063.
    assert alone.marked and alone.p == alone.p_holm == 2 / 64
    first, second = paired_tests.decide([one_sided, one_sided])
    assert first.p_holm == second.p_holm == 4 / 64
    assert not first.marked and first.least_pairs == 7
    # Six of one sign beside ten: Holm alone would allow it.
    few, many = paired_tests.decide([one_sided, np.linspace(1, 1.2, 10)])
    assert many.marked and few.p_holm < 0.05 and not few.marked
    # All of one sign, but one so far out that the interval holds 0.
    (far,) = paired_tests.decide([np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 5.0])])
    assert far.p_holm < 0.05 and far.interval[0] < 0 and not far.marked
    # The interval leaves out 0, the corrected test says no.
    tests = paired_tests.decide(
        [np.linspace(0.1, 1, 8), *[np.array([-1.0, 1] * 4)] * 9]
    )
    assert tests[0].interval[0] > 0 and not tests[0].marked


def test_arms_are_paired_by_seed_whatever_the_order_of_the_runs():
    reference = runs("flat", p_s=[0.1, 0.5, 0.9], p_o=[0.4, 0.4, 0.4])
    arm = runs("arm", p_s=[0.2, 0.7, 0.9], p_o=[0.4, 0.3, 0.5])
    compared = compare_arms([*arm[::-1], *reference], "flat", {})
    p_s = found(compared.paired, "arm", "p_s")
    assert p_s.pairs == 3 and p_s.decision.comparisons == 1
    assert p_s.decision.mean == pytest.approx(0.1)
    expected = stats.ttest_rel([0.2, 0.7, 0.9], [0.1, 0.5, 0.9])
    interval = expected.confidence_interval()
    assert p_s.decision.interval == pytest.approx((interval.low, interval.high))
    assert found(compared.paired, "arm", "p_o").decision.mean == pytest.approx(0)
    assert {d.arm for d in compared.paired} == {"arm"}
    assert compared.over_sequences == ()
    assert compared.equal_p_s is None


def test_a_pair_in_which_one_did_not_learn_is_left_out_of_forgetting_alone():
    values = {"forgetting": [0.1, 0.2, 0.3, 0.4], "p_o": [0.5, 0.6, 0.7, 0.8]}
    reference = runs("flat", **values)
    arm = runs("arm", **{name: np.add(v, [1, 2, 3, 4]) for name, v in values.items()})
    reference[0]["learned"] = arm[2]["learned"] = False
    compared = compare_arms([*reference, *arm], "flat", {})
    forgetting = found(compared.paired, "arm", "forgetting")
    assert (forgetting.pairs, forgetting.not_learned) == (2, 2)
    assert forgetting.decision.mean == pytest.approx((2 + 4) / 2)
    p_o = found(compared.paired, "arm", "p_o")
    assert (p_o.pairs, p_o.not_learned) == (4, 0)
    assert compared.not_learned == {"flat": 1, "arm": 1} and compared.runs == 8


def test_a_metric_is_corrected_over_its_arms_and_sequences():
    records = [
        record
        for sequence in ("a -> b", "b -> c")
        for shift, arm in enumerate(["flat", "one", "two", "three"])
        for record in runs(arm, sequence, p_o=np.linspace(0, 0.1, 9) + shift / 10)
    ]
    compared = compare_arms(records, "flat", {})
    p_o = [d.decision for d in compared.paired if d.metric == "p_o"]
    assert len(p_o) == 6
    for decision in p_o:
        assert decision.comparisons == 6 and decision.least_pairs == 8
        # All six have the smallest p there is: Holm multiplies each by 6.
        assert decision.p_holm == pytest.approx(6 * 2 / 2**9) and decision.marked


def test_one_task_alone_is_compared_in_what_it_has():
    nothing = {"p_o": [None] * 2, "forgetting": [None] * 2}
    records = [*runs("flat", **nothing), *runs("arm", **nothing)]
    for entry in records:
        entry |= {"accuracy": [[0.5]], "examples": [100]}
    compared = compare_arms(records, "flat", {"flat": 1e-5, "other": 1e-4})
    assert {d.metric for d in compared.paired} == {"reward", "p_s", "a1"}


def test_over_sequences_their_means_are_the_units():
    gains = {"a": [0.1, 0.2], "b": [0.3, 0.5], "c": [-0.1, 0.1]}
    records = [
        record
        for sequence, gain in gains.items()
        for arm, values in (("flat", [0.0, 0.0]), ("arm", gain))
        for record in runs(arm, sequence, p_o=values)
    ]
    compared = compare_arms(records, "flat", {})
    p_o = found(compared.over_sequences, "arm", "p_o", sequence=None)
    means = [0.15, 0.4, 0.0]
    assert p_o.pairs == 3
    assert p_o.decision.mean == pytest.approx(np.mean(means))
    expected = stats.ttest_1samp(means, 0).confidence_interval()
    assert p_o.decision.interval == pytest.approx(tuple(expected))
    assert p_o.decision.p == pytest.approx(2 / 2**3 * 2)  # 0 flips to itself


def test_the_two_level_interval_is_that_of_all_resamples():
    groups = [np.array([0.0, 1.0]), np.array([2.0, 6.0, 4.0])]
    # Every mean that a group can give, as often as it gives it.
    of_group = [
        np.array(list(itertools.product(g, repeat=len(g)))).mean(axis=1) for g in groups
    ]
    values, weights = [], []
    for one, other in itertools.product(of_group, repeat=2):
        values.append(np.add.outer(one, other).ravel() / 2)
        weights.append(np.full(values[-1].size, 1 / values[-1].size))
    order = np.argsort(np.concatenate(values))
    share = np.cumsum(np.concatenate(weights)[order]) / 4
    quantiles = np.concatenate(values)[order][np.searchsorted(share, [0.025, 0.975])]
    assert paired_tests.two_level_interval(groups) == pytest.approx(quantiles, abs=0.1)


def test_the_interval_over_sequences_covers_what_holds_for_sequences_in_general():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        sequences = rng.normal(0.2, 1, 5)
        units = rng.normal(sequences[:, None], 2, (5, 8)).mean(axis=1)
        low, high = paired_tests.decide([units])[0].interval
        covered += low <= 0.2 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_flat_curve_is_the_line_between_rates():
    p_s = np.array([0.6, 0.8, 0.9])
    values = np.array([[0.9, 0.0], [0.7, 0.2], [0.3, 0.6]])

    def at(x):
        return paired_tests.on_flat_curve(p_s, values, x)

    assert at(0.7) == pytest.approx([0.8, 0.1])
    assert at(0.8) == pytest.approx([0.7, 0.2])
    assert at(0.875) == pytest.approx([0.4, 0.5])
    assert at(0.6) == pytest.approx([0.9, 0.0])
    assert at(0.59) is None and at(0.91) is None


def test_where_two_flat_rates_learn_as_much_the_one_that_keeps_more_counts():
    p_s = np.array([0.6, 0.8, 0.6])  # the largest rate is too large
    values = np.array([[0.9], [0.8], [0.2]])
    assert paired_tests.on_flat_curve(p_s, values, 0.7) == pytest.approx([0.85])
    level = paired_tests.on_flat_curve(np.array([0.7, 0.7]), values[:2], 0.7)
    assert level == pytest.approx([0.9])
    assert paired_tests.on_flat_curve(p_s[:1], values[:1], 0.6) is None


def test_arms_are_compared_with_the_flat_rate_that_learns_as_much():
    records = [
        *runs("large", p_s=[0.9, 0.8, 0.9], p_o=[0.5, 0.4, 0.5], forgetting=[0.4] * 3),
        *runs("arm", p_s=[0.7, 0.7, 0.95], p_o=[0.8, 0.7, 0.9], forgetting=[0.1] * 3),
        *runs("small", p_s=[0.5, 0.6, 0.5], p_o=[0.9, 0.8, 0.9], forgetting=[0.0] * 3),
    ]
    rates = {"large": 1e-3, "small": 1e-5}
    compared = compare_arms(records, "arm", rates)
    assert {d.arm for d in compared.equal_p_s} == {"arm"}
    p_o = found(compared.equal_p_s, "arm", "p_o")
    # Halfway in both seeds: 0.8 - (0.9 + 0.5) / 2 and 0.7 - (0.8 + 0.4) / 2.
    assert (p_o.pairs, p_o.outside, p_o.not_learned) == (2, 1, 0)
    assert p_o.decision.mean == pytest.approx(0.1)
    forgetting = found(compared.equal_p_s, "arm", "forgetting")
    assert forgetting.decision.mean == pytest.approx(0.1 - 0.2)
    # The reward favours the flat arm here: 1.4 and 1.2 against 1.5 and 1.4.
    records[0]["learned"] = False  # no curve is left for the seed 0
    records[4]["learned"] = False
    compared = compare_arms(records, "arm", rates)
    p_o = found(compared.equal_p_s, "arm", "p_o")
    assert (p_o.pairs, p_o.outside, p_o.not_learned) == (0, 2, 1)
    assert math.isnan(p_o.decision.mean) and not p_o.decision.marked


def test_the_rounding_of_sums_is_no_difference():
    grid = np.arange(8) / 70
    records = [
        *runs("small", p_s=0.1 + grid, p_o=0.7 + grid),
        *runs("arm", p_s=0.3 + grid, p_o=0.5 + grid),
        *runs("large", p_s=0.6 + grid, p_o=0.2 + grid),
    ]
    compared = compare_arms(records, "small", {"small": 1e-5, "large": 1e-3})
    decision = found(compared.equal_p_s, "arm", "p_o").decision
    assert decision.mean == 0 and decision.p == 1 and not decision.marked


def test_errors_of_the_validation_sets_by_hand():
    entry = record("x", 0) | {
        "accuracy": [[0.9, None, None], [0.8, 0.7, None], [0.6, 0.75, 0.5]],
        "examples": [100, 200, 400],
    }
    v = {name: p * (1 - p) for name, p in (("90", 0.9), ("60", 0.6), ("75", 0.75))}
    expected = {
        "a1": 0.03,  # sqrt(0.9 * 0.1 / 100)
        "p_s": 0.025,  # sqrt(0.5 * 0.5 / 400)
        "reward": math.sqrt(v["60"] / 100 + v["75"] / 200 + 0.25 / 400),
        "p_o": math.sqrt(v["60"] / 100 + v["75"] / 200) / 2,
        "forgetting": math.sqrt(
            v["90"] / 100 + v["60"] / 100 + 0.7 * 0.3 / 200 + v["75"] / 200
        )
        / 2,
    }
    for metric, error in expected.items():
        assert metrics.validation_error(entry, metric) == pytest.approx(error)
    records = [record(arm, seed) for arm in ("flat", "arm") for seed in (0, 1)]
    errors = compare_arms(records, "flat", {}).validation_errors["a -> b"]
    assert errors["p_s"] == pytest.approx(0.5 / 20)
    assert errors["p_o"] == pytest.approx(0.5 / 10)


def test_what_cannot_be_compared_is_named():
    both = [*runs("flat", p_s=[0.1, 0.2]), *runs("arm", p_s=[0.1, 0.2])]
    with pytest.raises(NoStatistics, match=r"at least 2 seeds.*seeds = \[1\]"):
        compare_arms([both[1], both[3]], "flat", {})
    with pytest.raises(NoStatistics, match="'flat', and there is no other arm"):
        compare_arms(both[:2], "flat", {})
    with pytest.raises(NoStatistics, match=r"'arm' on 'a -> b' lacks \[1\]\. Finish"):
        compare_arms(both[:3], "flat", {})
    with pytest.raises(NoStatistics, match=r"'arm' on 'a -> b' has \[7, 8\] more"):
        compare_arms([*both, record("arm", 8), record("arm", 7)], "flat", {})
    with pytest.raises(NoStatistics, match="the reference 'other' on 'a -> b' has non"):
        compare_arms(both, "other", {})
    elsewhere = [record("flat", seed, sequence="b -> a") for seed in (0, 1)]
    with pytest.raises(NoStatistics, match=r"'arm' on 'b -> a' lacks \[0, 1\]"):
        compare_arms([*both, *elsewhere], "flat", {})


def test_json_holds_none_for_what_is_not_a_number():
    records = [*runs("flat", p_s=[0.1, 0.2]), *runs("arm", p_s=[0.1, 0.3])]
    records[0]["learned"] = records[1]["learned"] = False
    content = compare_arms(records, "flat", {}).to_json()
    forgetting = next(d for d in content["paired"] if d["metric"] == "forgetting")
    assert forgetting["decision"]["mean"] is None
    assert forgetting["decision"]["interval"] == [None, None]
    assert json.loads(json.dumps(content, allow_nan=False)) == content
