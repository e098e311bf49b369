"""How often the intervals hold and the rule for marks errs, on simulated runs.

    python benchmarks/paired_statistics.py [--draws 2000] [--out FILE.json]

Noise is normal, or skewed: lognormal of sigma 1 around its mean. In a table of k arms
the reference's noise is in every difference, as in a comparison; effects are in
standard deviations of a difference. Ends with an error where the t interval of normal
differences covers the truth in less than 93 or more than 97 %, or where more than 5 %
and three simulation errors of the tables without a difference have a mark.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from rich.console import Console
from rich.table import Table

from lrdist_keras._storage import write_text
from lrdist_keras.laboratory.paired_tests import (
    LEVEL,
    bca_interval,
    decide,
    least_pairs,
    pairs_needed,
    t_interval,
)

PAIRS = (8, 10)
ARMS = (1, 5, 17)
EFFECTS = (0.5, 1.0, 1.5, 2.0, 3.0)
SKEWED_MEAN = math.exp(0.5)
SKEWED_DEVIATION = math.sqrt((math.e - 1) * math.e)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--out", default="benchmarks/results/paired_statistics.json")
    arguments = parser.parse_args()
    draws = arguments.draws
    coverage = [
        {"noise": noise, "pairs": n, "interval": name, "share": share}
        for noise in NOISE
        for n in PAIRS
        for name, share in covered(noise, n, draws).items()
    ]
    marks = [
        {"noise": noise, "pairs": n, "arms": k, **marked(noise, n, k, 0.0, draws)}
        for noise in NOISE
        for n in PAIRS
        for k in ARMS
    ]
    found = [
        {"effect": effect, "pairs": n, "arms": k}
        | {"found": marked("normal", n, k, effect, draws)["first"]}
        for effect in EFFECTS
        for n in PAIRS
        for k in ARMS
    ]
    needed = [
        {"effect": effect, "arms": k, "pairs": n}
        | {"found": marked("normal", n, k, effect, draws)["first"]}
        for k in ARMS[:2]
        for effect in EFFECTS[1:]
        if (n := pairs_needed(np.array([-1, 1]) / math.sqrt(2) + effect, k))
    ]
    limit = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / draws)
    result = {
        "draws": draws,
        "coverage": coverage,
        "without_a_difference": marks,
        "false_positive_limit": limit,
        "power": found,
        "power_at_the_pairs_needed": needed,
        "versions": {name: version(name) for name in ("numpy", "scipy")},
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    for table in (shares(result), powers(result)):
        Console(width=80).print(table)
    wrong = [
        row
        for row in coverage
        if (row["noise"], row["interval"]) == ("normal", "t")
        and not 0.93 <= row["share"] <= 0.97
    ] + [row for row in marks if row["any"] > limit]
    if wrong:
        sys.exit(f"Out of bounds: {wrong}")


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.lognormal(size=shape) - SKEWED_MEAN) / SKEWED_DEVIATION


NOISE: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": normal,
    "skewed": skewed,
}


def covered(noise: str, pairs: int, draws: int) -> dict[str, float]:
    """Share of draws of differences with mean 0 whose interval holds 0."""
    differences = NOISE[noise](np.random.default_rng(pairs), (draws, pairs))
    shares = {}
    for name, interval in (("t", t_interval), ("BCa", bca_interval)):
        bounds = np.array([interval(row) for row in differences])
        shares[name] = float(np.mean((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)))
    return shares


def marked(
    noise: str, pairs: int, arms: int, effect: float, draws: int
) -> dict[str, float]:
    """Share of tables with any mark, with one on the first arm, which alone differs.

    `uncorrected`: with any arm whose t interval leaves out 0.
    """
    rng = np.random.default_rng(100 * pairs + arms)
    counts = {"any": 0, "first": 0, "uncorrected": 0}
    for _ in range(draws):
        runs = NOISE[noise](rng, (arms + 1, pairs)) / math.sqrt(2)
        runs[1] += effect
        decisions = decide(list(runs[1:] - runs[0]))
        counts["any"] += any(d.marked for d in decisions)
        counts["first"] += decisions[0].marked
        counts["uncorrected"] += any(
            d.interval[0] > 0 or d.interval[1] < 0 for d in decisions
        )
    return {name: count / draws for name, count in counts.items()}


def shares(result: dict) -> Table:
    table = Table(title=f"Shares of {result['draws']:,} draws")
    table.add_column("what")
    for pairs in PAIRS:
        table.add_column(f"{pairs} seeds", justify="right")

    def add(what: str, key: str, rows: list[dict]) -> None:
        table.add_row(what, *(f"{row[key]:.3f}" for row in rows))

    for noise in NOISE:
        for name in ("t", "BCa"):
            rows = [
                row
                for row in result["coverage"]
                if (row["noise"], row["interval"]) == (noise, name)
            ]
            add(f"{noise}: {name} interval holds the truth", "share", rows)
    for key, what in (("any", "any mark"), ("uncorrected", "any interval without 0")):
        table.add_section()
        for noise in NOISE:
            for arms in ARMS:
                rows = [
                    row
                    for row in result["without_a_difference"]
                    if (row["noise"], row["arms"]) == (noise, arms)
                ]
                add(f"{noise}, no difference, k = {arms}: {what}", key, rows)
    return table


def powers(result: dict) -> Table:
    table = Table(title="One of k arms differs: share of draws with its mark")
    table.add_column("effect")
    columns = [(k, n) for k in ARMS for n in PAIRS if n >= least_pairs(k)]
    for k, n in columns:
        table.add_column(f"k={k} n={n}", justify="right")
    for k in ARMS[:2]:
        table.add_column(f"k={k} needed", justify="right")
    found = {(r["effect"], r["arms"], r["pairs"]): r["found"] for r in result["power"]}
    at_needed = {
        (r["effect"], r["arms"]): f"{r['found']:.3f} ({r['pairs']})"
        for r in result["power_at_the_pairs_needed"]
    }
    for effect in EFFECTS:
        cells = [f"{found[effect, k, n]:.3f}" for k, n in columns]
        needed = [at_needed.get((effect, k), "") for k in ARMS[:2]]
        table.add_row(f"{effect:g}", *cells, *needed)
    return table


if __name__ == "__main__":
    main()
