"""DER++: the memory that comes with each batch, and what it adds to the loss."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from strategy_cases import (
    SETTINGS,
    TASKS,
    Runs,
    bert_logits,
    distance,
    equal,
    heads_of,
    of,
    same_row,
)
from trainer_cases import data, same, task, trained

from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.training.course import Course
from lrdist_keras.training.plan import Plan
from lrdist_keras.training.run import Purpose, generator
from lrdist_keras.training.strategies.dark_replay import draws
from lrdist_keras.training.strategies.replay import memory
from lrdist_keras.training.trainer import SequentialTrainer

pytestmark = pytest.mark.usefixtures("usual_emitters")

WIDE = {"alpha": 0.7, "beta": 0.3, "examples_per_class": 2}
CLASSES = (3, 2, 5)
THREE = [task(f"task {c}", i, classes=c) for i, c in enumerate(CLASSES)]


@pytest.fixture(scope="module")
def trainer(tiny_preset):
    return SequentialTrainer(load_encoder(str(tiny_preset)), SETTINGS)


@pytest.fixture(scope="module")
def runs(trainer):
    return Runs(trainer)


def test_draws_go_through_the_memory_again_and_again():
    found = draws(5, 13, np.random.default_rng(0))
    for k in (0, 5):
        assert sorted(found[k : k + 5]) == [0, 1, 2, 3, 4]
    assert len(found) == 13 and len(set(found[10:])) == 3
    assert found[:5].tolist() != found[5:10].tolist()
    few = draws(5, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(few, found[:2])


class Halfway:
    """A run of THREE that is about to train its last task, with weights as drawn."""

    def __init__(self, trainer, **settings):
        rates = flat(1e-3, trainer.scheme)
        self.trainer, self.strategy = trainer, of("der++", **settings)
        course = Course(THREE, [rates] * 3, 0, 1.0, trainer.evaluator, False)
        course.restart(self.moved(0))
        kept = self.strategy.begin(course)
        rng = np.random.default_rng(7)
        course.heads = [
            [(h + rng.normal(0, 0.5, h.shape)).astype(np.float32) for h in head]
            for head in course.heads
        ]
        self.heads_then = []
        for i in (0, 1):
            course.restart(self.moved(i + 1))
            kept = self.strategy.after_task(course, i, kept)
            self.heads_then.append(course.heads[i])
            # What the heads are later must not count.
            course.heads[i] = [np.array(h) + np.float32(0.2) for h in course.heads[i]]
        course.restart(self.moved(3))
        self.course, self.kept = course, kept
        (self.stage,) = self.strategy.stages(course, 2, kept)

    def moved(self, seed):
        rng = np.random.default_rng(seed)
        return [
            (w + rng.normal(0, 0.1, w.shape)).astype(np.float32)
            for w in self.trainer.encoder.weights
        ]


@pytest.fixture(scope="module")
def halfway(trainer):
    return Halfway(trainer, **WIDE)


def by_hand(trainer, weights, head, batch):
    """Logits and features of a batch by a BERT in float64, example by example."""
    paths = [v.path for v in trainer.encoder.model.trainable_variables]
    with jax.enable_x64(True):
        wide = [np.asarray(w, np.float64) for w in weights]
        named = dict(zip(paths, wide, strict=True))
        identity = [np.eye(8), np.zeros(8)]
        examples = [
            {k: batch[k][i] for k in ("token_ids", "segment_ids", "padding_mask")}
            for i in range(len(batch["labels"]))
        ]
        features = np.array([bert_logits(named, identity, one) for one in examples])
    assert features.dtype == np.float64
    kernel, bias = (np.asarray(h, np.float64) for h in head)
    return features @ kernel + bias, features


def test_loss_and_gradients_of_a_batch_are_the_formula_in_float64(halfway):
    """CE of the new + alpha ||h(x) - z||^2 + beta CE of the memory, means of each."""
    trainer, course, stage = halfway.trainer, halfway.course, halfway.stage
    batch = stage.examples.arrays(np.array([4, 0, 17, 30, 9, 2, 35, -1]), 32)
    beside = batch["memory"]
    real = batch["weights"] > 0
    np.testing.assert_array_equal(beside["weights"], batch["weights"])
    heads = [[np.asarray(h, np.float64) for h in head] for head in course.heads]

    logits, new_features = by_hand(trainer, halfway.moved(3), heads[2], batch)
    wanted = np.eye(5)[batch["labels"]]
    expected = -(wanted * log_softmax(logits, axis=1)).sum(1)[real].mean()
    d_new = (softmax(logits, axis=1) - wanted)[real] / real.sum()
    gradients = {2: new_features[real].T @ d_new}
    assert {*beside["head"][real]} == {0, 1}  # both earlier tasks are in it
    for j in (0, 1):
        mine = real & (beside["head"] == j)
        now, features = by_hand(trainer, halfway.moved(3), heads[j], beside)
        then = by_hand(trainer, halfway.moved(j + 1), halfway.heads_then[j], beside)[0]
        wanted = np.eye(CLASSES[j])[np.where(mine, beside["labels"], 0)]
        nll = -(wanted * log_softmax(now, axis=1)).sum(1)
        each = 0.7 * ((now - then) ** 2).sum(1) + 0.3 * nll
        expected += each[mine].sum() / real.sum()
        slope = 1.4 * (now - then) + 0.3 * (softmax(now, axis=1) - wanted)
        gradients[j] = features[mine].T @ slope[mine] / real.sum()

    def loss(heads):
        weights, state = course.weights, trainer.encoder.state
        return trainer.step.loss((weights, heads), state, batch, stage.terms)[0]

    found, slopes = jax.jit(jax.value_and_grad(loss))(course.heads)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for j, gradient in gradients.items():
        np.testing.assert_allclose(slopes[j][0], gradient, rtol=1e-4, atol=1e-5)
    assert 0.7 * (now - then).var() > 1e-3  # the term is there to be seen


def test_the_gradient_of_the_encoder_is_that_of_both_batches(halfway):
    """Central differences in float32 of the sum of the two parts, along one way."""
    trainer, course, stage = halfway.trainer, halfway.course, halfway.stage
    batch = stage.examples.arrays(np.arange(8), 32)
    rng = np.random.default_rng(0)
    way = [rng.normal(size=w.shape).astype(np.float32) for w in course.weights]

    @jax.jit
    def loss(weights):
        model = (weights, course.heads)
        return trainer.step.loss(model, trainer.encoder.state, batch, stage.terms)[0]

    gradient = jax.grad(loss)(course.weights)
    along = sum(np.sum(g * d) for g, d in zip(gradient, way, strict=True))
    up, down = (
        loss([w + s * d for w, d in zip(course.weights, way, strict=True)])
        for s in (1e-3, -1e-3)
    )
    np.testing.assert_allclose((up - down) / 2e-3, along, rtol=2e-2)


def test_the_memory_is_that_of_replay_with_the_logits_of_its_own_head(halfway):
    assert [x.shape for x in halfway.kept.logits] == [(6, 3), (4, 2)]
    for i in (0, 1):
        rng = generator(0, Purpose.MEMORY, i)
        expected = memory(THREE[i].train, CLASSES[i], 2, rng, "x")
        np.testing.assert_array_equal(halfway.kept.examples[i].ids, expected.ids)
        np.testing.assert_array_equal(halfway.kept.examples[i].labels, expected.labels)


def test_every_batch_has_a_memory_beside_it_however_long_the_texts_are(trainer):
    """In batches of similar lengths, short new and long old texts would not mix."""
    tasks = [
        task("long", 0, train=data(0, shortest=26, longest=33)),
        task("short", 1, train=data(1, count=45, shortest=3, longest=9)),
    ]
    rates = [flat(1e-3, trainer.scheme)] * 2
    course = Course(tasks, rates, 0, 1.0, trainer.evaluator, False)
    course.restart(trainer.encoder.weights)
    strategy = of("der++", examples_per_class=4)
    kept = strategy.after_task(course, 0, strategy.begin(course))
    (stage,) = strategy.stages(course, 1, kept)
    plan = Plan(stage.examples, trainer.settings, 2, np.random.default_rng(0))
    parts = list(plan.parts(12, ()))
    counts = []
    for part in parts:
        assert part.batches["token_ids"].shape[2] <= 16
        beside = part.batches["memory"]
        assert beside["token_ids"].shape == (2, 8, 32)
        np.testing.assert_array_equal(beside["weights"], part.batches["weights"])
        used = beside["weights"] > 0
        assert (beside["padding_mask"].sum(2)[used] >= 26).all()
        counts += beside["token_ids"][used].tolist()
    assert len(counts) == 2 * 45
    # Eight examples are drawn five or six times in an epoch of 45.
    _, often = np.unique(counts, axis=0, return_counts=True)
    assert len(often) == 8 and set(often) <= {10, 12}


def test_steps_and_batches_are_those_of_plain(trainer):
    strategies = [of(), of("der++", examples_per_class=2)]
    plain, dark = (trainer.steps(THREE, strategy=one) for one in strategies)
    assert plain == dark == 3 * 2 * 5


def test_the_first_task_is_plain_and_old_heads_are_trained_later(runs):
    for tasks in (TASKS, THREE):
        flat_run, plain = runs.run(tasks, of())
        run, weights = runs.run(tasks, of("der++", examples_per_class=2))
        assert equal(weights[0], plain[0]) and same_row(run, flat_run, 0)
        assert not run.diverged and not same(run, flat_run)
        count = len(tasks)
        for i in range(1, count):
            before, after = (heads_of(weights[k], count) for k in (i - 1, i))
            moved = [not equal(a, b) for a, b in zip(after, before, strict=True)]
            assert moved == [j <= i for j in range(count)]


def test_no_strength_at_all_is_plain_for_heads_of_other_sizes(runs):
    nothing = of("der++", alpha=0.0, beta=0.0, examples_per_class=2)
    (one, plain), (two, weights) = (runs.run(THREE, s) for s in (of(), nothing))
    assert same(one, two)
    for a, b in zip(plain, weights, strict=True):
        assert equal(a, b)


def test_the_old_logits_are_held_the_more_the_larger_alpha_is(trainer):
    """Of the examples in the memory, and of others of the old task."""
    tasks = [replace(one, epochs=10) for one in TASKS]
    kept = memory(TASKS[0].train, 2, 6, generator(0, Purpose.MEMORY, 0), "a")
    count, rates = len(trainer.encoder.weights), flat(1e-2, trainer.scheme)
    moved = []
    for alpha in (0.0, 0.01, 0.1, 1.0):
        strategy = of("der++", alpha=alpha, beta=0.0, examples_per_class=6)
        found = trained(trainer, tasks, rates, strategy)
        moved.append([])
        for examples in (kept, TASKS[0].validation):
            then, now = (
                trainer.evaluate(examples, w[:count], heads_of(w, 2)[0]) for w in found
            )
            moved[-1].append(distance([then], [now]))
    assert (np.diff(moved, axis=0) < 0).all(), moved


def test_the_seed_decides_what_goes_with_what(runs):
    run = partial(runs.run, TASKS, of("der++", examples_per_class=3))
    (one, first), (again, second), (other, _) = run(seed=4), run(seed=4), run(seed=5)
    assert same(one, again) and not same(one, other)
    assert equal(first[1], second[1])
