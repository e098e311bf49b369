"""The rule by which a gradient and a Fisher give learning rates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdist_keras
from lrdist_keras.distribution import Distribution
from lrdist_keras.fisher import FisherRates, fisher_rates
from lrdist_keras.groups import PatternScheme, Scheme

SCHEME = Scheme(3, 3)
ENCODER = SCHEME.names[:-1]
NUMBERS = {"rescale": 2e-5, "head_rate": 1e-3}


def scalars(gradient, fisher, **settings):
    """Rates of one number per group of the encoder."""
    wrapped = ([np.array([x], float) for x in xs] for xs in (gradient, fisher))
    return fisher_rates(*wrapped, ENCODER, SCHEME, **(NUMBERS | settings))


def encoder_rates(distribution):
    assert distribution.rates["head"] == NUMBERS["head_rate"]
    return distribution.values[:-1]


def drawn(seed, dtype=np.float64):
    """Several arrays of different sizes in each group, the last two of the head."""
    rng = np.random.default_rng(seed)
    groups = [*ENCODER, *ENCODER[::-1], "encoder_1", "head", "head"]
    shapes = [tuple(rng.integers(1, 6, rng.integers(1, 4))) for _ in groups]
    scales = dict(zip((*ENCODER, "head"), (1e-3, 1e-4, 2e-3, 1e-2, 9.0), strict=True))
    gradient = [
        (scales[g] * rng.normal(size=s)).astype(dtype)
        for g, s in zip(groups, shapes, strict=True)
    ]
    fisher = [np.square(rng.normal(size=s) * 1e-2).astype(dtype) for s in shapes]
    return gradient, fisher, groups


def by_hand(gradient, fisher, groups, rescale, tau, inverse):
    """The formula in products and roots, without a logarithm."""
    ratios = []
    for name in ENCODER:
        mine = [i for i, group in enumerate(groups) if group == name]
        g = np.concatenate([np.ravel(gradient[i]) for i in mine]).astype(np.float64)
        f = np.concatenate([np.ravel(fisher[i]) for i in mine]).astype(np.float64)
        ratios.append(np.sqrt((g**2).mean()) / f.mean())
    ratios = np.array(ratios)
    ratios = np.clip(ratios / np.prod(ratios) ** (1 / len(ratios)), 1 / 30, 30)
    shape = (1 / ratios if inverse else ratios) ** tau
    return rescale * shape / np.prod(shape) ** (1 / len(shape))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tau", [0.5, 1.0, 0.3])
def test_rates_are_the_formula(tau, inverse, dtype):
    for seed in range(5):
        arrays = drawn(seed, dtype)
        settings = {"tau": tau, "inverse": inverse}
        found = fisher_rates(*arrays, SCHEME, **NUMBERS, **settings)
        expected = by_hand(*arrays, NUMBERS["rescale"], tau, inverse)
        np.testing.assert_allclose(encoder_rates(found), expected, rtol=1e-12)
        mean = np.exp(np.mean(np.log(encoder_rates(found))))
        assert mean == pytest.approx(NUMBERS["rescale"], rel=1e-12)


def test_the_exponent_is_a_half_unless_told():
    # Ratios 1/4, 1, 1, 4: roots 1/2, 1, 1, 2.
    found = scalars([1, 2, 3, 8], [4, 2, 3, 2])
    np.testing.assert_allclose(encoder_rates(found), [1e-5, 2e-5, 2e-5, 4e-5])


def test_the_inverse_turns_the_shape_over():
    arrays = drawn(0)
    one = fisher_rates(*arrays, SCHEME, **NUMBERS)
    other = fisher_rates(*arrays, SCHEME, **NUMBERS, inverse=True)
    product = encoder_rates(one) * encoder_rates(other)
    np.testing.assert_allclose(product, NUMBERS["rescale"] ** 2, rtol=1e-12)
    assert not np.allclose(encoder_rates(one), encoder_rates(other))


def test_ratios_are_cut_at_a_factor_of_30_from_their_mean():
    inside = scalars([1 / 29, 1, 1, 29], np.ones(4), tau=1.0)
    np.testing.assert_allclose(
        encoder_rates(inside) / NUMBERS["rescale"], [1 / 29, 1, 1, 29]
    )
    for far in (30.0, 31.0, 1e9):
        cut = scalars([1 / far, 1, 1, far], np.ones(4), tau=1.0)
        np.testing.assert_allclose(
            encoder_rates(cut) / NUMBERS["rescale"], [1 / 30, 1, 1, 30]
        )
    # Where the cuts take away more at one end, the rates are scaled anew.
    low = scalars([1e-4, 1, 1, 1], np.ones(4), tau=1.0)
    shape = np.array([1 / 30, 10, 10, 10])
    np.testing.assert_allclose(
        encoder_rates(low), NUMBERS["rescale"] * shape / np.prod(shape) ** (1 / 4)
    )


positive = st.floats(1e-30, 1e30)


@given(st.lists(st.tuples(positive, positive), min_size=4, max_size=4), st.booleans())
def test_whatever_is_measured_the_geometric_mean_is_kept(pairs, inverse):
    rule = FisherRates(**NUMBERS, inverse=inverse)
    found = scalars(*zip(*pairs, strict=True), inverse=inverse)
    assert np.exp(np.mean(np.log(encoder_rates(found)))) == pytest.approx(
        NUMBERS["rescale"], rel=1e-9
    )
    assert found.reference_rate <= rule.reference_rate


def test_the_largest_rate_that_there_can_be():
    assert FisherRates(**NUMBERS).reference_rate == 1e-3
    assert FisherRates(1e-3, 1e-5).reference_rate == pytest.approx(30 * 1e-3)
    assert FisherRates(1e-3, 1e-5, 2.0).reference_rate == pytest.approx(1e-3 * 900**2)
    assert FisherRates(1e-3, 1e-5, 1e6).reference_rate < np.inf


def test_a_group_without_a_gradient_or_a_fisher_counts_as_a_cut():
    with pytest.warns(UserWarning, match="gradient is exactly 0 in 'encoder_1'.*lower"):
        found = scalars([1, 0, 2, 4], [1, 1, 1, 1], tau=1.0)
    shape = np.array([0.5, 1 / 30, 1, 2])
    expected = NUMBERS["rescale"] * shape / np.prod(shape) ** (1 / 4)
    np.testing.assert_allclose(encoder_rates(found), expected)
    with pytest.warns(UserWarning, match="Fisher is 0 in 'embeddings', 'encoder_3'"):
        found = scalars([1, 1, 2, 4], [0, 1, 1, 0], tau=1.0)
    shape = np.array([30, 0.5**0.5, 2**0.5, 30])
    expected = NUMBERS["rescale"] * shape / np.prod(shape) ** (1 / 4)
    np.testing.assert_allclose(encoder_rates(found), expected)
    with pytest.warns(UserWarning, match="gradient is exactly 0"):
        found = scalars([1, 0, 1, 1], [1, 0, 1, 1], tau=1.0, inverse=True)
    np.testing.assert_allclose(
        encoder_rates(found) / encoder_rates(found)[0], [1, 30, 1, 1]
    )
    with pytest.raises(ValueError, match="at least one group.*take a flat rate"):
        scalars([0, 0, 1, 1], [1, 1, 0, 0])


def test_a_group_without_an_array_gets_the_geometric_mean():
    arrays = [np.array([4.0]), np.array([1.0])], [np.ones(1), np.ones(1)]
    found = fisher_rates(*arrays, ["encoder_1", "encoder_3"], SCHEME, **NUMBERS)
    factors = encoder_rates(found) / NUMBERS["rescale"]
    np.testing.assert_allclose(factors, [1, 2**0.5, 1, 2**-0.5])


def test_the_last_group_of_a_scheme_by_patterns_is_the_head():
    scheme = PatternScheme({"body": "b", "top": "t", "last": "l"})
    arrays = [np.array([3.0, 4.0]), np.ones(1)], [np.full(2, 2.0), np.array([8.0])]
    found = fisher_rates(*arrays, ["body", "top"], scheme, rescale=1e-4, head_rate=1e-3)
    ratio = np.sqrt(np.sqrt(12.5) / 2 / (1 / 8))
    assert found.rates["body"] / found.rates["top"] == pytest.approx(ratio, rel=1e-12)
    assert found.rates["last"] == 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="gradient of group 'encoder_2' must be fin"):
        scalars([1, 1, bad, 1], np.ones(4))
    with pytest.raises(ValueError, match="Fisher of group 'embeddings' must be finite"):
        scalars(np.ones(4), [bad, 1, 1, 1])


def test_what_does_not_fit_is_refused():
    one = [np.ones(2)]
    for gradient, fisher, groups, message in [
        (one, one, ["encoder_1", "head"], "one entry per weight.*: 1, 1 and 2"),
        (one, [np.ones(3)], ["encoder_1"], r"same shape.*'encoder_1': \(2,\) and \(3,"),
        (one, one, ["encoder_9"], r"of the scheme, embeddings.*\['encoder_9'\]"),
        (one, [np.array([1, -1])], ["encoder_1"], "at least 0.*'encoder_1': -1"),
        (one, one, ["head"], "at least one group of the encoder"),
    ]:
        with pytest.raises(ValueError, match=message):
            fisher_rates(gradient, fisher, groups, SCHEME, **NUMBERS)
    for key in ("rescale", "head_rate", "tau"):
        for bad in (0.0, -1.0, np.nan, np.inf):
            with pytest.raises(ValueError, match=f"`{key}` must be a positive, finite"):
                scalars(np.ones(4), np.ones(4), **{key: bad})


def test_a_file_says_where_the_rates_came_from(tmp_path):
    found = scalars([1, 2, 3, 8], [4, 2, 3, 2], inverse=True)
    found.save(tmp_path / "d.json")
    told = Distribution.load(tmp_path / "d.json").provenance
    assert told["rule"] == "fisher_inverse" and told["tau"] == 0.5
    assert told["gradient"] == dict(zip(ENCODER, [1.0, 2.0, 3.0, 8.0], strict=True))
    assert told["fisher"] == dict(zip(ENCODER, [4.0, 2.0, 3.0, 2.0], strict=True))
    assert (told["rescale"], told["head_rate"]) == (2e-5, 1e-3)


def test_it_is_public():
    assert lrdist_keras.fisher_rates is fisher_rates
