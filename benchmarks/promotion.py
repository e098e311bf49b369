"""Promotion in a search: schedules fitted to each budget, or one that goes on.

    python benchmarks/promotion.py --data FOLDER [--settings 8] [--examples 300]
        [--out FILE.json]

A promoted trial can train again from its start, with a schedule that ends at its own
budget, or go on with one that ends at the full budget. In a sequence only the first
task can go on: the second starts from other weights. SST-2, then MRPC, MiniLM, one
epoch; rewards on the slice of a search. For each way the rank
correlation of the rewards at 1/9 and 1/3 with those of full runs says how well the
better ones are told early. Needs prepared TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from lrdist_keras import config, machine
from lrdist_keras._storage import write_text
from lrdist_keras.search import search
from lrdist_keras.training.compiler import Compiler
from lrdist_keras.training.step import Clock

CONFIGURATION = Path(__file__).parents[1] / "configs" / "glue" / "search_sst2_mrpc.toml"
RESULT = Path(__file__).parent / "results" / "promotion.json"
BUDGETS = (1 / 9, 1 / 3, 1.0)
WAYS = ("from the start", "going on")


class GoingOn(Compiler):
    """Ends the schedule at the full budget, wherever the training stops."""

    share = 1.0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Calls the function, told of a later end."""
        return super().call(function, *map(self._longer, arguments))

    def _longer(self, argument: Any) -> Any:
        if not isinstance(argument, Clock):
            return argument
        return argument._replace(total=np.float32(round(argument.total / self.share)))


def settings(prepared: search.Search, count: int) -> list[dict[str, float]]:
    """Start points of a search, and rates drawn near the good ones."""
    rng = np.random.default_rng(0)
    points = list(prepared.oracle.start_points)
    while len(points) < count:
        rates = 10 ** rng.uniform(-5.5, -3.3, len(prepared.trainer.scheme.names))
        points.append(dict(zip(prepared.trainer.scheme.names, rates, strict=True)))
    return points[:count]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="prepared TFDS data")
    parser.add_argument("--settings", type=int, default=8)
    parser.add_argument("--examples", type=int, default=300, help="of each task")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    overrides = [
        f"data.dir={arguments.data}",
        "training.epochs=1",
        f"tasks.sst2.train_examples={arguments.examples}",
        f"tasks.mrpc.train_examples={arguments.examples}",
        f"search.slice_examples={arguments.examples}",
    ]
    configuration = config.load(CONFIGURATION, overrides)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = search.prepare(configuration, folder)
    compiler = prepared.trainer.compiler
    compiler.__class__ = GoingOn
    jobs = [
        (number, point, way, budget)
        for number, point in enumerate(settings(prepared, arguments.settings))
        for way in WAYS
        for budget in BUDGETS
        if way == WAYS[0] or budget < 1  # a full run is the same either way
    ]
    for number, point, way, budget in track(jobs, "Training"):
        compiler.share = budget if way == WAYS[1] else 1.0
        found = prepared.evaluate(point, budget, 0)
        runs.append({"setting": number, "way": way, "budget": budget, **found})
    rewards = {(r["setting"], r["way"], r["budget"]): r["reward"] for r in runs}
    numbers = range(arguments.settings)
    full = [rewards[n, WAYS[0], 1.0] for n in numbers]
    table = Table("way", "budget", "rank correlation with full runs", "mean reward")
    summary = []
    for way in WAYS:
        for budget in BUDGETS[:-1]:
            early = [rewards[n, way, budget] for n in numbers]
            entry = {
                "way": way,
                "budget": budget,
                "spearman": float(spearmanr(early, full).statistic),
                "mean_reward": float(np.mean(early)),
            }
            summary.append(entry)
            values = (f"{entry[k]:.3f}" for k in ("budget", "spearman", "mean_reward"))
            table.add_row(way, *values)
    Console().print(table)
    result = {
        "what": __doc__.strip().splitlines()[0],
        "configuration": configuration.model_dump(exclude={"arms", "seeds", "data"}),
        "versions": machine.versions(),
        "machine": machine.description(),
        "mean_reward_of_full_runs": float(np.mean(full)),
        "summary": summary,
        "runs": runs,
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
