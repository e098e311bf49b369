"""Learning rates that a run finds from the Fisher of the tasks before."""

from functools import cache

import numpy as np
import pytest
from scipy.special import log_softmax
from trainer_cases import data, same, task, trained

from lrdist_keras.distribution import Distribution, flat
from lrdist_keras.fisher import FisherRates
from lrdist_keras.groups import partition
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training import measured_rates
from lrdist_keras.training.evaluation import Evaluator
from lrdist_keras.training.run import Observer
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.strategies.plain import Joint, Plain, Single
from lrdist_keras.training.strategies.probing import Frozen
from lrdist_keras.training.trainer import SequentialTrainer

PLAIN = Plain()
RULE = FisherRates(rescale=2e-3, head_rate=1e-2)
TASKS = [task("a", 0), task("b", 1), task("c", 2, classes=3)]
SETTINGS = TrainingSettings(
    batch_size=8,
    max_length=32,
    steps_per_call=2,
    evaluation_batch_size=16,
    curve_points=2,
    curve_examples=10,
)


@pytest.fixture(scope="module")
def make(tiny_preset):
    """Trainers by dropout, precision and faults, each made once."""

    @cache
    def make(dropout=0.0, precision="float32", faults=()):
        encoder = load_encoder(str(tiny_preset), dropout, precision)
        return SequentialTrainer(encoder, SETTINGS, compat=faults)

    return make


@pytest.fixture(scope="module")
def trainer(make):
    return make()


@pytest.fixture
def measured(monkeypatch):
    """What the rule is given in runs: arguments of each call, as copies."""
    calls = []
    rule = measured_rates.fisher_rates

    def noted(gradient, fisher, groups, scheme, **settings):
        arrays = [[np.array(x) for x in xs] for xs in (gradient, fisher)]
        calls.append((*arrays, groups, settings))
        return rule(gradient, fisher, groups, scheme, **settings)

    monkeypatch.setattr(measured_rates, "fisher_rates", noted)
    return calls


def rates(trainer, tasks=2, rule=RULE):
    return [flat(3e-3, trainer.scheme), *[rule] * (tasks - 1)]


# A BERT of two layers and two heads, in NumPy: arXiv 1810.04805 with KerasHub's GELU.


def normed(x, gamma, beta):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return centred / deviation * gamma + beta


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def features_of(weights, batch):
    """The last layer at each first token, [examples, width]."""
    tokens, positions, segments, gamma, beta, *rest = weights
    ids = batch["token_ids"]
    x = tokens[ids] + positions[: ids.shape[1]] + segments[batch["segment_ids"]]
    x = normed(x, gamma, beta)
    mask = batch["padding_mask"][:, None, None, :] != 0
    for layer in (rest[:16], rest[16:]):
        q, qb, k, kb, v, vb, o, ob, g1, b1, g2, b2, inner, ib, outer, outb = layer
        queries, keys, values = (
            np.einsum("btd,dnh->bnth", x, kernel) + bias[:, None, :]
            for kernel, bias in ((q, qb), (k, kb), (v, vb))
        )
        scores = np.einsum("bnth,bnsh->bnts", queries, keys) / np.sqrt(q.shape[-1])
        powers = np.where(mask, np.exp(scores - scores.real.max(-1, keepdims=True)), 0)
        attention = powers / powers.sum(-1, keepdims=True)
        mixed = np.einsum("bnts,bnsh->btnh", attention, values)
        x = normed(x + np.einsum("btnh,nhd->btd", mixed, o) + ob, g1, b1)
        x = normed(x + gelu(x @ inner + ib) @ outer + outb, g2, b2)
    return x[:, 0]


def log_likelihoods(weights, head, batch):
    logits = features_of(weights, batch) @ head[0] + head[1]
    logits = logits - logits.real.max(axis=1, keepdims=True)
    found = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found[np.arange(len(found)), batch["labels"]]


def derivatives(weights, head, encoded):
    """d log p(label) / d weight of each example, float64, [examples, *shape].

    By the complex step: the derivative is the imaginary part of f(w + ih) / h, without
    a difference, and so exact to rounding.
    """
    batch = encoded.arrays(np.arange(len(encoded)), int(encoded.lengths.max()))
    values = [np.array(w, np.complex128) for w in weights]
    head = [np.asarray(w, np.float64) for w in head]
    found = []
    for w in values:
        of_weight = np.zeros((len(encoded), *w.shape))
        for index in np.ndindex(*w.shape):
            if w is values[0] and index[0] not in batch["token_ids"]:
                continue  # the embedding of a token that does not occur
            w[index] += 1e-30j
            of_weight[(slice(None), *index)] = (
                log_likelihoods(values, head, batch).imag / 1e-30
            )
            w[index] = w[index].real
        found.append(of_weight)
    return found


def small(name, seed):
    examples = data(seed, count=10, shortest=4, longest=8)
    return task(name, seed, train=examples, validation=examples)


def by_hand(trainer, gradient, fisher, rule):
    """The rule in plain products, of all weights in float64."""
    paths = [v.path for v in trainer.encoder.model.trainable_variables]
    names = list(trainer.groups)
    group_of = [names[i] for i in partition(paths, trainer.groups, True)]
    ratios = []
    for name in trainer.scheme.names[:-1]:
        mine = [i for i, group in enumerate(group_of) if group == name]
        g = np.concatenate([np.ravel(gradient[i]) for i in mine])
        f = np.concatenate([np.ravel(fisher[i]) for i in mine])
        ratios.append(np.sqrt((g**2).mean()) / f.mean())
    ratios = np.array(ratios) / np.prod(ratios) ** (1 / len(ratios))
    shape = np.clip(ratios, 1 / 30, 30) ** (-rule.tau if rule.inverse else rule.tau)
    return rule.rescale * shape / np.prod(shape) ** (1 / len(shape))


@pytest.fixture(scope="module")
def float64_parts(trainer):
    """A run whose encoder stands still, and its Fisher and gradient in float64.

    The first task trains its head alone, and the second cannot but probe its own on the
    pretrained encoder, which the strategy `frozen` does too.
    """
    tasks = [small("a", 0), small("b", 1)]
    still = flat(1e-30, trainer.scheme)
    first = Distribution(trainer.scheme, {**still.rates, "head": 1e-2})
    last = trained(trainer, tasks, [first, flat(1e-2, trainer.scheme)], Frozen())[-1]
    heads = last[len(trainer.encoder.weights) :]
    of_a = derivatives(trainer.encoder.weights, heads[:2], tasks[0].train)
    of_b = derivatives(trainer.encoder.weights, heads[2:], tasks[1].train)
    fisher = [(x**2).mean(axis=0) for x in of_a]
    gradient = [-x.mean(axis=0) for x in of_b]
    return tasks, first, gradient, fisher


@pytest.mark.parametrize("inverse", [False, True])
def test_the_rates_of_a_run_are_the_formula_in_float64(
    trainer, float64_parts, measured, inverse
):
    tasks, first, gradient, fisher = float64_parts
    rule = FisherRates(2e-3, 1e-2, inverse=inverse)
    run = trainer.run(tasks, [first, rule], PLAIN, seed=0)
    ((found_gradient, found_fisher, *_),) = measured
    for found, expected in ((found_gradient, gradient), (found_fisher, fisher)):
        for a, b, v in zip(
            found, expected, trainer.encoder.model.trainable_variables, strict=True
        ):
            limit = 1e-3 * np.abs(b).max() + 1e-7 * max(
                np.abs(x).max() for x in expected
            )
            np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=v.path)
    expected = by_hand(trainer, gradient, fisher, rule)
    # float32 leaves 1e-5 of a gradient, and the probe as much of its head.
    np.testing.assert_allclose(run.rates[1].values[:-1], expected, rtol=1e-3)
    assert run.rates[1].rates["head"] == 1e-2
    mean = np.exp(np.mean(np.log(run.rates[1].values[:-1])))
    assert mean == pytest.approx(2e-3, rel=1e-9)
    assert run.rates[0] is first


def test_the_average_gradient_is_that_of_the_mean_loss(trainer):
    # Batches of 8 from 36 examples of two row lengths, the last ones not full.
    mixed = data(5, count=36, shortest=3, longest=31)
    rng = np.random.default_rng(1)
    head = [rng.normal(size=(8, 2)).astype(np.float32), np.zeros(2, np.float32)]
    weights = trainer.encoder.weights
    found = trainer.evaluator.gradient(mixed, weights, head)
    direction = [rng.normal(size=w.shape) for w in weights]
    values = [w + 1e-30j * d for w, d in zip(weights, direction, strict=True)]
    batch = mixed.arrays(np.arange(36), int(mixed.lengths.max()))
    likelihoods = log_likelihoods(values, [x.astype(float) for x in head], batch)
    along = sum(
        (np.asarray(f, np.float64) * d).sum()
        for f, d in zip(found, direction, strict=True)
    )
    assert along == pytest.approx(-likelihoods.imag.mean() / 1e-30, rel=1e-4)
    # The independent forward pass is that of the model.
    logits = features_of(weights, batch) @ head[0] + head[1]
    expected = log_softmax(logits, axis=1)[np.arange(36), batch["labels"]]
    np.testing.assert_allclose(likelihoods.real, expected, rtol=1e-6)


# Those whose trainings differ in kind; each compiles programs of its own.
QUICK = {"plain", "lp_ft", "ewc", "replay", "lwf", "wise_ft", "lora"}
SEQUENTIAL = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, strategy in STRATEGIES.items()
    if strategy.trains_a_sequence
]
SETTINGS_OF = {"recadam": {"strength": 10.0}, "ewc_pretraining": {"raw_text": "given"}}


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_a_run_that_is_given_the_rates_that_were_found_has_the_same_bits(make, name):
    """With dropout, whose seeds the probe must not use up."""
    trainer = make(dropout=0.1)
    strategy = STRATEGIES[name](**SETTINGS_OF.get(name, {})).prepared(
        lambda *_: [np.ones_like(w) for w in trainer.encoder.weights]
    )
    tasks = TASKS[:2]
    run = trainer.run(tasks, rates(trainer), strategy, seed=1)
    again = trainer.run(tasks, run.rates, strategy, seed=1)
    assert same(run, again)
    assert run.curves == again.curves
    assert again.rates == run.rates
    values = run.rates[1].values
    assert np.isfinite(values).all() and values[-1] == RULE.head_rate
    assert len(set(values[:-1])) > 1
    flat_run = trainer.run(tasks, flat(3e-3, trainer.scheme), strategy, seed=1)
    assert np.array_equal(run.logits[0, 0], flat_run.logits[0, 0])


def test_weights_and_heads_too_and_moments_that_go_on(make):
    trainer = make(faults=("carry_moments",))
    tasks = TASKS[:2]
    found = trained(trainer, tasks, rates(trainer), PLAIN)
    run = trainer.run(tasks, rates(trainer), PLAIN, seed=0)
    given = trained(trainer, tasks, run.rates, PLAIN)
    for one, two in zip(found, given, strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_same_seed_finds_the_same_rates(trainer):
    one, again, other = (
        trainer.run(TASKS[:2], rates(trainer), PLAIN, seed) for seed in (0, 0, 1)
    )
    assert one.rates == again.rates and same(one, again)
    assert one.rates != other.rates


def test_the_gradient_is_by_a_probed_head_and_training_starts_from_the_drawn_one(
    trainer, monkeypatch
):
    asked = []
    gradient = Evaluator.gradient

    def noted(self, examples, weights, head):
        asked.append([np.array(w) for w in [*weights, *head]])
        return gradient(self, examples, weights, head)

    monkeypatch.setattr(Evaluator, "gradient", noted)
    still = flat(1e-30, trainer.scheme)
    rule = FisherRates(rescale=1e-30, head_rate=1e-2)
    after_a, _ = trained(trainer, TASKS[:2], [still, rule], PLAIN)
    frozen = trained(trainer, TASKS[:2], [still, flat(1e-2, trainer.scheme)], Frozen())
    count = len(trainer.encoder.weights)
    for a, b in zip(asked[0][:count], after_a[:count], strict=True):
        np.testing.assert_array_equal(a, b)
    drawn, probed = after_a[-2:], frozen[-1][-2:]
    np.testing.assert_allclose(asked[0][-2], probed[0], atol=1e-6)
    assert np.abs(drawn[0] - probed[0]).max() > 1e-3
    rule = FisherRates(rescale=1e-30, head_rate=1e-30)
    _, after_b = trained(trainer, TASKS[:2], [still, rule], PLAIN)
    np.testing.assert_array_equal(after_b[-2], drawn[0])


def test_the_fisher_is_the_mean_of_those_of_all_earlier_tasks(trainer, measured):
    after = trained(trainer, TASKS, rates(trainer, 3), PLAIN)
    count = len(trainer.encoder.weights)
    fishers = [
        trainer.fisher(
            TASKS[i].train,
            after[i][:count],
            after[i][count + 2 * i : count + 2 * i + 2],
        )
        for i in range(2)
    ]
    (_, of_first, *_), (_, of_both, *_) = measured
    for a, b, first, both in zip(*fishers, of_first, of_both, strict=True):
        np.testing.assert_array_equal(first, a)
        np.testing.assert_allclose(both, (np.array(a) + np.array(b)) / 2, rtol=1e-6)
        assert both.dtype == np.float32


def test_later_tasks_may_have_rates_of_either_kind(trainer):
    given = flat(1e-3, trainer.scheme)
    run = trainer.run(TASKS, [given, given, RULE], PLAIN, seed=0)
    assert run.rates[:2] == (given, given)
    assert run.rates[2].provenance["rule"] == "fisher"


def test_a_first_task_is_required(trainer):
    given = flat(1e-3, trainer.scheme)
    untrained = Observer(pytest.fail, pytest.fail)
    for tasks, asked, strategy, message in [
        (TASKS[:1], RULE, PLAIN, "a first task is required.*task 1 of 1"),
        (TASKS[:2], RULE, PLAIN, "a first task is required.*task 1 of 2"),
        (TASKS[:2], [RULE, given], PLAIN, "a first task is required.*task 1 of 2"),
        (TASKS[:2], [given, RULE], Joint(), "task is required.*task 2 of 2, and a str"),
        (TASKS[:2], [given, RULE], Single(), "task is required.*trains no sequence"),
    ]:
        with pytest.raises(ValueError, match=message):
            trainer.check(tasks, asked, strategy, 0)
        with pytest.raises(ValueError, match=message):
            trainer.run(tasks, asked, strategy, 0, observer=untrained)


def test_recadam_is_checked_against_the_largest_rate_that_can_be_found(trainer):
    strategy = STRATEGIES["recadam"](strength=100.0)
    given = flat(1e-3, trainer.scheme)
    trainer.check(TASKS[:2], [given, FisherRates(3e-4, 1e-3)], strategy, 0)
    with pytest.raises(ValueError, match="overshoots its anchor.*Received: 1.2"):
        trainer.check(TASKS[:2], [given, FisherRates(4e-4, 1e-3)], strategy, 0)


def test_a_run_that_diverged_has_rates_and_no_error(trainer):
    run = trainer.run(TASKS[:2], [flat(1e38, trainer.scheme), RULE], PLAIN, seed=0)
    assert run.diverged
    assert set(run.rates[1].values[:-1]) == {RULE.rescale}
    assert run.rates[1].rates["head"] == RULE.head_rate
    assert run.rates[1].provenance["unmeasured"] == "the run had diverged"


def test_a_budget_shortens_the_probe_with_its_task(trainer):
    short = trainer.run(TASKS[:2], rates(trainer), PLAIN, seed=0, budget=0.5)
    assert short.rates != trainer.run(TASKS[:2], rates(trainer), PLAIN, 0).rates
    steps = []
    observer = Observer(steps.append)
    trainer.run(TASKS[:2], rates(trainer), PLAIN, seed=0, observer=observer)
    assert sum(steps) == trainer.steps(TASKS[:2])  # the probe is none of them


def test_rates_are_found_in_bfloat16(make, measured):
    trainer = make(precision="bfloat16")
    run = trainer.run(TASKS[:2], rates(trainer), PLAIN, seed=0)
    assert np.isfinite(run.rates[1].values).all()
    ((gradient, fisher, *_),) = measured
    assert {x.dtype for x in [*gradient, *fisher]} == {np.dtype(np.float32)}
