"""A pooler between encoder and head: what is trained is what is deployed."""

import keras
import numpy as np
import pytest
from trainer_cases import data, task, trained

from lrdist_keras import LayerwiseOptimizer
from lrdist_keras.data.batches import buckets, training_steps
from lrdist_keras.distribution import flat, llrd
from lrdist_keras.errors import InputError
from lrdist_keras.models.classifier import hub_classifier
from lrdist_keras.models.encoder import load_encoder, new_head
from lrdist_keras.models.pooler import load_pooled
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.mlm_fisher import pretraining_fisher
from lrdist_keras.training.run import Purpose, TaskData, generator
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.trainer import SequentialTrainer

PLAIN = STRATEGIES["plain"]()
CONSTANT = {"warmup": 0.0, "schedule": "constant"}


@pytest.fixture(scope="module")
def encoder(tiny_preset):
    return load_pooled(str(tiny_preset))


@pytest.fixture(scope="module")
def trainer(encoder):
    settings = TrainingSettings(
        batch_size=8, max_length=32, steps_per_call=2, **CONSTANT
    )
    return SequentialTrainer(encoder, settings)


def test_the_group_head_has_what_kerashubs_classifier_has_in_it(encoder, trainer):
    width = encoder.width
    table = {name: count for name, _, count in trainer.group_table([3])}
    assert table["head"] == width * width + width + 3 * width + 3


def test_it_computes_what_kerashub_computes(tiny_preset, encoder):
    import keras_hub

    backbone = keras_hub.models.Backbone.from_preset(str(tiny_preset))
    batch = data(0, 6).arrays(np.arange(6), 40)
    inputs = {tensor.name: batch[tensor.name] for tensor in backbone.inputs}
    expected = np.asarray(backbone(inputs)["pooled_output"])
    found, _ = encoder.features(encoder.weights, encoder.state, batch, False)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)
    model = np.asarray(encoder.model(inputs))
    np.testing.assert_allclose(model, expected, rtol=1e-5, atol=1e-6)


def test_fit_on_the_exported_classifier_ends_at_the_same_weights(
    tiny_preset, encoder, trainer
):
    """The same batches and rates, once by the laboratory, once by Keras's `fit`."""
    train, seed = data(3, count=157, longest=33), 4
    rates = llrd(1e-3, 0.5, trainer.scheme)
    one = TaskData("a", train, train, 2, None, 1)
    found = trained(trainer, [one], rates, PLAIN, seed)[0]
    plan = training_steps(train, buckets(32), 8, 2, generator(seed, Purpose.ORDER, 0))
    batches = [train.arrays(row, call.length) for call in plan for row in call.indices]
    head = new_head(2, encoder.width, generator(seed, Purpose.HEAD, 0))
    classifier = hub_classifier(str(tiny_preset), encoder, encoder.weights, head)

    def stream():
        for batch in batches:
            real = batch["weights"] > 0
            names = [tensor.name for tensor in classifier.inputs]
            yield {name: batch[name][real] for name in names}, batch["labels"][real]

    # KerasHub's own `fit` takes no generator, and batches differ in length.
    model = keras.Model(classifier.input, classifier.output)
    optimizer = LayerwiseOptimizer.from_distribution(
        keras.optimizers.Adam, rates, model
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    model.fit(stream(), steps_per_epoch=len(batches), verbose=0, shuffle=False)
    paths = [v.path for v in encoder.model.trainable_variables]
    ours = dict(zip([*paths, "logits/kernel", "logits/bias"], found, strict=True))
    before = dict(zip(paths, encoder.weights, strict=True))
    for variable in classifier.trainable_variables:
        if variable.path.endswith("key/bias"):  # a gradient of zero but for rounding
            continue
        expected, path = np.asarray(variable.value), variable.path
        np.testing.assert_allclose(ours[path], expected, atol=2e-5, err_msg=path)
        if path.startswith("pooled_dense"):
            assert np.abs(expected - before[path]).max() > 1e-3


def test_a_pooler_trains_with_every_strategy(encoder, trainer):
    tasks = [task(name, i, train=data(i, 16)) for i, name in enumerate("ab")]
    pooler = encoder.weights[-2]
    for name in ("ewc", "lora", "frozen"):
        rates = flat(1e-2, trainer.scheme)
        weights = trained(trainer, tasks, rates, STRATEGIES[name]())[-1]
        moved = np.abs(weights[len(encoder.weights) - 2] - pooler).max()
        # A linear probe trains heads alone.
        assert (moved == 0) == (name == "frozen"), name


def test_the_fisher_of_masked_language_is_zero_above_the_tokens(encoder):
    found = pretraining_fisher(encoder, data(1, 12), 4, 32, 6)
    assert len(found.fisher) == len(encoder.weights)
    assert all(not np.asarray(f).any() for f in found.fisher[-2:])
    below = pretraining_fisher(encoder.below, data(1, 12), 4, 32, 6)
    for one, other in zip(found.fisher, below.fisher, strict=False):
        np.testing.assert_array_equal(one, other)


def test_a_pooler_that_is_not_in_the_checkpoint_is_new_and_always_the_same(tmp_path):
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.RobertaBackbone(20, 1, 2, 8, 16, max_sequence_length=16)
    backbone.save_to_preset(str(tmp_path / "roberta"))
    one, other = (load_pooled(str(tmp_path / "roberta")) for _ in range(2))
    np.testing.assert_array_equal(one.weights[-2], other.weights[-2])
    assert 0.015 < one.weights[-2].std() < 0.025 and not one.weights[-1].any()


def test_a_family_without_a_pooler(tmp_path):
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(20, 1, 2, 8, 16, max_sequence_length=16)
    backbone.save_to_preset(str(tmp_path / "gpt2"))
    with pytest.raises(InputError, match="model.pooler = true needs.*GPT2Backbone"):
        load_pooled(str(tmp_path / "gpt2"))


def test_frozen_groups_keep_their_bits_and_the_others_train_on(tiny_preset):
    """Freezing a group is a multiplier of 0, with less to compute backwards."""
    settings = TrainingSettings(
        batch_size=8, max_length=32, steps_per_call=2, **CONSTANT
    )
    plain = SequentialTrainer(load_encoder(str(tiny_preset)), settings)
    tasks = [task("a", 0, train=data(0, 40))]
    rates = flat(1e-2, plain.scheme)
    frozen = STRATEGIES["plain"](frozen=("embeddings", "encoder_1"))
    found = trained(plain, tasks, rates, frozen)[0]
    groups = [list(plain.groups)[i] for i in plain.step.group_of]
    for group, before, after in zip(groups, plain.encoder.weights, found, strict=False):
        same = np.array_equal(before, after)
        assert same == (group in ("embeddings", "encoder_1")), group
    # The same as rates so small that nothing moves, but for rounding.
    small = rates.rates | dict.fromkeys(["embeddings", "encoder_1"], 1e-30)
    still = type(rates)(rates.scheme, small)
    expected = trained(plain, tasks, still, PLAIN)[0]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_nothing_is_computed_backwards_below_the_lowest_trained_group(tiny_preset):
    import jax

    from lrdist_keras.training.frozen_groups import FrozenGroups
    from lrdist_keras.training.plan import Terms

    trainer = SequentialTrainer(load_encoder(str(tiny_preset)), TrainingSettings())
    step = trainer.step
    batch = data(0, 8).arrays(np.arange(8), 40)
    head = new_head(2, trainer.encoder.width, np.random.default_rng(0))
    model = list(trainer.encoder.weights), [head]

    def flops(terms):
        gradient = jax.jit(
            lambda m: jax.grad(step.loss, has_aux=True)(m, [], batch, terms)
        )
        return gradient.lower(model).compile().cost_analysis()["flops"]

    whole = flops(Terms())
    part = flops(Terms(frozen=FrozenGroups(("embeddings", "encoder_1"))))
    assert part < 0.8 * whole


def test_of_a_frozen_encoder_the_features_are_computed_once(tiny_preset, monkeypatch):
    """With the whole encoder frozen, as a probe, against a loop that computes them."""
    settings = TrainingSettings(
        batch_size=8, max_length=32, steps_per_call=2, curve_points=2, **CONSTANT
    )
    plain = SequentialTrainer(load_encoder(str(tiny_preset)), settings)
    tasks = [task(name, i, train=data(i, 40)) for i, name in enumerate("ab")]
    everything = tuple(name for name in plain.groups if name != "head")
    strategy = STRATEGIES["replay"](frozen=everything, examples_per_class=3)
    evaluated, evaluate = [], plain.evaluator.evaluate

    def counted(examples, weights, head):
        evaluated.append(len(examples))
        return evaluate(examples, weights, head)

    plain.evaluator.evaluate = counted
    rates = flat(1e-2, plain.scheme)
    once = trained(plain, tasks, rates, strategy)[-1]
    # Training and validation of a; b with 6 examples of a; a in the middle and at the
    # end of b, since its head is trained on, too; then b.
    assert evaluated == [40, 24, 46, 24, 24, 24]
    probe = trained(plain, tasks, rates, STRATEGIES["frozen"]())[0]
    kinds = {key[0] for key in plain.compiler._compiled}
    assert plain.step.train_steps not in kinds
    monkeypatch.setattr(plain.stages, "_sees_features", lambda *_: False)
    every = trained(plain, tasks, rates, strategy)[-1]
    count = len(plain.encoder.weights)
    for before, one, other in zip(plain.encoder.weights, once, every, strict=False):
        np.testing.assert_array_equal(one, before)
        np.testing.assert_array_equal(one, other)
    for one, other in zip(once[count:], every[count:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    again = trained(plain, tasks, rates, STRATEGIES["frozen"]())[0]
    for one, other in zip(probe, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["head", "encoder_9"])
def test_what_can_be_frozen(trainer, name):
    strategy = STRATEGIES["plain"](frozen=(name,))
    with pytest.raises(InputError, match=f"`frozen` may hold groups.*Received: {name}"):
        trainer.run([task("a", 0)], flat(1e-3, trainer.scheme), strategy, 0)
