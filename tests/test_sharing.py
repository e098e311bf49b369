"""What arms have in common is trained once, and every bit stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
from trainer_cases import data, task

from lrdist_keras import config
from lrdist_keras.distribution import flat, llrd
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import comparison, sharing
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.run import GivenModel, Observer
from lrdist_keras.training.shared_results import SharedResults
from lrdist_keras.training.stage import StageTrainer
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.trainer import SequentialTrainer

ALIKE = [
    '{name="flat", rate=1e-2}',
    '{name="ewc", rate=1e-2, strategy="ewc", strength=10}',
    '{name="online", rate=1e-2, strategy="ewc_online", strength=10}',
    '{name="replay", rate=1e-2, strategy="replay", examples_per_class=3}',
    '{name="lwf", rate=1e-2, strategy="lwf"}',
    '{name="sfa", rate=1e-2, strategy="sfa"}',
    '{name="wise", rate=1e-2, strategy="wise_ft"}',
    '{name="slow", rate=1e-3}',
]
MEASURES = (
    "measures={forward_transfer=false, probe=false, similarity=false, drift=false}"
)
TIMES = ("seconds", "training_seconds", "compile_seconds", "examples_per_second")
PROCESS = (*TIMES, "compilations", "measuring_seconds", "logits")


def nothing(*arguments):
    return None


@pytest.fixture
def trainings(monkeypatch):
    """The trainings that were done, as (number of the task, rate, probe)."""
    done, train = [], StageTrainer._train

    def counted(self, course, i, stage, earlier, journal):
        done.append((i, stage.rates.reference_rate, stage.probe))
        return train(self, course, i, stage, earlier, journal)

    monkeypatch.setattr(StageTrainer, "_train", counted)
    return done


@pytest.fixture
def compared(tmp_path, toml, trainings):
    """Runs arms; returns records by arm, logits by arm, and trainings of each task."""

    def compared(name, arms, *overrides):
        (tmp_path / "c.toml").write_text(toml)
        given = [f"arms=[{', '.join(arms)}]", "seeds=[0]", MEASURES, *overrides]
        configuration = config.load(tmp_path / "c.toml", given)
        prepared = comparison.prepare(configuration, tmp_path / name)
        trainings.clear()
        records = prepared.run(nothing, nothing, nothing)
        logits = {
            r["arm"]: dict(np.load(tmp_path / name / r["logits"]["file"]))
            for r in records
        }
        of_task = [sum(i == j for i, *_ in trainings) for j in (0, 1)]
        kept = {
            r["arm"]: {k: v for k, v in r.items() if k not in PROCESS} for r in records
        }
        return kept, logits, of_task

    return compared


def assert_same(one, other):
    assert one[0] == other[0]
    for arm, arrays in one[1].items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other[1][arm][name], arm)


def test_arms_that_begin_alike_train_the_first_task_once(compared, monkeypatch):
    shared = compared("shared", ALIKE)
    # One for the seven that begin alike, the other rate its own; WiSE-FT trains the
    # second task as plain training does.
    assert shared[2] == [2, 7]
    monkeypatch.setattr(sharing.Sharing, "of_run", nothing)
    alone = compared("alone", ALIKE)
    assert alone[2] == [8, 8]
    assert_same(shared, alone)


def test_one_fisher_serves_ewc_and_online_ewc(compared, trainings, monkeypatch):
    from lrdist_keras.training.evaluation import Evaluator

    asked, fisher = [], Evaluator.fisher
    monkeypatch.setattr(Evaluator, "fisher", lambda *a: asked.append(1) or fisher(*a))
    compared("out", ALIKE[1:3])
    assert len(asked) == 1


def test_a_shared_first_task_is_trained_once_a_seed(compared, tmp_path):
    arms = [
        *ALIKE[:2],
        '{name="pull", rate=1e-2, strategy="recadam", strength=10}',
        '{name="frozen", rate=1e-2, strategy="frozen"}',
    ]
    first = "first={rate=5e-3}"
    shared = compared("shared", arms, first)
    assert shared[2] == [1, 4]
    accuracies = {record["a1"] for record in shared[0].values()}
    assert len(accuracies) == 1
    assert not (tmp_path / "shared" / "shared").exists()  # nothing needs it any more


def test_what_a_killed_comparison_has_shared_is_used_again(compared, monkeypatch):
    first = "first={rate=5e-3}"
    whole = compared("whole", ALIKE[:3], first)
    append, count = comparison.append_run, []

    def killed(folder, record):
        append(folder, record)
        count.append(1)
        if len(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "append_run", killed)
    with pytest.raises(KeyboardInterrupt):
        compared("out", ALIKE[:3], first)
    again = compared("out", ALIKE[:3], first)
    assert again[2] == [0, 2]
    assert_same(whole, again)


def test_what_is_damaged_is_trained_again(compared, tmp_path, monkeypatch, capsys):
    whole = compared("whole", ALIKE[:2])
    append, count = comparison.append_run, []

    def damaged(folder, record):
        append(folder, record)
        count.append(1)
        if len(count) == 1:
            for path in (folder / "shared").rglob("weight_3.npy"):
                path.write_bytes(path.read_bytes()[:-4] + b"1234")

    monkeypatch.setattr(comparison, "append_run", damaged)
    found = compared("out", ALIKE[:2])
    assert found[2] == [2, 2] and "is damaged" in capsys.readouterr().err
    assert_same(whole, found)


@pytest.fixture(scope="module")
def trainer(tiny_preset):
    settings = TrainingSettings(
        batch_size=8, max_length=32, steps_per_call=2, curve_points=2, curve_examples=10
    )
    return SequentialTrainer(load_encoder(str(tiny_preset)), settings)


TASKS = [task(name, i, train=data(i, 30)) for i, name in enumerate("ab")]


def run(trainer, tasks, strategy="plain", shared=None, **settings):
    kept = []

    def keep(i, weights, heads):
        kept.append([np.array(w) for w in [*weights, *sum(heads, [])]])

    strategy = STRATEGIES[strategy](**settings)
    rates = llrd(3e-3, 0.9, trainer.scheme)
    observer = Observer(after_task=keep, shared=shared)
    return kept, trainer.run(tasks, rates, strategy, 0, observer=observer)


@pytest.mark.parametrize("strategy", ["plain", "ewc", "replay", "lwf", "sfa"])
def test_trained_cached_and_loaded_are_the_same_bits(trainer, tmp_path, strategy):
    """A first task that is trained in the run, taken from another, or loaded."""
    settings = {"examples_per_class": 3} if strategy == "replay" else {}
    rates = flat(5e-3, trainer.scheme)
    tasks = [replace(TASKS[0], shared_rates=rates), TASKS[1]]
    trained, found = run(trainer, tasks, strategy, **settings)
    cache = SharedResults(tmp_path, trainings=1, fishers=True)
    for _ in range(2):
        again, other = run(trainer, tasks, strategy, cache, **settings)
        assert_bits(trained, again)
        assert other.curves == found.curves
    count = len(trainer.encoder.weights)
    head = trained[0][count : count + 2]
    given = GivenModel("a model", trained[0][:count], head)
    loaded, other = run(
        trainer, [replace(TASKS[0], given=given), TASKS[1]], strategy, **settings
    )
    assert_bits(trained, loaded)
    assert other.curves == found.curves
    np.testing.assert_array_equal(other.accuracy, found.accuracy)


def assert_bits(one, other):
    for before, after in zip(one, other, strict=True):
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x, y)


def test_the_ends_of_a_curve_are_those_of_the_matrix(trainer):
    """With all examples in the curve its ends are a1 and p_o, and are not evaluated."""
    evaluated = []
    evaluate = trainer.evaluator.evaluate

    def counted(data, weights, head):
        evaluated.append(len(data))
        return evaluate(data, weights, head)

    trainer.evaluator.evaluate = counted
    try:
        _, found = run(trainer, TASKS)
    finally:
        del trainer.evaluator.evaluate
    (curve,) = found.curves.values()
    # Task a after a; in the middle of b on 10 examples; then a and b.
    assert evaluated == [24, 10, 24, 24]
    assert len(curve.steps) == 3


def test_lora_trains_no_shared_first_task(trainer):
    rates = flat(5e-3, trainer.scheme)
    tasks = [replace(TASKS[0], shared_rates=rates), TASKS[1]]
    with pytest.raises(InputError, match=r"lora.*leave out \[first\]"):
        run(trainer, tasks, "lora")


def test_a_later_task_cannot_be_given(trainer):
    given = GivenModel("x", trainer.encoder.weights, [])
    with pytest.raises(InputError, match="Only the first of several tasks"):
        run(trainer, [TASKS[0], replace(TASKS[1], given=given)])
    with pytest.raises(InputError, match="Only the first of several tasks"):
        run(trainer, [replace(TASKS[0], given=given)])


@pytest.mark.parametrize("strategy", ["ewc", "ewc_online", "replay", "joint"])
def test_a_strategy_that_needs_examples_says_so(trainer, strategy):
    nothing = data(0, 30)
    nothing = replace(
        nothing,
        ids=nothing.ids[:0],
        offsets=nothing.offsets[:1],
        second=nothing.second[:0],
        labels=nothing.labels[:0],
    )
    weights = [np.asarray(w) for w in trainer.encoder.weights]
    head = [np.zeros((trainer.encoder.width, 2), np.float32), np.zeros(2, np.float32)]
    first = replace(TASKS[0], train=nothing, given=GivenModel("x", weights, head))
    with pytest.raises(InputError, match=f"{strategy} needs the training.*give.*train"):
        run(trainer, [first, TASKS[1]], strategy)
    kept, _ = run(trainer, [first, TASKS[1]], "lwf")
    assert_bits([kept[0][: len(weights)]], [weights])
