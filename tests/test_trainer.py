import os
import signal
import threading
from dataclasses import replace

import jax
import keras
import numpy as np
import pytest
from trainer_cases import data, same, task, trained

from lrdist_keras.data.batches import buckets, take, training_steps
from lrdist_keras.distribution import Distribution, flat, kenneweg2022
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training import compiler, run
from lrdist_keras.training.compiler import Compiler
from lrdist_keras.training.course import initial_state
from lrdist_keras.training.evaluation import Evaluator
from lrdist_keras.training.run import Observer, Purpose, TaskData, generator
from lrdist_keras.training.strategies.elastic import Ewc
from lrdist_keras.training.strategies.lora import Lora
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.trainer import SequentialTrainer

pytestmark = pytest.mark.usefixtures("usual_emitters")

PLAIN = Plain()
EWC = Ewc(strength=0.0)


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_encoder(str(tiny_preset))


@pytest.fixture(scope="module")
def trainer(encoder):
    settings = TrainingSettings(
        batch_size=8,
        max_length=32,
        steps_per_call=2,
        evaluation_batch_size=16,
        curve_points=2,
        curve_examples=10,
    )
    return SequentialTrainer(encoder, settings)


TASKS = [task("a", 0), task("b", 1)]


def name_of(key):
    """Which function a program of the compiler is of."""
    return key[0].__name__


def length_of(key):
    """The tokens per row that it takes."""
    _, structure, types = key
    for argument in jax.tree.unflatten(structure, types):
        if isinstance(argument, dict):
            return argument["token_ids"][0][-1]
    raise AssertionError("it takes no batch")


class OurSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over 2 of 20 steps, then a cosine, in NumPy's words."""

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        fall = 0.5 * (1 + keras.ops.cos(np.pi * (step - 2) / 18))
        return 1e-3 * keras.ops.where(step < 2, (step + 1) / 2, fall)


def compare_with_fit(encoder, length, vocabulary, rate, tolerance):
    """Trains 20 steps with `fit` and with our loop; returns the largest difference."""
    settings = TrainingSettings(batch_size=8, max_length=length, steps_per_call=3)
    trainer = SequentialTrainer(encoder, settings)
    # 157 examples: the last batch of 8 has three rows of padding.
    train = data(3, count=157, longest=length, vocabulary=vocabulary)
    one = TaskData("a", train, train, 2, None, 1)
    seed = 4
    rng = generator(seed, Purpose.ORDER, 0)
    plan = training_steps(train, buckets(length), 8, 3, rng)
    batches = [train.arrays(row, call.length) for call in plan for row in call.indices]
    assert len(batches) == 20
    head = keras.layers.Dense(2, name="head")
    model = keras.Model(
        encoder.model.inputs, head(encoder.model.output[:, 0]), name="fit"
    )
    kernel, bias = new_head(2, encoder.width, generator(seed, Purpose.HEAD, 0))
    head.set_weights([kernel, bias])
    for v, w in zip(encoder.model.trainable_variables, encoder.weights, strict=True):
        v.assign(w)

    def stream():
        names = [tensor.name for tensor in model.inputs]
        for batch in batches:
            real = batch["weights"] > 0
            inputs = {name: batch[name][real] for name in names}
            yield inputs, batch["labels"][real]

    model.compile(
        keras.optimizers.Adam(OurSchedule() if rate is None else rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(stream(), steps_per_epoch=20, epochs=1, verbose=0, shuffle=False)
    expected = [np.asarray(v.value) for v in model.trainable_variables]
    distribution = flat(1e-3 if rate is None else rate, trainer.scheme)
    if rate is not None:
        constant = settings.model_copy(update={"warmup": 0.0, "schedule": "constant"})
        trainer = SequentialTrainer(encoder, constant)
    found = trained(trainer, [one], distribution, PLAIN, seed)[0]
    paths = [v.path for v in model.trainable_variables]
    for path, a, b, before in zip(
        paths, found, expected, [*encoder.weights, kernel, bias], strict=True
    ):
        if path.endswith("key/bias"):  # its gradient is zero but for rounding
            continue
        assert not np.array_equal(b, before) or "position" in path, path
        np.testing.assert_allclose(a, b, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("rate", [1e-3, None], ids=["constant", "cosine"])
def test_20_steps_end_at_the_weights_of_keras_fit(encoder, rate):
    # Adam divides by the root of the second moment: where a gradient is near 1e-7,
    # rounding moves a step by a few per mille of the rate of 1e-3.
    compare_with_fit(encoder, 32, 30, rate, tolerance=2e-5)


@pytest.mark.slow
def test_20_steps_end_at_the_weights_of_keras_fit_on_real_weights(minilm):
    real = load_encoder(str(minilm))
    compare_with_fit(real, 32, 30000, 1e-5, tolerance=2e-6)


def test_a_run_gives_what_it_promises(trainer):
    run = trainer.run(TASKS, flat(3e-3, trainer.scheme), PLAIN, seed=0)
    assert np.isnan(run.accuracy).tolist() == [[False, True], [False, False]]
    assert set(run.logits) == {(0, 0), (1, 0), (1, 1)}
    for (after, on), logits in run.logits.items():
        labels = TASKS[on].validation.labels
        assert logits.shape == (24, 2)
        assert run.accuracy[after, on] == np.mean(logits.argmax(1) == labels)
    assert run.examples.tolist() == [24, 24]
    curve = run.curves["b"]
    assert curve.steps == [0, 5, 10]
    assert len(curve.accuracy["a"]) == 3
    assert run.seconds > run.training_seconds > 0


def test_the_curve_starts_and_ends_with_the_matrix(encoder, trainer):
    settings = trainer.settings.model_copy(update={"curve_examples": 24})
    whole = SequentialTrainer(encoder, settings)
    run = whole.run(TASKS, flat(3e-3, whole.scheme), PLAIN, seed=0)
    assert run.curves["b"].accuracy["a"][0] == run.accuracy[0, 0]
    assert run.curves["b"].accuracy["a"][-1] == run.accuracy[1, 0]


def test_the_same_seed_gives_the_same_numbers(trainer):
    rates = kenneweg2022().resample(trainer.scheme).rescaled(1e-3)
    one, again, other = (trainer.run(TASKS, rates, PLAIN, s) for s in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)


def test_a_task_that_can_be_learned_is_learned(trainer):
    many = task("a", 0, epochs=30)
    run = trainer.run([many], flat(1e-2, trainer.scheme), PLAIN, seed=0)
    assert run.accuracy[0, 0] > 0.9


def test_one_program_per_kind_head_and_bucket(encoder):
    settings = TrainingSettings(batch_size=8, max_length=48, evaluation_batch_size=8)
    fresh = SequentialTrainer(encoder, settings)
    long = {"shortest": 41, "longest": 49}
    tasks = [
        task("a", 0),
        task("b", 1, train=data(1, **long), validation=data(6, **long)),
        task("c", 2, classes=3),
    ]
    first = fresh.run(tasks, flat(1e-3, fresh.scheme), PLAIN, seed=0)
    # (2 classes, bucket 32), (2, 48) and (3, 32), each for training and evaluation.
    assert first.compilations == 2 * 3
    for rate, seed in [(1e-2, 0), (1e-3, 1), (3e-4, 2)]:
        again = fresh.run(tasks, flat(rate, fresh.scheme), PLAIN, seed)
        assert again.compilations == 0
    shaped = kenneweg2022().resample(fresh.scheme)
    assert fresh.run(tasks, shaped, PLAIN, 3).compilations == 0
    # The Fisher of a, and the penalised step of b.
    assert fresh.run(tasks[:2], shaped, EWC, 3).compilations == 2
    stronger = Ewc(strength=7.0)
    assert fresh.run(tasks[:2], shaped, stronger, 4).compilations == 0


def test_programs_are_begun_before_the_first_step(encoder, monkeypatch):
    settings = TrainingSettings(batch_size=8, max_length=48, evaluation_batch_size=8)
    fresh = SequentialTrainer(encoder, settings)
    begun = []
    call = Compiler.call

    def noted(self, function, *arguments):
        begun.append({*self._compiled, *self._coming})
        return call(self, function, *arguments)

    monkeypatch.setattr(Compiler, "call", noted)
    mixed = {"train": data(0, 120, shortest=9), "validation": data(1, 60, shortest=17)}
    run = fresh.run([task("a", 0, **mixed)], flat(1e-3, fresh.scheme), PLAIN, 0)
    assert begun[0] == set(fresh.compiler._compiled) and not fresh.compiler._coming
    lengths = {(name_of(key), length_of(key)) for key in begun[0]}
    assert lengths == {("train_steps", n) for n in (16, 24, 32)} | {
        ("evaluate", n) for n in (24, 32)
    }
    assert run.compilations == 5


MIXED = {"train": data(0, 90, shortest=1), "validation": data(1, 90, shortest=1)}


@pytest.fixture
def interruptible():
    """SIGINT interrupts also where this process was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def alone(encoder, monkeypatch):
    """A trainer without programs, of which one is compiled at a time."""
    monkeypatch.setattr(compiler, "_COMPILERS", 1)
    settings = TrainingSettings(batch_size=8, max_length=48, evaluation_batch_size=8)
    return SequentialTrainer(encoder, settings)


def test_interrupted_while_it_waits_a_run_leaves_nothing_to_compile(
    alone, interruptible, monkeypatch
):
    own, gate = alone.compiler, threading.Event()
    own._compilers.submit(gate.wait, 60)
    call = Compiler.call

    def interrupted(self, *arguments):
        interrupt = (os.getpid(), signal.SIGINT)
        threading.Timer(0.3, os.kill, interrupt).start()
        return call(self, *arguments)

    rates = flat(1e-3, alone.scheme)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Compiler, "call", interrupted)
        alone.run([task("a", 0, **MIXED)], rates, PLAIN, 0)
    assert not own._coming and own.compilations == 0
    gate.set()
    run = alone.run([task("a", 0, **MIXED)], rates, PLAIN, 0)
    assert run.compilations == own.compilations == len(own._compiled) > 2


def test_a_program_that_cannot_be_compiled_is_tried_again(alone, monkeypatch):
    class Failing:
        def lower(self, *arguments):
            return self

        def compile(self, options):
            raise MemoryError("of the compiler")

    rates = flat(1e-3, alone.scheme)
    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="compiler"):
        patch.setattr(compiler, "jitted", lambda *program: Failing())
        alone.run([task("a", 0, **MIXED)], rates, PLAIN, 0)
    run = alone.run([task("a", 0, **MIXED)], rates, PLAIN, 0)
    assert run.compilations == alone.compiler.compilations
    assert run.compilations == len(alone.compiler._compiled)


def test_programs_of_curves_are_begun_only_for_curves(encoder, monkeypatch):
    begun, prefetch = [], Evaluator.prefetch

    def noted(self, data, weights, head):
        begun.append(len(data))
        prefetch(self, data, weights, head)

    monkeypatch.setattr(Evaluator, "prefetch", noted)
    for points in (0, 2):
        begun.clear()
        settings = TrainingSettings(
            batch_size=8, max_length=32, curve_points=points, curve_examples=10
        )
        fresh = SequentialTrainer(encoder, settings)
        fresh.run(TASKS, flat(1e-3, fresh.scheme), PLAIN, 0)
        assert (10 in begun) == (points > 0)
        assert not fresh.compiler._coming


def test_ewc_of_strength_zero_equals_flat_bit_for_bit(trainer):
    rates = flat(3e-3, trainer.scheme)
    assert same(
        trainer.run(TASKS, rates, PLAIN, seed=0), trainer.run(TASKS, rates, EWC, seed=0)
    )


def test_ewc_holds_the_first_task_more_the_stronger_it_is(trainer):
    """The logits on task a move less from where they were after it."""
    rates = flat(3e-3, trainer.scheme)
    tasks = [task("a", 0, epochs=4), task("b", 1, epochs=4)]
    moved = []
    for strength in (0.0, 1e4, 1e8):
        run = trainer.run(tasks, rates, Ewc(strength=strength), seed=0)
        # Head a does not change while b trains: what moves is the encoder.
        moved.append(np.abs(run.logits[1, 0] - run.logits[0, 0]).mean())
    assert moved[0] > moved[1] > moved[2]


def test_a_tiny_rate_freezes_its_group(trainer):
    """The embeddings stay where their rate is the smallest that a file can hold."""
    rates = dict.fromkeys(trainer.scheme.names, 1e-2) | {"embeddings": 1e-30}
    before = trainer.encoder.weights
    after = trained(trainer, TASKS[:1], Distribution(trainer.scheme, rates), PLAIN)[0]
    paths = [v.path for v in trainer.encoder.model.trainable_variables]
    for path, a, b in zip(paths, before, after, strict=False):
        frozen = np.allclose(a, b, rtol=0, atol=1e-25)
        assert frozen == ("embedding" in path), path


def test_subsets_are_drawn_by_the_seed_and_paired_over_arms(trainer, monkeypatch):
    seen = []

    def spy(encoded, indices):
        seen.append(indices.tolist())
        return take(encoded, indices)

    monkeypatch.setattr(run, "take", spy)
    small = [task("a", 0, train_examples=16, epochs=1)]
    for rate, seed in [(1e-3, 0), (1e-2, 0), (1e-3, 1)]:
        trainer.run(small, flat(rate, trainer.scheme), PLAIN, seed)
    subsets = [indices for indices in seen if len(indices) == 16]
    assert subsets[0] == subsets[1] != subsets[2]


LORA = Lora(rank=2)


def test_too_many_programs_are_dropped_and_come_again(encoder, trainer, monkeypatch):
    rates, tasks = flat(3e-3, trainer.scheme), [task("a", 0, epochs=1)]
    usual = [trainer.run(tasks, rates, strategy, seed=0) for strategy in (PLAIN, LORA)]
    crowded = SequentialTrainer(encoder, trainer.settings)
    held = crowded.compiler._compiled
    monkeypatch.setattr(compiler, "_mappings", lambda: len(held))
    monkeypatch.setattr(compiler, "_MAPPINGS", 0)
    for _ in range(2):
        for strategy, wanted in zip((PLAIN, LORA), usual, strict=True):
            run = crowded.run(tasks, rates, strategy, seed=0)
            assert same(run, wanted)
            assert run.compilations == 2
            (key,) = held
            assert name_of(key) == "evaluate"


def test_the_programs_dropped_are_those_not_used_for_longest(encoder, monkeypatch):
    settings = TrainingSettings(max_length=32, evaluation_batch_size=4)
    crowded = SequentialTrainer(encoder, settings)
    held = crowded.compiler._compiled
    monkeypatch.setattr(compiler, "_mappings", lambda: len(held))
    monkeypatch.setattr(compiler, "_MAPPINGS", 2)
    head = new_head(2, encoder.width, np.random.default_rng(0))

    def evaluate(length):
        rows = data(0, 4, shortest=length, longest=length + 1)
        crowded.evaluate(rows, encoder.weights, head)
        return [*map(length_of, held)]

    assert [evaluate(n) for n in (8, 16, 8, 24)][1:] == [[8, 16], [16, 8], [8, 24]]
    inputs = data(0, 4, shortest=8, longest=9).arrays(np.arange(4), 8)
    given = (encoder.weights, head, encoder.state, inputs)
    crowded.compiler.prefetch(crowded.step.evaluate, *given)
    assert evaluate(32) == [8, 32]
    monkeypatch.setattr(compiler, "_mappings", lambda: 100)  # not by programs
    assert evaluate(16) == [32, 16]


@pytest.mark.skipif(not compiler._mappings(), reason="only Linux tells the mappings")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPUs map a kernel")
def test_a_dropped_program_gives_its_mappings_back(encoder, trainer):
    alone = SequentialTrainer(encoder, trainer.settings)
    alone.run([task("a", 0, epochs=1)], flat(3e-3, trainer.scheme), PLAIN, seed=0)
    before = compiler._mappings()
    del alone.compiler._compiled[next(iter(alone.compiler._compiled))]
    assert compiler._mappings() < before - 10


def test_dropout_is_drawn_anew_by_the_seed(tiny_preset, trainer):
    dropping = SequentialTrainer(load_encoder(str(tiny_preset), 0.3), trainer.settings)
    rates = flat(3e-3, trainer.scheme)
    one, again = (dropping.run(TASKS, rates, PLAIN, seed=0) for _ in range(2))
    assert same(one, again)
    assert not same(one, trainer.run(TASKS, rates, PLAIN, seed=0))
    first, second = (initial_state(dropping.encoder, s) for s in (0, 1))
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_ewc_over_three_tasks_remembers_the_first(trainer):
    """With the penalties of a and b, what c does to the logits on a is less."""
    tasks = [task(name, i, epochs=4) for i, name in enumerate("abc")]
    rates = flat(3e-3, trainer.scheme)
    strong = Ewc(strength=1e8)
    free, held = (trainer.run(tasks, rates, s, seed=0) for s in (EWC, strong))

    def moved(run):
        return np.abs(run.logits[2, 0] - run.logits[0, 0]).mean()

    assert moved(held) < moved(free)


def test_curves_of_all_seeds_have_the_same_steps(trainer):
    rates = flat(1e-3, trainer.scheme)
    tasks = [
        task("a", 0, epochs=1),
        task("b", 1, epochs=1, train=data(1, count=90, longest=33)),
    ]
    steps = [trainer.run(tasks, rates, PLAIN, s).curves["b"].steps for s in range(3)]
    assert steps == [[0, 6, 12]] * 3


def test_adamw_decays_and_adam_does_not(encoder, trainer):
    rates = flat(3e-3, trainer.scheme)
    update = {"optimizer": "adamw", "weight_decay": 0.5}
    adamw = SequentialTrainer(encoder, trainer.settings.model_copy(update=update))
    update = {"optimizer": "adamw", "weight_decay": 0.0}
    without = SequentialTrainer(encoder, trainer.settings.model_copy(update=update))
    adam = trainer.run(TASKS, rates, PLAIN, seed=0)
    assert not same(adam, adamw.run(TASKS, rates, PLAIN, seed=0))
    assert same(adam, without.run(TASKS, rates, PLAIN, seed=0))


def test_the_group_table_counts_every_parameter_once(trainer):
    table = trainer.group_table([2, 3])
    assert [name for name, _, _ in table] == list(trainer.scheme.names)
    expected = sum(w.size for w in trainer.encoder.weights) + (8 * 5 + 5)
    assert sum(parameters for _, _, parameters in table) == expected
    assert dict((n, p) for n, _, p in table)["head"] == 8 * 5 + 5


def test_steps_are_those_that_are_reported(trainer):
    reported = []
    tasks = [TASKS[0], replace(TASKS[1], train_examples=20, epochs=3)]
    rates, observer = flat(1e-3, trainer.scheme), Observer(reported.append)
    trainer.run(tasks, rates, PLAIN, seed=0, observer=observer)
    assert sum(reported) == trainer.steps(tasks) == 2 * 5 + 3 * 3


def test_each_task_may_have_rates_of_its_own(trainer):
    first, still = flat(3e-3, trainer.scheme), flat(1e-30, trainer.scheme)
    one, two = trained(trainer, TASKS, [first, still], PLAIN)
    (alone,) = trained(trainer, TASKS[:1], first, PLAIN)
    count = len(trainer.encoder.weights)
    for a, b, c in zip(one[:count], two[:count], alone[:count], strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-25)
    with pytest.raises(ValueError, match="one for each of 2 tasks. Received: 1"):
        trainer.run(TASKS, [first], PLAIN, seed=0)


def test_a_distribution_of_another_scheme_is_refused(trainer):
    with pytest.raises(ValueError, match="resample it first"):
        trainer.run(TASKS, kenneweg2022(), PLAIN, seed=0)
