from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from lrdist_keras.config import ArmSettings
from lrdist_keras.data.batches import Encoded
from lrdist_keras.training.run import TaskData, generator, training_subset
from lrdist_keras.training.strategies.averaging import (
    average,
    averaging_steps,
    best_alpha,
)
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.strategies.replay import Replay, memory


def encoded(labels, first_id=10):
    """Example i has i + 1 tokens: first_id, first_id + 1, …"""
    sizes = np.arange(1, len(labels) + 1)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.concatenate([first_id + np.arange(size) for size in sizes])
    return Encoded(ids.astype(np.int32), offsets, sizes, np.array(labels), 0)


def test_a_memory_is_k_of_each_class_in_their_order():
    labels = [0, 1, 1, 0, 2, 1, 0, 2, 2, 0]
    kept = memory(encoded(labels), 3, 2, np.random.default_rng(0), "a")
    assert np.bincount(kept.labels).tolist() == [2, 2, 2]
    assert (np.diff(kept.lengths) > 0).all()  # lengths are positions here
    for length, label in zip(kept.lengths, kept.labels, strict=True):
        assert labels[length - 1] == label
    other = memory(encoded(labels), 3, 2, np.random.default_rng(1), "a")
    assert other.lengths.tolist() != kept.lengths.tolist()
    with pytest.raises(ValueError, match="at most the 3 .* class of 'a'. Received: 4"):
        memory(encoded(labels), 3, 4, np.random.default_rng(0), "a")


def test_the_share_of_a_task_is_counted_before_it_is_drawn():
    """round(share n) by largest remainders, and one more of a class that has none."""
    labels = np.repeat([0, 1, 3], [60, 30, 2])
    of_all = TaskData("a", encoded(labels), encoded([0]), 4, None, 1)
    for share, kept in ((0.1, 6 + 3 + 1), (0.5, 30 + 15 + 1), (1.0, 92)):
        first, second = Replay(share=share).plan([of_all, of_all])
        assert first.examples == (92,) and second.examples == (92 + kept,)
    # A run's subset of 46 has 30, 15 and 1 examples of the classes.
    of_half = replace(of_all, train_examples=46)
    plan = Replay(share=0.1).plan([of_half, of_half, of_all])
    assert [visit.examples for visit in plan] == [(46,), (46 + 6,), (92 + 12,)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share, train_examples", [(0.1, None), (0.3, 46), (0.02, 46)])
def test_what_is_drawn_has_the_size_of_the_plan(seed, share, train_examples):
    labels = np.random.default_rng(5).permutation(np.repeat([0, 1, 3], [60, 30, 2]))
    task = TaskData("a", encoded(labels), encoded([0]), 4, train_examples, 1)
    strategy, tasks = Replay(share=share), [task, task, task]
    course = SimpleNamespace(
        tasks=tasks,
        subsets=[training_subset(t, seed, i) for i, t in enumerate(tasks)],
        rng=lambda purpose, i: generator(seed, purpose, i),
    )
    strategy.check(course)
    kept = strategy.begin(course)
    sizes = [len(of_task) for of_task in kept]
    for i, visit in enumerate(strategy.plan(tasks)):
        assert visit.examples == (task.size + sum(sizes[:i]),)
    for of_task, subset in zip(kept, course.subsets, strict=False):
        there, found = (np.bincount(x.labels, minlength=4) for x in (subset, of_task))
        assert (found[there > 0] >= 1).all() and (found <= there).all()
        assert (np.abs(found - share * there) <= 1).all()
        assert (np.diff(of_task.lengths) > 0).all()  # lengths are positions here
        assert set(of_task.lengths) <= set(subset.lengths)


def test_a_share_that_leaves_nothing_is_refused():
    task = TaskData("a", encoded([0, 1] * 10), encoded([0]), 2, None, 1)
    course = SimpleNamespace(
        tasks=[task, task],
        subsets=[task.train] * 2,
        rng=lambda purpose, i: generator(0, purpose, i),
    )
    with pytest.raises(ValueError, match="one of the 20 .* of 'a'. Received: 0.02,"):
        Replay(share=0.02).check(course)
    Replay(share=0.03).check(course)


def test_a_memory_has_one_size():
    assert Replay().examples_per_class == 10 and Replay().share is None
    assert Replay(share=0.1).examples_per_class is None
    with pytest.raises(ValueError, match="stands in place of `examples_per_class`"):
        Replay(share=0.1, examples_per_class=10)
    with pytest.raises(ValueError, match="needs `examples_per_class` or `share`"):
        Replay(examples_per_class=None)


def test_an_average_and_its_ends():
    rng = np.random.default_rng(2)
    p, n = ([rng.normal(size=s).astype(np.float32) for s in (3, 2)] for _ in range(2))
    for a, b, c in zip(average(p, n, 0.25), p, n, strict=True):
        np.testing.assert_allclose(a, 0.75 * b + 0.25 * c, rtol=1e-6)
    for alpha, whole in [(0.0, p), (1.0, n)]:
        for a, b in zip(average(p, n, alpha), whole, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_best_alpha_and_of_equals_the_smallest():
    assert best_alpha(lambda alpha: -((alpha - 0.62) ** 2)) == pytest.approx(0.6)
    assert best_alpha(lambda alpha: 1.0) == 0.0
    assert best_alpha(lambda alpha: float(alpha > 0.45)) == pytest.approx(0.5)


def test_averaging_is_every_period_and_at_the_end():
    assert averaging_steps(40, 0.25) == {10, 20, 30, 40}
    assert averaging_steps(10, 1.0) == {10}
    assert averaging_steps(10, 0.4) == {4, 8, 10}
    assert averaging_steps(2, 0.1) == {1, 2}


def test_every_strategy_is_found_by_its_name():
    assert {"plain", "ewc_online", "l2_sp", "wise_ft", "lora"} <= STRATEGIES.keys()
    for name, strategy in STRATEGIES.items():
        assert get_args(strategy.model_fields["strategy"].annotation) == (name,)
        given = {"raw_text": "text"} if name == "ewc_pretraining" else {}
        arm = ArmSettings(name="x", rate=1e-3, strategy=name, **given)
        assert type(arm.strategy) is strategy and arm.strategy.name == name
        # What results hold can be read again, nulls of other strategies too.
        told = arm.model_dump()
        assert ArmSettings.model_validate(told) == arm


def test_a_strategy_carries_its_fisher_and_stays_equal_in_files():
    strategy = STRATEGIES["ewc_pretraining"](raw_text="text")
    carrying = strategy.prepared(lambda *_: [np.ones(2)])
    assert carrying is not strategy and carrying.model_dump() == strategy.model_dump()
    stronger = carrying.model_copy(update={"strength": 3.0})
    assert stronger._fisher is carrying._fisher and strategy._fisher is None
    assert STRATEGIES["plain"]().prepared(lambda *_: []) == STRATEGIES["plain"]()
