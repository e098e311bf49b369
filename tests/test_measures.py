"""What a record holds beside the matrix, against the weights and logits of the run."""

import math
from dataclasses import replace

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef
from trainer_cases import data, task

from lrdist_keras.config import MeasureSettings, TrainingSettings
from lrdist_keras.data.batches import take
from lrdist_keras.data.sampling import stratified
from lrdist_keras.distribution import flat
from lrdist_keras.laboratory.drift import linear_cka, probe_accuracy
from lrdist_keras.laboratory.measures import Measures, of_evaluations
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.training.run import Observer
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.strategies.lora import Lora
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.trainer import SequentialTrainer

PLAIN = Plain()
TASKS = [
    task("a", 0, train_examples=24),
    task("b", 1, classes=3),
    task("c", 2),
]
SMALL = MeasureSettings(examples=10, probe_examples=20)
SOURCES = {"a": "glue/mrpc", "b": "files", "c": "glue/cola"}
SEED = 3


@pytest.fixture(scope="module")
def trainer(tiny_preset):
    settings = TrainingSettings(
        batch_size=8,
        max_length=32,
        steps_per_call=2,
        evaluation_batch_size=16,
        curve_points=0,
    )
    return SequentialTrainer(load_encoder(str(tiny_preset)), settings)


def measured(trainer, settings, tasks=TASKS, strategy=PLAIN, rate=1e-2):
    """Returns a run, its measures, and after each task copies of weights and heads."""
    measurement = Measures(trainer, settings).begin("a -> b", tasks, strategy, SEED)
    kept = []

    def after_task(i, weights, heads):
        measurement.after_task(i, weights, heads)
        kept.append(([np.array(w) for w in weights], [*map(copied, heads)]))

    def copied(head):
        return [np.array(w) for w in head]

    rates = flat(rate, trainer.scheme)
    observer = Observer(after_task=after_task)
    run = trainer.run(tasks, rates, strategy, SEED, observer=observer)
    return run, measurement.record(run), kept


@pytest.fixture(scope="module")
def whole(trainer):
    return measured(trainer, SMALL)


def features(encoder, weights, examples):
    """Vectors after each layer, by Keras's own call on a model with these weights."""
    for variable, value in zip(encoder.model.trainable_variables, weights, strict=True):
        variable.assign(value)
    layers = [encoder.model.get_layer(f"transformer_layer_{i}") for i in range(2)]
    model = keras.Model(encoder.model.input, [layer.output for layer in layers])
    arrays = examples.arrays(np.arange(len(examples)), 32)
    found = model({tensor.name: arrays[tensor.name] for tensor in model.inputs})
    return [np.asarray(x)[:, 0] for x in found]


def sample(examples, count):
    rows = stratified(examples.labels, count, np.random.default_rng(0))
    return take(examples, rows)


def test_transfer_is_that_of_new_heads_before_their_training(trainer, whole):
    run, record, kept = whole
    encoder, gains = trainer.encoder, []
    for j in (1, 2):
        held = sample(TASKS[j].validation, 10)
        # Until its training, the head is as it was drawn.
        kernel, bias = kept[j - 1][1][j]
        assert not np.array_equal(kernel, kept[j][1][j][0]) and not bias.any()
        found = [
            np.mean(
                np.argmax(features(encoder, w, held)[-1] @ kernel, 1) == held.labels
            )
            for w in (kept[j - 1][0], encoder.weights)
        ]
        stored = record["zero_shot"]
        here = [stored["after_previous"][j - 1], stored["pretrained"][j - 1]]
        assert here == pytest.approx(found)
        gains.append(found[0] - found[1])
    assert record["forward_transfer"] == pytest.approx(np.mean(gains))


def test_probes_are_of_the_features_after_each_task_and_at_the_end(trainer, whole):
    run, record, kept = whole
    expected = {"after": [], "final": []}
    for j, one in enumerate(TASKS[:2]):
        train = one.train
        if one.train_examples:
            # The subset that the run trained on: drawn by its seed for its task.
            rows = stratified(train.labels, 24, np.random.default_rng([SEED, 0, j]))
            train = take(train, rows)
        train = sample(train, 20)
        for moment, i in (("after", j), ("final", 2)):
            x, y = (
                features(trainer.encoder, kept[i][0], part)[-1]
                for part in (train, one.validation)
            )
            np.testing.assert_allclose(run.features[i, j], y, atol=1e-4)
            accuracy = probe_accuracy(x, train.labels, y, one.validation.labels)
            expected[moment].append(accuracy)
    # Rounding may turn one of 24 validation examples.
    for moment, values in expected.items():
        assert record["probe"][moment] == pytest.approx(values, abs=1 / 24 + 1e-9)
    assert record["probe_after"] == np.mean(record["probe"]["after"])
    assert record["probe_p_o"] == np.mean(record["probe"]["final"])


def test_similarity_is_that_of_the_first_tasks_sample(trainer, whole):
    _, record, kept = whole
    held = sample(TASKS[0].validation, 10)
    end, first, pretrained = (
        features(trainer.encoder, w, held)
        for w in (kept[2][0], kept[0][0], trainer.encoder.weights)
    )
    for name, before in (("pretrained", pretrained), ("after_first", first)):
        expected = [linear_cka(x, y) for x, y in zip(before, end, strict=True)]
        assert record["similarity"][name] == pytest.approx(expected, abs=1e-3)
        assert min(expected) < 0.999


def test_drift_is_the_relative_distance_of_each_groups_weights(trainer, whole):
    _, record, kept = whole
    paths = [v.path for v in trainer.encoder.model.trainable_variables]

    def distance(before, after, group):
        mine = [i for i, path in enumerate(paths) if group in path]
        assert mine
        joined = [np.concatenate([w[i].ravel() for i in mine]) for w in (before, after)]
        before, after = (x.astype(np.float64) for x in joined)
        return np.linalg.norm(after - before) / np.linalg.norm(before)

    names = {
        "embeddings": "embedding",
        "encoder_1": "transformer_layer_0",
        "encoder_2": "transformer_layer_1",
    }
    assert len(record["drift"]["pretrained"]) == 3
    for name, group in names.items():
        for after, found in zip(kept, record["drift"]["pretrained"], strict=True):
            expected = distance(trainer.encoder.weights, after[0], group)
            assert found[name] == pytest.approx(expected, rel=1e-5)
        found = record["drift"]["after_first"][name]
        expected = distance(kept[0][0], kept[2][0], group)
        assert found == pytest.approx(expected, rel=1e-5) and found > 0.01


def test_what_does_not_move_has_similarity_one_and_no_drift(trainer):
    _, record, _ = measured(trainer, SMALL, rate=1e-12)
    for values in record["similarity"].values():
        assert values == pytest.approx([1, 1], abs=1e-6)
    for drift in (*record["drift"]["pretrained"], record["drift"]["after_first"]):
        assert max(drift.values()) < 1e-6
    assert record["forward_transfer"] == 0
    assert record["probe"]["after"] == record["probe"]["final"]


def test_only_what_is_asked_for_is_measured(trainer):
    off = {"probe": False, "similarity": False, "drift": False}
    settings = MeasureSettings(forward_transfer=False, **off | {"drift": True})
    _, record, _ = measured(trainer, settings, TASKS[:2])
    assert set(record) == {"drift", "measuring_seconds"}
    settings = MeasureSettings(**off)
    _, record, _ = measured(trainer, settings, TASKS[:2])
    assert set(record) == {"zero_shot", "forward_transfer", "measuring_seconds"}


@pytest.mark.parametrize("strategy", ["joint", "single"])
def test_without_a_sequence_there_is_nothing_that_was_moved(trainer, strategy):
    chosen = STRATEGIES[strategy]()
    run, record, _ = measured(trainer, SMALL, TASKS[:2], chosen)
    assert set(record) == {"measuring_seconds"}
    record = of_evaluations(run, TASKS[:2], SOURCES, chosen)
    assert "backward_transfer" not in record and "task_forgetting" not in record
    # What such a run gave is its result after each task.
    assert record["average_accuracy"] == record["learning_accuracy"]
    assert record["task_metrics"]["after"] == record["task_metrics"]["final"]


def test_adapters_are_measured_as_the_weights_they_amount_to(trainer):
    _, record, kept = measured(trainer, SMALL, TASKS[:2], Lora(rank=2))
    assert record["drift"]["after_first"]["embeddings"] == 0
    assert record["drift"]["after_first"]["encoder_1"] > 0
    held = sample(TASKS[0].validation, 10)
    end = features(trainer.encoder, kept[1][0], held)
    first = features(trainer.encoder, kept[0][0], held)
    expected = [linear_cka(x, y) for x, y in zip(first, end, strict=True)]
    assert record["similarity"]["after_first"] == pytest.approx(expected, abs=1e-3)


def test_too_few_examples_for_a_probe_are_no_number(trainer):
    few = replace(TASKS[0], train=take(data(0), np.array([0, 1])), train_examples=None)
    _, record, _ = measured(trainer, SMALL, [few, TASKS[1]])
    assert math.isnan(record["probe"]["after"][0]) and math.isnan(record["probe_p_o"])


def test_evaluations_give_the_definitions(whole):
    rng, matrix, logits = np.random.default_rng(0), np.full((3, 3), np.nan), {}
    for i in range(3):
        for j, one in enumerate(TASKS[: i + 1]):
            logits[i, j] = rng.normal(size=(24, one.classes))
            right = logits[i, j].argmax(1) == one.validation.labels
            matrix[i, j] = np.mean(right)
    run = replace(whole[0], accuracy=matrix, logits=logits)
    record = of_evaluations(run, TASKS, SOURCES, PLAIN)
    r = run.accuracy
    assert record["average_accuracy"] == pytest.approx(
        (r[2, 0] + r[2, 1] + r[2, 2]) / 3
    )
    expected = (r[0, 0] + r[1, 1] + r[2, 2]) / 3
    assert record["learning_accuracy"] == pytest.approx(expected)
    expected = (r[2, 0] - r[0, 0] + r[2, 1] - r[1, 1]) / 2
    assert record["backward_transfer"] == pytest.approx(expected)
    expected = [max(r[0, 0], r[1, 0]) - r[2, 0], r[1, 1] - r[2, 1]]
    assert record["task_forgetting"] == pytest.approx(expected)
    for moment, after in (("after", (0, 1, 2)), ("final", (2, 2, 2))):
        mrpc, files, cola = record["task_metrics"][moment]
        predicted = [run.logits[i, j].argmax(1) for j, i in enumerate(after)]
        truth = [one.validation.labels for one in TASKS]
        assert mrpc == pytest.approx(
            {"f1": f1_score(truth[0], predicted[0]), "accuracy": r[after[0], 0]}
        )
        assert files == {"accuracy": r[after[1], 1]}
        assert cola == pytest.approx(
            {"matthews": matthews_corrcoef(truth[2], predicted[2])}
        )
        for j, i in enumerate(after):
            found = record["calibration_error"][moment][j]
            assert found == pytest.approx(calibration(run.logits[i, j], truth[j]))


def calibration(logits, labels):
    """Equation 3 of arXiv 1706.04599 bin by bin."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels
    total = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            gap = right[inside].mean() - confidence[inside].mean()
            total += inside.mean() * abs(gap)
    return total


def test_the_new_head_of_a_task_is_that_of_the_seed(trainer, whole):
    _, _, kept = whole
    expected = new_head(3, 8, np.random.default_rng([SEED, 1, 1]))
    np.testing.assert_array_equal(kept[0][1][1][0], expected[0])
