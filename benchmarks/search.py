"""Searches for ten learning rates on closed-form objectives, with equal budgets.

    python benchmarks/search.py [--seeds 20] [--budget 20] [--slow-seeds 5]
        [--samplers random,hyperband,...] [--objectives bowl,ripples,two_of_ten]
        [--again ours] [--out FILE.json]

Needs `pip install keras-tuner scikit-learn optuna`, and for BOHB `pip install
statsmodels dill sortedcontainers` and `pip install --no-deps syne-tune` (its remaining
dependency, xgboost, is of another searcher). Runs already in FILE.json are not
repeated; `--again` names the samplers whose runs are dropped first.

The unit of the budget is a full run. Hyperband, Optuna and BOHB pay a continued trial
only for what it adds, as if it went on from its weights; ours pays it from the start.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import scipy.stats
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lrdist_keras._storage import write_text

DIMENSIONS = 10
LOWEST, HIGHEST = 1e-7, 1e-3
EPOCHS = (1, 3, 9)  # the resource levels of every Hyperband: 1/9, 1/3, 1 full run
TOP, FLOOR = 1.8, 1.0  # rewards: sums of two accuracies at the optimum, and diverged
NOISE = 0.02  # standard deviation of a full run's reward; grows as 1 / sqrt(budget)
LAG = 0.1  # reward that a run lacks for each division of its budget by three
DROP = 0.01  # width of the sigmoid of divergence, in x
# Largest and smallest curvature of the bowl, amplitude and number of cosine ripples.
SHAPES = {
    "bowl": (1.6, 0.16, 0.0, 0),
    "ripples": (1.6, 0.16, 0.02, 3),
    "two_of_ten": (6.0, 4.0, 0.0, 0),
}
RESULT = Path(__file__).parent / "results" / "search.json"
PACKAGES = "keras-tuner scikit-learn scipy numpy optuna syne-tune statsmodels".split()


@dataclass(frozen=True)
class Objective:
    """A reward as a function of ten rates and the fraction of a full run.

    With x = (log10 rates + 7) / 4, d = x - optimum, s = shift * log3(1 / budget) and

        q = sum(curvature * (d - s)^2 + ripple * (1 - cos(2 pi waves d))),

    it is FLOOR + (TOP - FLOOR) * exp(-q / (TOP - FLOOR)) * prod(sigmoid((edge - x) /
    DROP)) - LAG * log3(1 / budget) + noise, products and sums over the dimensions that
    matter. Its maximum at a full budget is TOP, to 1e-6.

    Args:
        optimum: x of the best rates of a full run, shape [10].
        curvature: Curvature at the optimum, 0 where a rate does not matter, shape [10].
        edge: x above which training diverges, shape [10].
        shift: Distance by which larger rates look better at a third, shape [10].
        ripple: Amplitude of the ripples.
        waves: Ripples in the range of x.
    """

    optimum: np.ndarray
    curvature: np.ndarray
    edge: np.ndarray
    shift: np.ndarray
    ripple: float
    waves: int

    def mean(self, rates: np.ndarray, budget: float) -> float:
        """Returns the reward without noise."""
        x = (np.log10(rates) + 7) / 4
        thirds = np.log(1 / budget) / np.log(3)
        d = x - self.optimum
        bowl = self.curvature * (d - self.shift * thirds) ** 2
        waves = self.ripple * (1 - np.cos(2 * np.pi * self.waves * d))
        matters = self.curvature > 0
        loss = np.sum((bowl + waves)[matters])
        drops = (1 + np.tanh((self.edge - x) / (2 * DROP))) / 2
        height = (TOP - FLOOR) * np.exp(-loss / (TOP - FLOOR))
        return float(FLOOR + height * np.prod(drops[matters]) - LAG * thirds)

    def true(self, rates: np.ndarray) -> float:
        """Returns the reward of a full run without noise."""
        return self.mean(rates, 1.0)

    def __call__(
        self, rates: np.ndarray, budget: float, rng: np.random.Generator
    ) -> float:
        """Returns the reward of one run."""
        noise = NOISE / np.sqrt(budget) * rng.standard_normal()
        return self.mean(rates, budget) + float(noise)


def make_objective(shape: str, seed: int) -> Objective:
    """Draws where the optimum lies and which dimensions matter most."""
    rng = np.random.default_rng([seed, *shape.encode()])
    largest, smallest, ripple, waves = SHAPES[shape]
    curvature = np.geomspace(largest, smallest, DIMENSIONS)
    if shape == "two_of_ten":
        curvature = np.array([largest, smallest] + [0.0] * (DIMENSIONS - 2))
    return Objective(
        optimum=rng.uniform(0.3, 0.7, DIMENSIONS),
        curvature=rng.permutation(curvature),
        edge=rng.uniform(0.88, 0.98, DIMENSIONS),
        shift=rng.uniform(0.05, 0.075, DIMENSIONS),
        ripple=ripple,
        waves=waves,
    )


@dataclass
class Account:
    """What a search has evaluated and spent.

    Args:
        objective: The objective.
        budget: Full runs that the search may spend.
        rng: Source of the noise.
    """

    objective: Objective
    budget: float
    rng: np.random.Generator
    spent: float = 0.0
    records: list[tuple[np.ndarray, float, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    resumed: float = field(default_factory=time.perf_counter)

    def affords(self, epochs: int, done: int = 0) -> bool:
        """Whether `epochs` of nine epochs, of which `done` are paid, can be paid."""
        return self.spent + (epochs - done) / EPOCHS[-1] <= self.budget + 1e-9

    def run(self, rates: np.ndarray, epochs: int = EPOCHS[-1], done: int = 0) -> float:
        """Pays for a run and returns its reward."""
        if not self.affords(epochs, done):
            raise RuntimeError(f"The budget of {self.budget} full runs is spent.")
        elapsed = time.perf_counter() - self.resumed
        if done:
            self.seconds[-1] += elapsed
        else:
            self.seconds.append(elapsed)
        budget = epochs / EPOCHS[-1]
        reward = self.objective(rates, budget, self.rng)
        self.spent += (epochs - done) / EPOCHS[-1]
        self.records.append((rates, budget, reward))
        self.resumed = time.perf_counter()
        return reward

    def best(self) -> np.ndarray:
        """Returns the rates with the best reward among those of the largest budget."""
        return max(self.records, key=lambda record: record[1:])[0]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        chosen: The rates that it recommends, shape [10].
        records: Rates, fraction of a full run and reward of each evaluation.
        seconds: Time that the sampler took for each trial that it started anew.
        spent: Full runs that it paid for.
    """

    chosen: np.ndarray
    records: list[tuple[np.ndarray, float, float]]
    seconds: list[float]
    spent: float


def open_account(objective: Objective, budget: float, seed: int) -> Account:
    return Account(objective, budget, np.random.default_rng([seed, 1]))


def result(account: Account, chosen: np.ndarray | None = None) -> SearchResult:
    chosen = account.best() if chosen is None else chosen
    return SearchResult(chosen, account.records, account.seconds, account.spent)


def sampler_seed(seed: int) -> int:
    # Keras Tuner replaces a zero, and counts up from its seed with every value that it
    # draws: neighbouring seeds would draw the same values, one dimension further.
    return int(np.random.SeedSequence([seed, 2]).generate_state(1)[0] // 2 + 1)


def random_search(objective: Objective, budget: float, seed: int) -> SearchResult:
    account = open_account(objective, budget, seed)
    rng = np.random.default_rng(sampler_seed(seed))
    low, high = np.log10([LOWEST, HIGHEST])
    while account.affords(EPOCHS[-1]):
        account.run(10 ** rng.uniform(low, high, DIMENSIONS))
    return result(account)


def names() -> list[str]:
    return [f"rate_{i}" for i in range(DIMENSIONS)]


def rates_of(values: dict[str, Any]) -> np.ndarray:
    return np.array([values[name] for name in names()])


def tuner_arguments(seed: int) -> dict[str, Any]:
    import keras_tuner

    space = keras_tuner.HyperParameters()
    for name in names():
        space.Float(name, LOWEST, HIGHEST, sampling="log")
    return {
        "objective": keras_tuner.Objective("reward", "max"),
        "hyperparameters": space,
        "seed": sampler_seed(seed),
    }


def drive(oracle: Any, account: Account, *, continues: bool) -> None:
    """Runs the trials of an oracle of Keras Tuner until it stops or is out of budget.

    Args:
        oracle: The oracle.
        account: Pays for the trials.
        continues: Whether promoted trials go on from their weights.
    """
    oracle.verbose = 0
    with tempfile.TemporaryDirectory() as folder:
        oracle._set_project_dir(folder, "search")
        while (trial := oracle.create_trial("tuner")).status == "RUNNING":
            values = trial.hyperparameters.values
            epochs = values.get("tuner/epochs", EPOCHS[-1])
            done = values.get("tuner/initial_epoch", 0) if continues else 0
            if continues and not account.affords(epochs, done):
                return
            reward = account.run(rates_of(values), epochs, done)
            oracle.update_trial(trial.trial_id, {"reward": reward})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
        if trial.status != "STOPPED":
            raise RuntimeError(f"The oracle answered {trial.status} to a lone worker.")


def hyperband(objective: Objective, budget: float, seed: int) -> SearchResult:
    from keras_tuner.oracles import HyperbandOracle

    account = open_account(objective, budget, seed)
    oracle = HyperbandOracle(
        max_epochs=EPOCHS[-1],
        factor=3,
        hyperband_iterations=1000,
        **tuner_arguments(seed),
    )
    drive(oracle, account, continues=True)
    return result(account)


def bayesian(objective: Objective, budget: float, seed: int) -> SearchResult:
    from keras_tuner.oracles import BayesianOptimizationOracle

    account = open_account(objective, budget, seed)
    oracle = BayesianOptimizationOracle(
        max_trials=int(budget),
        # Its default, three per dimension, would leave a search of 20 runs random.
        num_initial_points=min(DIMENSIONS, int(budget) // 2),
        **tuner_arguments(seed),
    )
    drive(oracle, account, continues=False)
    return result(account)


def ours(
    objective: Objective, budget: float, seed: int, model: Any = "joint"
) -> SearchResult:
    from lrdist_keras.search.tuner import BayesianHyperbandOracle

    account = open_account(objective, budget, seed)
    oracle = BayesianHyperbandOracle(
        max_epochs=EPOCHS[-1],
        factor=3,
        hyperband_iterations=1000,
        max_budget=budget,
        model=model,
        **tuner_arguments(seed),
    )
    drive(oracle, account, continues=False)
    return result(account, rates_of(oracle.best_values()))


def optuna(objective: Objective, budget: float, seed: int) -> SearchResult:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    account = open_account(objective, budget, seed)
    rate = optuna.distributions.FloatDistribution(LOWEST, HIGHEST, log=True)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=sampler_seed(seed)),
        pruner=optuna.pruners.HyperbandPruner(1, EPOCHS[-1], 3),
        study_name=f"search {seed}",  # the pruner draws the brackets from it
    )
    while account.affords(EPOCHS[0]):
        trial = study.ask(dict.fromkeys(names(), rate))
        done, state = 0, optuna.trial.TrialState.COMPLETE
        for epochs in EPOCHS:
            if not account.affords(epochs, done):
                return result(account)
            reward = account.run(rates_of(trial.params), epochs, done)
            trial.report(reward, epochs)
            done = epochs
            if epochs < EPOCHS[-1] and trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        complete = state == optuna.trial.TrialState.COMPLETE
        study.tell(trial, reward if complete else None, state)
    return result(account)


def bohb(objective: Objective, budget: float, seed: int) -> SearchResult:
    from syne_tune.backend.trial_status import Trial
    from syne_tune.config_space import uniform
    from syne_tune.optimizer.baselines import BOHB
    from syne_tune.optimizer.scheduler import SchedulerDecision

    account = open_account(objective, budget, seed)
    # It draws configurations from the global generator, too. Its density estimate knows
    # no log scale: it is given the exponents. One bracket is its default, and does
    # better here than three. Its default least number of points, 10, is one too few for
    # its own density estimate, which would begin after 74 trials, not after 22.
    np.random.seed(sampler_seed(seed))
    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    exponent = uniform(*np.log10([LOWEST, HIGHEST]).tolist())
    scheduler = BOHB(
        dict.fromkeys(names(), exponent),
        metric="reward",
        time_attr="epochs",
        max_t=EPOCHS[-1],
        do_minimize=False,
        random_seed=sampler_seed(seed),
        num_min_data_points=DIMENSIONS + 1,
    )
    while account.affords(EPOCHS[0]):
        config = scheduler.suggest().config
        trial = Trial(len(account.records), config, datetime.now())
        scheduler.on_trial_add(trial)
        done, rates = 0, 10 ** rates_of(config)
        for epochs in EPOCHS:
            if not account.affords(epochs, done):
                return result(account)
            report = {"reward": account.run(rates, epochs, done), "epochs": epochs}
            done = epochs
            if scheduler.on_trial_result(trial, report) == SchedulerDecision.STOP:
                break
        scheduler.on_trial_remove(trial)
    return result(account)


SAMPLERS: dict[str, Callable[[Objective, float, int], SearchResult]] = {
    "random": random_search,
    "hyperband": hyperband,
    "bayesian": bayesian,
    "optuna": optuna,
    "bohb": bohb,
    "highest": partial(ours, model="highest"),
    "ours": ours,
}


def measure(shape: str, sampler: str, seed: int, budget: float) -> dict[str, Any]:
    objective = make_objective(shape, seed)
    found = SAMPLERS[sampler](objective, budget, seed)
    return {
        "objective": shape,
        "sampler": sampler,
        "seed": seed,
        "regret": TOP - objective.true(found.chosen),
        "spent": found.spent,
        "evaluations": len(found.records),
        "full_runs": sum(fraction == 1 for _, fraction, _ in found.records),
        "seconds_median": float(np.median(found.seconds)),
        "seconds_max": max(found.seconds),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def configuration(budget: float) -> dict[str, Any]:
    return {
        "budget_full_runs": budget,
        "dimensions": DIMENSIONS,
        "rates": [LOWEST, HIGHEST],
        "epochs": list(EPOCHS),
        "top": TOP,
        "floor": FLOOR,
        "noise": NOISE,
        "lag": LAG,
        "drop": DROP,
        "shapes": {name: list(shape) for name, shape in SHAPES.items()},
    }


def load(path: Path, budget: float, again: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["configuration"] != configuration(budget):
        raise SystemExit(
            f"{path} must hold runs of one configuration. Received another one; "
            "write to another file with --out, or remove this one."
        )
    return [run for run in stored["runs"] if run["sampler"] not in again]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval of Student's t, None for one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def mean_of(values: list[float]) -> Mean:
    mean = float(np.mean(values))
    if len(values) < 2:
        return Mean(mean, None, None, len(values))
    quantile = scipy.stats.t.ppf(0.975, len(values) - 1)
    half = float(quantile * scipy.stats.sem(values))
    return Mean(mean, mean - half, mean + half, len(values))


def regrets(
    runs: list[dict[str, Any]], shapes: list[str], sampler: str
) -> dict[int, float]:
    """Returns the mean regret per seed, of the seeds that have run on all shapes."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run["sampler"] == sampler and run["objective"] in shapes:
            found.setdefault(run["seed"], []).append(run["regret"])
    return {k: float(np.mean(v)) for k, v in found.items() if len(v) == len(shapes)}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    shapes = [s for s in SHAPES if any(run["objective"] == s for run in runs)]
    summary: dict[str, Any] = {}
    for sampler in SAMPLERS:
        own = [run for run in runs if run["sampler"] == sampler]
        if not own:
            continue
        entry: dict[str, Any] = {
            "seconds_median": float(np.median([run["seconds_median"] for run in own])),
            "seconds_max": max(run["seconds_max"] for run in own),
            "regret": {},
            "regret_minus_ours": {},
        }
        for name in [*shapes, "all"]:
            chosen = shapes if name == "all" else [name]
            mine, base = regrets(runs, chosen, sampler), regrets(runs, chosen, "ours")
            if mine:
                entry["regret"][name] = asdict(mean_of(list(mine.values())))
            pairs = [mine[seed] - base[seed] for seed in sorted(mine) if seed in base]
            if pairs and sampler != "ours":
                entry["regret_minus_ours"][name] = asdict(mean_of(pairs))
        summary[sampler] = entry
    return summary


def save(path: Path, runs: list[dict[str, Any]], budget: float) -> None:
    order = {name: i for i, name in enumerate(SAMPLERS)}
    runs = sorted(
        runs, key=lambda run: (run["objective"], order[run["sampler"]], run["seed"])
    )
    content = {
        "what": "simple regret of searches for ten learning rates, equal budgets",
        "versions": versions(),
        "device": f"{os.cpu_count()} cores",
        "configuration": configuration(budget),
        "summary": summarize(runs),
        "runs": runs,
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def show(runs: list[dict[str, Any]]) -> None:
    summary = summarize(runs)
    columns = [*SHAPES, "all"]
    for key, title in [
        ("regret", "Mean simple regret [95 % interval]"),
        ("regret_minus_ours", "Regret minus ours, paired by seed [95 % interval]"),
    ]:
        if not any(entry[key] for entry in summary.values()):
            continue
        table = Table("sampler", *columns, "seeds", title=title)
        for sampler, entry in summary.items():
            cells = [entry[key].get(name) for name in columns]
            if any(cells):
                seeds = max(cell["seeds"] for cell in cells if cell)
                table.add_row(sampler, *map(cell_text, cells), str(seeds))
        Console().print(table)
    for sampler, entry in summary.items():
        median, largest = entry["seconds_median"], entry["seconds_max"]
        print(f"{sampler}: {median:.4f} s per new trial, {largest:.2f} s at most")


def cell_text(cell: dict[str, Any] | None) -> str:
    if not cell:
        return ""
    if cell["low"] is None:
        return f"{cell['mean']:.3f}"
    return f"{cell['mean']:.3f}\n\\[{cell['low']:.3f}, {cell['high']:.3f}]"


def choice(allowed: dict[str, Any]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in allowed]:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(allowed)}. Received: {', '.join(unknown)}"
            )
        return chosen

    return parse


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--slow-seeds", type=int, default=5, help="of `bayesian`")
    parser.add_argument("--budget", type=float, default=20, help="in full runs")
    parser.add_argument("--samplers", type=choice(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--objectives", type=choice(SHAPES), default=list(SHAPES))
    parser.add_argument("--again", type=choice(SAMPLERS), default=[])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.budget < 2:
        parser.error(f"`--budget` must be at least 2. Received: {arguments.budget}")
    return arguments


def main() -> None:
    arguments = parse()
    budget = arguments.budget
    runs = load(arguments.out, budget, arguments.again)
    present = {(run["objective"], run["sampler"], run["seed"]) for run in runs}
    wanted = [
        (shape, sampler, seed)
        for seed in range(max(arguments.seeds, arguments.slow_seeds))
        for shape in arguments.objectives
        for sampler in arguments.samplers
        if seed < (arguments.slow_seeds if sampler == "bayesian" else arguments.seeds)
    ]
    missing = [key for key in wanted if key not in present]
    for shape, sampler, seed in track(missing, "Searching", disable=not missing):
        runs.append(measure(shape, sampler, seed, budget))
        save(arguments.out, runs, budget)
    show(runs)


if __name__ == "__main__":
    main()
