import json
import math

import numpy as np
import pytest

from lrdist_keras import distribution
from lrdist_keras.distribution import (
    Distribution,
    combine_pairs,
    fast_head,
    flat,
    kenneweg2022,
    kenneweg2022_rounded,
    llrd,
)
from lrdist_keras.groups import PatternScheme, Scheme
from lrdist_keras.search.trials import Trials, ranked_combination, read_trials

SMALL_FILE = """{"format": 1, "scheme": {"layers": 1}, "provenance": %s,
 "rates": {"embeddings": 1e-5, "encoder_1": 1e-5, "head": 1e-5}}"""
SIZES = '{"format": 1, "scheme": {"layers": 2, %s}, "rates": {}}'
SMALL = Scheme(2)  # embeddings, encoder_1, encoder_2, head


def test_flat_has_multiplier_exactly_one():
    assert set(flat(3e-5, Scheme(12)).multipliers.values()) == {1.0}


def test_llrd_is_the_formula_per_layer():
    d = llrd(1e-4, 0.9, Scheme(3, 3))
    expected = [1e-4 * 0.9**4, 1e-4 * 0.9**3, 1e-4 * 0.9**2, 1e-4 * 0.9, 1e-4]
    np.testing.assert_allclose(d.values, expected, rtol=1e-12)


def test_llrd_of_a_group_is_the_geometric_mean_of_its_layers():
    d = llrd(1.0, 0.5, Scheme(4, 2))
    expected = math.exp(np.mean(np.log([0.5**4, 0.5**3])))
    assert d.rates["encoder_1"] == pytest.approx(expected, rel=1e-12)


def test_llrd_of_groups_by_pattern_counts_groups():
    d = llrd(1e-3, 0.5, PatternScheme({"stem": "a", "body": "b", "head": "c"}))
    assert d.rates == {"stem": 2.5e-4, "body": 5e-4, "head": 1e-3}


def test_a_fast_head_is_so_many_times_as_fast_as_all_else():
    d = fast_head(2e-5, 10.0, SMALL)
    assert d.values.tolist() == [2e-5, 2e-5, 2e-5, 10.0 * 2e-5]
    assert d.multipliers["head"] == 1.0 and d.reference_rate == d.rates["head"]
    assert d.provenance == {"preset": "fast_head(2e-05, 10)"}
    slow = fast_head(1e-3, 0.5, PatternScheme({"stem": "a", "body": "b", "top": "c"}))
    assert slow.rates == {"stem": 1e-3, "body": 1e-3, "top": 5e-4}
    assert fast_head(3e-5, 1) == flat(3e-5)


@pytest.mark.parametrize(
    "rate, factor, message",
    [
        (0, 10, "`rate` must be a positive, finite number. Received: 0"),
        (1e-5, 0, "`factor` must be a positive, finite number. Received: 0"),
        (1e-5, float("nan"), "`factor` must be .*nan"),
        (1e-5, "10", "`factor` must be .*'10'"),
        (1e200, 1e200, "`rate` times `factor`, the head's rate, must be .*inf"),
        (1e-200, 1e-200, "`rate` times `factor`, the head's rate, must be .*0.0"),
    ],
)
def test_a_head_that_cannot_be_so_fast(rate, factor, message):
    with pytest.raises(ValueError, match=message):
        fast_head(rate, factor, SMALL)


def test_rescaled_keeps_the_shape_and_sets_the_geometric_mean():
    d = kenneweg2022().rescaled(5e-5)
    assert d.geometric_mean == pytest.approx(5e-5, rel=1e-12)
    ratio = d.values / kenneweg2022().values
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_resampled_golden_values():
    d = kenneweg2022().resample(Scheme(6))
    golden = [4.36300e-6, 1.17751e-6, 2.49903e-6, 2.14311e-6, 3.40540e-6, 3.34828e-6]
    np.testing.assert_allclose(d.values[1:-1], golden, rtol=1e-5)
    assert d.rates["embeddings"] == kenneweg2022().rates["embeddings"]
    assert d.rates["head"] == kenneweg2022().rates["head"]


def test_resample_holds_the_ends_constant():
    coarse = Distribution.in_order(Scheme(2, 2), [1e-6, 1e-5, 1e-4, 1e-3])
    fine = coarse.resample(Scheme(8, 8)).values[1:-1]
    # Positions 1/16, 3/16, … against 1/4 and 3/4.
    assert fine[:2] == pytest.approx([1e-5, 1e-5])
    assert fine[-2:] == pytest.approx([1e-4, 1e-4])
    assert fine[3] == pytest.approx(10 ** (-5 + (7 / 16 - 1 / 4) / (1 / 2)))


def test_resample_to_the_same_scheme_is_the_identity():
    assert kenneweg2022().resample(Scheme(12, 8, "ceil")) == kenneweg2022()


def test_resample_to_sizes_and_from_them():
    """Logarithms linearly between the centres of the ranges, held beyond the ends."""
    own = Scheme(12, layer_groups=(1, 2, 9))
    d = Distribution.in_order(own, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], {"x": 1})
    even = d.resample(Scheme(6, 6))
    # Centres (0.5, 2, 7.5) of 12, and (0.5, 1.5, …) of 6.
    at = np.interp((np.arange(6) + 0.5) / 6, np.array([0.5, 2, 7.5]) / 12, [-5, -4, -3])
    expected = [1e-6, *10**at, 1e-2]
    np.testing.assert_allclose(even.values, expected, rtol=1e-12)
    taken_from = {"layers": 12, "layer_groups": [1, 2, 9]}
    assert even.provenance == {"x": 1, "resampled_from": taken_from}
    found = kenneweg2022().resample(own)
    centres = np.array([1, 2.5, 4, 5.5, 7, 8.5, 10, 11.5])
    logs = np.log(kenneweg2022().values)
    at = np.interp([0.5, 2, 7.5], centres, logs[1:-1])
    expected = np.exp([logs[0], *at, logs[-1]])
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    assert d.resample(own) is d


def test_files_of_schemes_by_number_stay_what_they_were():
    assert kenneweg2022().to_json()["scheme"] == {
        "layers": 12, "encoder_groups": 8, "rounding": "ceil",
    }  # fmt: skip
    assert list(kenneweg2022().to_json()) == [
        "format", "scheme", "rates", "provenance",
    ]  # fmt: skip


def test_patterns_cannot_be_resampled():
    d = flat(1e-3, PatternScheme({"a": "a"}))
    with pytest.raises(ValueError, match="groups by pattern have no position"):
        d.resample(Scheme(6))


def test_rounded_preset():
    d = kenneweg2022_rounded()
    assert d.values.tolist() == [
        m * 2e-5 for m in (1.0, 1.0, 0.3, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0)
    ]


@pytest.mark.parametrize(
    "scheme",
    [
        SMALL,
        PatternScheme({"b": ["x/*", "y"], "a": "z"}),
        Scheme(12, layer_groups=(1, 2, 9)),
    ],
)
def test_file_round_trip(tmp_path, scheme):
    values = np.random.default_rng(0).uniform(1e-7, 1e-3, len(scheme.names))
    d = Distribution.in_order(scheme, values, {"from": "a test"})
    d.save(tmp_path / "new" / "d.json")
    loaded = Distribution.load(tmp_path / "new" / "d.json")
    assert loaded == d
    assert list(loaded.rates) == list(scheme.names)
    assert loaded.provenance == {"from": "a test"}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["d.json"]


@pytest.mark.parametrize(
    "rate", [0, -1e-5, float("nan"), float("inf"), "1e-5", None, True]
)
def test_rates_must_be_positive_and_finite(rate):
    with pytest.raises(ValueError, match="positive, finite number"):
        Distribution(SMALL, dict.fromkeys(SMALL.names, 1e-5) | {"head": rate})


def test_group_names_must_be_those_of_the_scheme():
    rates = dict.fromkeys(["embeddings", "encoder_1", "body", "head"], 1e-5)
    with pytest.raises(
        ValueError, match=r"Missing: \['encoder_2'\]; unknown: \['body'\]"
    ):
        Distribution(SMALL, rates)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not a distribution"),
        ("[]", '"format": 1'),
        ('{"format": 2}', '"format": 1'),
        ('{"format": 1, "rates": {}}', "lacks"),
        ('{"format": 1, "scheme": {"depth": 1}, "rates": {}}', "a scheme is"),
        ('{"format": 1, "scheme": {"layers": 2}, "rates": []}', "must map"),
        ('{"format": 1, "scheme": {"layers": 2}, "rates": {"head": NaN}}', "finite"),
        ('{"format": 1, "scheme": {"layers": 2}, "rates": {"head": 1}}', "Missing"),
        ('{"format": 1, "scheme": 3, "rates": {}}', "is not a distribution"),
        (SIZES % '"layer_groups": [1, 2]', "add up to the 2 .* add up to 3"),
        (SIZES % '"layer_groups": [2, 0]', "integers from 1"),
        (SIZES % '"layer_groups": "2"', "a list of the number of layers"),
        (SIZES % '"layer_groups": null', "a scheme is"),
        (SIZES % '"layer_groups": [2], "encoder_groups": 8', "a scheme is"),
        (SIZES % '"layer_groups": [2], "rounding": "floor"', "a scheme is"),
        (SIZES % '"layer_groups": [2], "depth": 2', "a scheme is"),
        (SIZES.replace('"layers": 2, ', "") % '"layer_groups": [2]', "a scheme is"),
        (SMALL_FILE % '"from Bob"', '"provenance" must be'),
        (SMALL_FILE % "null", '"provenance" must be'),
        (SMALL_FILE % '{"x": NaN}', "must be finite"),
        (SMALL_FILE.replace("1e-5", "1" + "0" * 400) % "{}", "must be finite"),
        ("[" * 100_000, "nested too deeply"),
        ((SMALL_FILE % "{}").replace("{", '{"format": 1, ', 1), "twice: 'format'"),
        ((SMALL_FILE % "{}").replace('"head"', '"encoder_1"'), "twice: 'encoder_1'"),
        (SMALL_FILE.replace('"layers": 1', '"layers": 1000000000000') % "{}", "10000"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, message):
    path = tmp_path / "d.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Distribution.load(path)
    assert str(path) in str(error.value)


def test_get_knows_presets_and_files(tmp_path):
    assert distribution.get("kenneweg2022") == kenneweg2022()
    with pytest.raises(FileNotFoundError, match="kenneweg2022_rounded"):
        distribution.get("kenneweg")


def trials(rewards, rates=None, **columns):
    rewards = np.asarray(rewards, float)
    if rates is None:
        rates = np.geomspace(1e-6, 1e-4, 4 * len(rewards)).reshape(len(rewards), 4)
    return Trials(SMALL, np.asarray(rates), rewards / 2, rewards / 2, **columns)


def test_ranked_combination_is_the_formula():
    t = trials([1.0, 1.6, 1.2])
    weights = np.array([1.8**-2, 1.0, 1.8**-1])
    expected = np.exp((weights[:, None] * np.log(t.rates)).sum(0) / weights.sum())
    np.testing.assert_allclose(ranked_combination(t).values, expected, rtol=1e-12)


def test_ties_rank_in_file_order():
    t = trials([1.2, 1.6, 1.2])
    rates, _ = t.ranked()
    np.testing.assert_array_equal(rates, t.rates[[1, 0, 2]])


def test_rows_without_seed_are_trials_of_their_own():
    t = trials([1.0, 1.5], rates=np.full((2, 4), 1e-5))
    assert len(t.ranked()[0]) == 2


def test_same_rates_and_budget_are_averaged_over_seeds():
    rates = np.array([[1e-5] * 4, [2e-5] * 4, [1e-5] * 4])
    t = trials([1.9, 1.5, 1.0], rates, seed=np.array([0, 0, 1]))
    ranked, rewards = t.ranked()
    np.testing.assert_array_equal(ranked, rates[[1, 0]])
    np.testing.assert_allclose(rewards, [1.5, 1.45])


def test_only_the_highest_budget_of_a_configuration_counts():
    rates = np.geomspace(1e-6, 1e-4, 7)[:, None] * np.ones(4)
    rates = np.concatenate([rates, rates[:6]])
    budget = np.array([0.5] * 7 + [1.0] * 6)
    rewards = np.array([1.9] * 7 + [1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    ranked, _ = trials(rewards, rates, budget=budget).ranked()
    # Six at the full budget are enough: the seventh, only tried at 0.5, is left out.
    np.testing.assert_array_equal(ranked, rates[[5, 4, 3, 2, 1, 0]])


def test_too_few_of_the_full_budget_are_followed_by_the_next():
    rates = np.geomspace(1e-6, 1e-4, 6)[:, None] * np.ones(4)
    budget = np.array([1.0, 0.5, 0.5, 0.5, 0.25, 1.0])
    rewards = np.array([1.0, 1.7, 1.9, 1.8, 2.0, 1.1])
    ranked, _ = trials(rewards, rates, budget=budget).ranked()
    np.testing.assert_array_equal(ranked, rates[[5, 0, 2, 3, 1]])


def test_over_pairs_is_the_geometric_mean():
    pairs = [flat(1e-6, SMALL), flat(1e-4, SMALL)]
    np.testing.assert_allclose(combine_pairs(pairs).values, 1e-5, rtol=1e-12)
    assert distribution.spread(pairs)["head"] == pytest.approx(100)


def test_arithmetic_means_of_trials_and_of_pairs():
    """Both means by hand: ranks 2, 0, 1 of the first pair, 0, 1 of the second."""
    one, two = trials([1.0, 1.6, 1.2]), trials([1.4, 1.3])
    by_hand = []
    for of_pair, ranks in ((one, [2, 0, 1]), (two, [0, 1])):
        total = [0.0] * 4
        for rates, rank in zip(of_pair.rates, ranks, strict=True):
            for group, rate in enumerate(rates):
                total[group] += rate / 1.5**rank
        weight = sum(1 / 1.5**rank for rank in ranks)
        by_hand.append([x / weight for x in total])
    pairs = [ranked_combination(t, 1.5, "arithmetic") for t in (one, two)]
    for pair, expected in zip(pairs, by_hand, strict=True):
        np.testing.assert_allclose(pair.values, expected, rtol=1e-12)
        assert pair.provenance["mean"] == "arithmetic"
    found = combine_pairs(pairs, mean="arithmetic")
    expected = [(a + b) / 2 for a, b in zip(*by_hand, strict=True)]
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    assert found.provenance["mean"] == "arithmetic"
    # It is never below the geometric one, and equal where all rates are.
    geometric = combine_pairs([ranked_combination(t, 1.5) for t in (one, two)])
    assert (found.values > geometric.values).all()
    assert geometric.provenance["mean"] == "geometric"
    assert "mean" not in ranked_combination(one).provenance
    same = [flat(3e-5, SMALL)] * 2
    np.testing.assert_allclose(
        combine_pairs(same, "arithmetic").values, 3e-5, rtol=1e-12
    )


def test_a_mean_that_is_none():
    for combine in (lambda m: combine_pairs([flat(1e-5, SMALL)], m), ranked_of_one):
        with pytest.raises(ValueError, match="'geometric' or 'arithmetic'.*'median'"):
            combine("median")


def ranked_of_one(mean):
    return ranked_combination(trials([1.0]), mean=mean)


def test_pairs_of_other_schemes_do_not_combine():
    with pytest.raises(ValueError, match="one scheme"):
        combine_pairs([flat(1e-5, SMALL), flat(1e-5, Scheme(12))])
    with pytest.raises(ValueError, match="at least one"):
        combine_pairs([])


def test_authors_trials_give_the_published_distribution(shared):
    files = sorted((shared / "reference" / "authors_trials").glob("*.csv"))
    assert len(files) == 4
    found = combine_pairs([ranked_combination(read_trials(f)) for f in files])
    np.testing.assert_allclose(found.values, kenneweg2022().values, rtol=3e-3)


HEADER = "a1,p_s,p_o,embeddings,encoder_1,encoder_2,head"


def test_trials_file_with_a_scheme_beside_it(tmp_path):
    (tmp_path / "trials.csv").write_text(
        f"{HEADER},budget,seed\n0.9,0.8,0.7,1e-5,1e-5,1e-5,1e-4,0.5,3\n"
    )
    (tmp_path / "scheme.json").write_text(json.dumps(SMALL.to_json()))
    t = read_trials(tmp_path)
    assert t.scheme == SMALL
    assert t.rates.tolist() == [[1e-5, 1e-5, 1e-5, 1e-4]]
    assert (t.p_s[0], t.p_o[0], t.budget[0], t.seed[0]) == (0.8, 0.7, 0.5, 3)


@pytest.mark.parametrize(
    "content, message",
    [
        (HEADER + "\n", "holds no trials"),
        ("a1,p_s,embeddings\n1,1,1\n", "Missing: .'p_o'"),
        (HEADER + ",encoder_3\n" + "1," * 7 + "1\n", "unknown: .'encoder_3'"),
        (HEADER + "\n0.9,0.8,0.7,1e-5,0,1e-5,1e-4\n", "line 2, column encoder_1"),
        (HEADER + "\n0.9,80,0.7,1e-5,1e-5,1e-5,1e-4\n", "line 2, column p_s"),
        (HEADER + "\n0.9,0.8,0.7,1e-5,x,1e-5,1e-4\n", "line 2, column encoder_1"),
        (HEADER + "\n0.9,0.8,0.7,1e-5\n", "line 2, column encoder_1"),
    ],
)
def test_trials_file_errors(tmp_path, content, message):
    path = tmp_path / "trials.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_trials(path, SMALL)


def test_a_base_below_one_is_refused():
    with pytest.raises(ValueError, match="`base` must be at least 1"):
        ranked_combination(trials([1.0]), base=0.5)
