import math

import pytest

from lrdist_keras.statistics import METRICS, summarize


def record(arm, seed, learned=True, **values):
    base = dict.fromkeys(METRICS, 0.5) | values
    return {"sequence": "a -> b", "arm": arm, "seed": seed, "learned": learned, **base}


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
