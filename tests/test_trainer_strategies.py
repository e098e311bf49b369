"""What each strategy does in a run: its formula, and a case in which it is another."""

import jax
import numpy as np
import pytest
from strategy_cases import (
    RATE,
    SETTINGS,
    TASKS,
    Runs,
    bert_logits,
    distance,
    equal,
    heads_of,
    of,
    probe_by_hand,
    same_row,
)
from trainer_cases import data, same, task, trained

from lrdist_keras.data.batches import take
from lrdist_keras.distribution import Distribution, fast_head, flat
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.training.penalties import QuadraticPenalty
from lrdist_keras.training.run import Observer, Purpose, generator
from lrdist_keras.training.strategies.averaging import average
from lrdist_keras.training.trainer import SequentialTrainer

pytestmark = pytest.mark.usefixtures("usual_emitters")

STAR = "seq_star"


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_encoder(str(tiny_preset))


@pytest.fixture(scope="module")
def trainer(encoder):
    return SequentialTrainer(encoder, SETTINGS)


@pytest.fixture(scope="module")
def runs(trainer):
    return Runs(trainer)


NOTHING = [
    ("ewc", {"strength": 0.0}),
    ("ewc_online", {"strength": 0.0}),
    ("ewc_pretraining", {"strength": 0.0}),
    ("l2_sp", {"strength": 0.0, "head_strength": 0.0}),
    ("lwf", {"strength": 0.0}),
    # What comes with a batch costs nothing, and its gradient is 0.
    ("der++", {"alpha": 0.0, "beta": 0.0}),
    # The training weighs 1 from the first step on.
    ("recadam", {"strength": 10.0, "midpoint": 0.0, "steepness": 1e6}),
    ("lp_ft", {"probe_rate": 1e-30}),
    ("wise_ft", {"alpha": 1.0}),
    ("sfa", {"alpha": 1.0}),
]


@pytest.mark.parametrize("strategy, settings", NOTHING, ids=[s for s, _ in NOTHING])
def test_a_strategy_without_strength_is_flat_bit_for_bit(runs, strategy, settings):
    (flat_run, flat_weights), (run, weights) = runs(), runs(strategy, **settings)
    assert same(flat_run, run)
    for one, two in zip(flat_weights, weights, strict=True):
        assert equal(one, two)


STRONGER = [
    ("ewc", [{"strength": x} for x in (0.0, 1e4, 1e8)]),
    ("ewc_online", [{"strength": x} for x in (0.0, 1e4, 1e8)]),
    ("ewc_pretraining", [{"strength": x} for x in (0.0, 1.0, 1e3)]),
    ("l2_sp", [{"strength": x} for x in (0.0, 1.0, 1e3)]),
    (
        "recadam",
        [
            {"strength": x, "midpoint": 0.75, "steepness": 5.0}
            for x in (0.0, 30.0, 300.0)
        ],
    ),
    ("wise_ft", [{"alpha": x} for x in (1.0, 0.5, 0.0)]),
    ("sfa", [{"alpha": x} for x in (1.0, 0.5, 0.0)]),
]


@pytest.mark.parametrize("strategy, steps", STRONGER, ids=[s for s, _ in STRONGER])
def test_with_adam_the_distance_falls_as_the_strength_grows(runs, strategy, steps):
    """From the anchor to the weights after the second task."""
    found = []
    for settings in steps:
        _, (first, second) = runs(strategy, **settings)
        anchor = runs.backbone(first)
        if strategy in ("ewc_pretraining", "l2_sp"):
            anchor = runs.trainer.encoder.weights
        found.append(distance(runs.backbone(second), anchor))
    assert found[0] > found[1] > found[2]


def test_l2_sp_draws_the_head_to_zero(runs):
    norms = []
    for strength in (0.0, 1e3):
        _, (first, _) = runs("l2_sp", strength=0.0, head_strength=strength)
        norms.append(np.linalg.norm(first[-4]))
    assert norms[1] < norms[0]


def test_recadam_of_strength_zero_trains_at_annealed_rates(encoder, runs):
    """One step of one epoch of one batch: Adam moves by lambda(1) times its rate."""
    settings = runs.trainer.settings.model_copy(update={"batch_size": 24, "warmup": 0})
    whole = SequentialTrainer(encoder, settings)
    one = [task("a", 0, train=TASKS[0].train, epochs=1)]
    weight = 1 / (1 + np.exp(-2.0 * (1 - 0.25)))
    recadam = of("recadam", strength=100.0, midpoint=0.25, steepness=2.0)
    (found,) = trained(whole, one, runs.rates, recadam)
    (expected,) = trained(whole, one, flat(RATE * weight, whole.scheme), of())
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_replay_of_everything_with_no_epochs_of_a_is_joint_training(runs):
    unseen = [task("a", 0, train=TASKS[0].train, epochs=0), TASKS[1]]
    replayed, weights = runs.run(unseen, of("replay", examples_per_class=12))
    together, expected = runs("joint")
    for j in (0, 1):
        np.testing.assert_array_equal(replayed.logits[1, j], together.logits[1, j])
    assert equal(weights[-1], expected[-1])


def test_replay_of_a_share_is_that_of_as_many_of_each_class(runs):
    """Of 24 examples, 12 of each class: all of them both ways, and a half."""
    (one, by_number), (two, by_share) = (
        runs("replay", examples_per_class=12),
        runs("replay", share=1.0),
    )
    assert same(one, two) and equal(by_number[1], by_share[1])
    _, half = runs("replay", share=0.5)
    assert not equal(half[1], by_share[1])


def test_replay_trains_the_heads_of_earlier_tasks_too(runs):
    (_, plain), (run, replay) = runs(), runs("replay", examples_per_class=6)
    assert same_row(run, runs()[0], 0)
    assert equal(plain[0][-4:-2], plain[1][-4:-2])
    assert not equal(replay[0][-4:-2], replay[1][-4:-2])


def test_joint_and_single_have_no_order(runs):
    for strategy in ("joint", "single"):
        run, weights = runs(strategy)
        assert run.curves == {}
        np.testing.assert_array_equal(run.logits[0, 0], run.logits[1, 0])
        assert run.accuracy[0, 0] == run.accuracy[1, 0]
        assert len(weights) == (1 if strategy == "joint" else 2)


def test_single_is_each_task_from_the_pretrained_weights(runs):
    run, _ = runs("single")
    assert same_row(run, runs()[0], 0)
    unseen = [task("a", 0, train=TASKS[0].train, epochs=0), TASKS[1]]
    alone, _ = runs.run(unseen, of())
    np.testing.assert_array_equal(run.logits[1, 1], alone.logits[1, 1])


def test_lwf_holds_the_old_answers_on_the_new_inputs(runs):
    """The mean divergence from the old model is less, and the old head is trained."""
    trainer, inputs = runs.trainer, TASKS[1].train
    divergence = []
    for strength in (0.0, 1.0):
        _, (before, after) = runs("lwf", strength=strength)
        old, new = (
            trainer.evaluate(inputs, runs.backbone(w), w[-4:-2])
            for w in (before, after)
        )
        p, q = jax.nn.softmax(old / 2), jax.nn.softmax(new / 2)
        divergence.append(float((p * np.log(p / q)).sum(axis=1).mean()))
    assert divergence[0] > 2 * divergence[1]
    assert not equal(before[-4:-2], after[-4:-2])


def test_a_linear_probe_is_a_logistic_regression_on_frozen_features(runs):
    """By hand, in float64: Adam on the features, in the order of the run."""
    trainer = runs.trainer
    _, (found, _) = runs("frozen")
    assert equal(runs.backbone(found), trainer.encoder.weights)
    head = new_head(2, 8, generator(0, Purpose.HEAD, 0))
    kernel, bias = probe_by_hand(trainer, TASKS[0], 0, trainer.encoder.weights, head)
    np.testing.assert_allclose(found[-4], kernel, atol=2e-6)
    np.testing.assert_allclose(found[-3], bias, atol=2e-6)


def test_seq_star_is_plain_then_a_probe_of_the_encoder_after_the_first_task(runs):
    """All later heads by hand, in float64, also of three tasks."""
    tasks = [task(f"task {c}", i, classes=c) for i, c in enumerate((3, 2, 5))]
    (_, plain), (_, weights) = (runs.run(tasks, of(name)) for name in ("plain", STAR))
    assert equal(weights[0], plain[0])
    encoder = runs.backbone(weights[0])
    for after in weights[1:]:
        assert equal(runs.backbone(after), encoder)
        assert equal(heads_of(after, 3)[0], heads_of(weights[0], 3)[0])
    assert equal(heads_of(weights[2], 3)[1], heads_of(weights[1], 3)[1])
    for i in (1, 2):
        head = new_head(tasks[i].classes, 8, generator(0, Purpose.HEAD, i))
        expected = probe_by_hand(runs.trainer, tasks[i], i, encoder, head)
        for a, b in zip(heads_of(weights[i], 3)[i], expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6)


def test_later_heads_of_seq_star_learn_at_the_heads_own_rate(runs):
    rates = fast_head(RATE, 4.0, runs.trainer.scheme)
    still = Distribution(rates.scheme, dict(rates.rates) | {"head": 1e-30})
    found, again = (trained(runs.trainer, TASKS, r, of(STAR)) for r in (rates, still))
    assert distance(found[1][-2:], found[0][-2:]) > 0.01
    assert equal(again[1][-2:-1], again[0][-2:-1])  # a bias of 0 moves by 1e-30


def test_lp_ft_that_does_not_fine_tune_is_the_probe(runs):
    still = flat(1e-30, runs.trainer.scheme)
    found = trained(runs.trainer, TASKS, still, of("lp_ft", probe_rate=RATE))
    _, expected = runs("frozen")
    for one, two in zip(sum(found, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-25)  # zeros move by 1e-30
    _, (tuned, _) = runs("lp_ft", probe_rate=RATE)
    assert not equal(runs.backbone(tuned), runs.trainer.encoder.weights)


def test_wise_ft_averages_with_the_model_before(runs):
    _, (before, after) = runs()
    for alpha in (0.0, 0.5):
        _, (first, second) = runs("wise_ft", alpha=alpha)
        assert equal(first, before)
        expected = average(runs.backbone(before), runs.backbone(after), alpha)
        assert equal(runs.backbone(second), expected)
        assert equal(second[-2:], after[-2:])


def test_an_alpha_chosen_on_training_data_is_the_best_on_it(runs):
    trainer = runs.trainer
    _, (before, after) = runs()
    _, (_, chosen) = runs("wise_ft", alpha="training")

    def score(weights):
        heads = [after[-4:-2], after[-2:]]
        logits = [
            trainer.evaluate(t.train, weights, h)
            for t, h in zip(TASKS, heads, strict=True)
        ]
        return sum(
            np.mean(z.argmax(1) == t.train.labels)
            for z, t in zip(logits, TASKS, strict=True)
        )

    averages = [
        average(runs.backbone(before), runs.backbone(after), a)
        for a in np.linspace(0, 1, 11)
    ]
    scores = [score(w) for w in averages]
    best = averages[int(np.argmax(scores))]
    for a, b in zip(runs.backbone(chosen), best, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_sfa_with_one_average_at_the_end_is_wise_ft(runs):
    one, _ = runs("sfa", alpha=0.5, period=1.0)
    other, _ = runs("wise_ft", alpha=0.5)
    assert same(one, other)
    often, _ = runs("sfa", alpha=0.5, period=0.25)
    assert not same(one, often)


def test_lora_moves_query_and_value_alone(runs):
    trainer = runs.trainer
    run, (first, second) = runs("lora", rank=2)
    for v, before, after in zip(
        trainer.encoder.model.trainable_variables,
        trainer.encoder.weights,
        runs.backbone(second),
        strict=True,
    ):
        adapted = v.path.endswith(("query/kernel", "value/kernel"))
        assert np.array_equal(before, after) != adapted, v.path
    logits = trainer.evaluate(TASKS[1].validation, runs.backbone(second), second[-2:])
    np.testing.assert_allclose(run.logits[1, 1], logits, atol=1e-5)
    assert not equal(runs.backbone(first), runs.backbone(second))


def test_a_lora_of_tiny_rate_is_the_pretrained_model(runs):
    weights = trained(
        runs.trainer, TASKS[:1], flat(1e-30, runs.trainer.scheme), of("lora", rank=2)
    )[0]
    assert equal(runs.backbone(weights), runs.trainer.encoder.weights)


EVERY = [
    ("frozen", {}, {}),
    ("seq_star", {}, {}),
    ("lp_ft", {"probe_rate": 1e-3}, {"probe_rate": 1e-2}),
    ("ewc", {"strength": 1.0}, {"strength": 2.0}),
    ("ewc_online", {"strength": 1.0}, {"strength": 2.0, "fisher_decay": 0.5}),
    ("ewc_pretraining", {"strength": 1.0}, {"strength": 2.0}),
    ("l2_sp", {"strength": 1.0}, {"strength": 2.0, "head_strength": 0.3}),
    (
        "recadam",
        {"strength": 1.0},
        {"strength": 2.0, "midpoint": 0.5, "steepness": 7.0},
    ),
    ("replay", {"examples_per_class": 2}, {"examples_per_class": 3}),
    ("der++", {"examples_per_class": 2}, {"examples_per_class": 2, "alpha": 0.5}),
    ("head_refit", {"examples_per_class": 2}, {"examples_per_class": 3}),
    ("replay", {"share": 0.1}, {"share": 0.4}),
    ("lwf", {"strength": 1.0}, {"strength": 2.0, "temperature": 3.0}),
    ("wise_ft", {"alpha": 0.3}, {"alpha": 0.6}),
    ("sfa", {"alpha": 0.3}, {"alpha": 0.6, "period": 0.3}),
    ("lora", {}, {}),
    ("joint", {}, {}),
    ("single", {}, {}),
]


@pytest.mark.parametrize("strategy, one, other", EVERY, ids=[s for s, *_ in EVERY])
def test_other_strengths_and_seeds_compile_nothing(runs, strategy, one, other):
    trainer = runs.trainer
    reported = []
    runs.run(TASKS, of(strategy, **one))
    ones = [np.ones_like(w) for w in trainer.encoder.weights]
    again = trainer.run(
        TASKS,
        flat(1e-3, trainer.scheme),
        of(strategy, **other).prepared(lambda *_: ones),
        seed=5,
        observer=Observer(reported.append),
    )
    assert again.compilations == 0
    assert sum(reported) == trainer.steps(TASKS, strategy=of(strategy, **other))
    plain = trainer.run(TASKS, runs.rates, of(), seed=5)
    assert plain.compilations == 0


def test_programs_by_kind_of_step(encoder, runs):
    """Beside the two of a flat run, each strategy adds at most its own."""
    fresh = SequentialTrainer(encoder, runs.trainer.settings)
    expected = {
        "plain": 2,  # training and evaluation, two classes, one bucket
        "single": 0,
        "wise_ft": 0,
        "sfa": 0,
        "frozen": 1,
        "seq_star": 0,
        "lp_ft": 0,  # the probe's and the flat arm's
        "ewc": 2,  # the penalised step and the Fisher
        "ewc_online": 0,
        "l2_sp": 1,
        "recadam": 1,
        "lwf": 1,
        "replay": 1,
        "der++": 1,
        "head_refit": 0,
        "joint": 0,
        "lora": 2,
    }
    found = {
        strategy: fresh.run(TASKS, runs.rates, of(strategy), seed=0).compilations
        for strategy in expected
        if strategy != "recadam"
    }
    weak = of("recadam", strength=1.0)
    found["recadam"] = fresh.run(TASKS, runs.rates, weak, seed=0).compilations
    assert found == expected


def test_what_a_strategy_cannot_do_is_said_before_training(trainer, runs):
    uneven = [TASKS[0], task("b", 1, train=TASKS[1].train, epochs=3)]
    cases = [
        (uneven, of("joint"), r"same `epochs`. Received: \[2, 3\]"),
        (TASKS, of("recadam"), "overshoots its anchor.*Received: 15"),
        (TASKS, of("replay", examples_per_class=13), "at most the 12.*Received: 13"),
        (TASKS, of("der++", examples_per_class=13), "at most the 12.*Received: 13"),
        (TASKS, of("head_refit", examples_per_class=13), "at most the 12.*Received"),
        (TASKS, of("replay", share=0.02), "one of the 24 training.*Received: 0.02"),
        (TASKS, of("ewc_pretraining"), "needs `pretraining_fisher`"),
    ]
    for tasks, wanted, message in cases:
        with pytest.raises(ValueError, match=message):
            trainer.run(tasks, runs.rates, wanted, 0, observer=Observer(pytest.fail))


def test_a_fisher_of_nothing(trainer):
    nothing = take(TASKS[0].train, np.array([], int))
    with pytest.raises(ValueError, match="needs at least one"):
        trainer.fisher(nothing, trainer.encoder.weights, new_head(2, 8, _generator()))


def _generator():
    return np.random.default_rng(0)


def test_fisher_and_penalty_equal_float64_example_by_example(trainer):
    """A BERT by hand, one example after the other, all in float64."""
    encoder, few = trainer.encoder, data(0, count=6)
    rng = np.random.default_rng(1)
    head = [h + 0.3 for h in new_head(2, 8, rng)]
    head[0] += rng.normal(size=(8, 2)).astype(np.float32)
    weights = [
        w + rng.normal(0, 0.1, w.shape).astype(np.float32) for w in encoder.weights
    ]
    fisher = trainer.fisher(few, weights, head)
    paths = [v.path for v in encoder.model.trainable_variables]
    with jax.enable_x64(True):
        wide = [np.asarray(w, np.float64) for w in weights]
        head64 = [np.asarray(h, np.float64) for h in head]

        def log_likelihood(weights, example):
            logits = bert_logits(
                dict(zip(paths, weights, strict=True)), head64, example
            )
            return jax.nn.log_softmax(logits)[example["labels"]]

        gradient = jax.jit(jax.grad(log_likelihood))
        expected = [np.zeros(w.shape) for w in wide]
        for i in range(6):
            batch = few.arrays(np.array([i]), 32)
            example = {name: values[0] for name, values in batch.items()}
            for total, g in zip(expected, gradient(wide, example), strict=True):
                assert g.dtype == np.float64
                total += np.asarray(g) ** 2 / 6
    for path, a, b in zip(paths, fisher, expected, strict=True):
        if path.endswith("key/bias"):  # its gradient is zero but for rounding
            assert np.abs(a).max() < 1e-12
            continue
        scale = np.linalg.norm(b)
        assert np.linalg.norm(np.asarray(a, np.float64) - b) <= 1e-5 * scale, path
    moved = [w + np.float32(0.01) for w in weights]
    found = QuadraticPenalty(fisher, weights, np.float32(50))(moved)
    by_hand = 25 * sum(
        (f * (m.astype(np.float64) - w) ** 2).sum()
        for f, m, w in zip(expected, moved, wide, strict=True)
    )
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["ewc_online", "lwf"])
def test_three_heads_of_different_sizes(runs, strategy):
    """Old heads of 3 and 2 classes, a new one of 5 (a fault of other libraries)."""
    tasks = [task(f"task {c}", i, classes=c) for i, c in enumerate((3, 2, 5))]
    flat_run, flat_weights = runs.run(tasks, of())
    nothing, _ = runs.run(tasks, of(strategy, strength=0.0))
    assert same(nothing, flat_run)
    held, weights = runs.run(tasks, of(strategy, strength=100.0))
    assert [held.logits[2, j].shape[1] for j in range(3)] == [3, 2, 5]
    assert not held.diverged and not same(held, flat_run)
    assert equal(weights[0], flat_weights[0])  # of the first task nothing is held yet
    if strategy == "ewc_online":
        moved, free = (
            distance(runs.backbone(w[0]), runs.backbone(w[2]))
            for w in (weights, flat_weights)
        )
        assert moved < free


@pytest.fixture(scope="module")
def wide_preset(tmp_path_factory):
    """A preset whose products fill the tiles that bfloat16 is used for."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(40, 2, 2, 64, 128, max_sequence_length=32)
    folder = tmp_path_factory.mktemp("preset")
    backbone.save_to_preset(str(folder))
    return str(folder)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("der++", marks=pytest.mark.slow),
        "seq_star",
        pytest.param("head_refit", marks=pytest.mark.slow),
    ],
)
def test_bfloat16_gives_finite_numbers_near_those_of_float32(wide_preset, strategy):
    tasks = [task(f"task {c}", i, classes=c) for i, c in enumerate((3, 2, 5))]
    settings = {} if strategy == "seq_star" else {"examples_per_class": 2}
    found = {}
    for precision in ("float32", "bfloat16"):
        encoder = load_encoder(wide_preset, precision=precision)
        trainer = SequentialTrainer(encoder, SETTINGS)
        rates = flat(1e-3, trainer.scheme)
        run = trainer.run(tasks, rates, of(strategy, **settings), 0)
        assert not run.diverged
        assert all(np.isfinite(logits).all() for logits in run.logits.values())
        found[precision] = run.logits
    first = [found[precision][0, 0] for precision in found]
    assert not np.array_equal(*first)
    np.testing.assert_allclose(*first, atol=0.1)
