"""The format of `trials.csv`, and the ranked combination of what it holds."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras._storage import write_text
from lrdist_keras.distribution import (
    PAPER_SCHEME,
    Distribution,
    check_rate,
    scheme_from_json,
)
from lrdist_keras.errors import InputError
from lrdist_keras.groups import PatternScheme, Scheme

PAPER_BASE = 1.8
STRENGTH = "strength"  # that of the strategy, where it is searched
_FEWEST_RANKED = 5
_FEWEST = 3  # settings to correlate
OF_TRIALS = (
    "a1", "p_s", "p_o", "reward", "strength", "budget", "seed", "seconds", "sampler",
)  # fmt: skip


@dataclass(frozen=True)
class Trials:
    """The trials of one task pair.

    Args:
        scheme: The groups.
        rates: Learning rates, shape [trials, groups].
        p_s: Accuracy on the second task after training on it, shape [trials].
        p_o: Accuracy on the first task after training on the second, shape [trials].
        budget: Budget of each trial in full runs, shape [trials], or None.
        seed: Seed of each trial, shape [trials], or None.
        name: Where they came from.
        reward: Reward of each trial, shape [trials], if it is not p_s + p_o.
        strength: Strength of the strategy in each trial, shape [trials], if it was
            searched too. Trials that differ in it are other settings; it is not
            combined.
    """

    scheme: Scheme | PatternScheme
    rates: np.ndarray
    p_s: np.ndarray
    p_o: np.ndarray
    budget: np.ndarray | None = None
    seed: np.ndarray | None = None
    name: str = ""
    reward: np.ndarray | None = None
    strength: np.ndarray | None = None

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct trials, best first, as (rates, rewards).

        The reward is p_s + p_o if none is given; ties stay in file order. With seeds,
        trials of the same setting and budget are averaged. With budgets, a setting
        counts once, at its highest, and only the full budget is ranked; if it has fewer
        than 5 trials, those of the next budgets below come after them, since rewards of
        different budgets do not compare. Without either, every row is a trial of its
        own.
        """
        reward = self.p_s + self.p_o if self.reward is None else self.reward
        count = len(reward)
        budget = np.ones(count) if self.budget is None else self.budget
        strength = np.ones(count) if self.strength is None else self.strength
        settings_of = np.column_stack([self.rates, strength])
        rows = [(tuple(settings_of[i]), budget[i], reward[i]) for i in range(count)]
        if self.seed is not None:
            settings: dict[tuple, list[float]] = {}
            for setting, b, r in rows:
                settings.setdefault((setting, b), []).append(r)
            rows = [(k[0], k[1], float(np.mean(v))) for k, v in settings.items()]
        if self.budget is not None:
            highest: dict[tuple, float] = {}
            for setting, b, _ in rows:
                highest[setting] = max(b, highest.get(setting, b))
            rows = [row for row in rows if highest[row[0]] == row[1]]
        chosen: list[tuple] = []
        for b in sorted({row[1] for row in rows}, reverse=True):
            if len(chosen) >= _FEWEST_RANKED:
                break
            chosen += sorted((x for x in rows if x[1] == b), key=lambda x: -x[2])
        return np.array([x[0][:-1] for x in chosen]), np.array([x[2] for x in chosen])


def write_trials(
    folder: Path, scheme: Scheme | PatternScheme, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes `trials.csv`, and the scheme of its groups as `scheme.json` beside it.

    Args:
        folder: Where to.
        scheme: The groups.
        rows: At least one trial, each with the same columns, see `read_trials`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "scheme.json", json.dumps(scheme.to_json()) + "\n")
    write_text(folder / "trials.csv", text.getvalue())


def read_trials(path: str | os.PathLike[str], scheme: Scheme | None = None) -> Trials:
    """Reads a trials file, or the `trials.csv` of a run folder.

    The columns are a1, p_s, p_o, one per group, and optionally reward (of sequences of
    more than two tasks it is not p_s + p_o), strength, budget and seed. The
    scheme is the argument, else that of `scheme.json` beside the file, else 12/8/ceil
    where the groups are its groups.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column or all rows are missing, or a value is not a number of
            its range; the message names file, line and column.
    """
    path = Path(path)
    path = path / "trials.csv" if path.is_dir() else path
    neighbour = path.with_name("scheme.json")
    found: Scheme | PatternScheme = scheme or PAPER_SCHEME
    if scheme is None and neighbour.is_file():
        found = scheme_from_json(json.loads(neighbour.read_text(encoding="utf-8")))
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            rows = list(reader)
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None
        columns = list(reader.fieldnames or [])
    wanted = ["p_s", "p_o", *found.names]
    missing = [name for name in wanted if name not in columns]
    unknown = [name for name in columns if name not in (*OF_TRIALS, *found.names)]
    if missing or unknown:
        raise InputError(
            f"{path}: trials of the scheme {found} have the columns a1, p_s, p_o, one "
            "per group, and optionally reward, strength, budget, seed, seconds and "
            "sampler. "
            f"Missing: {missing}; unknown: {unknown}. If the file is of another "
            "scheme, name it."
        )
    if not rows:
        raise InputError(f"{path} holds no trials, only a header.")

    def column(name: str, check: Any) -> np.ndarray:
        values = []
        for line, row in enumerate(rows, start=2):
            try:
                values.append(check(float(row[name]), "the value"))
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{path}, line {line}, column {name}: {error}"
                ) from None
        return np.array(values)

    return Trials(
        found,
        np.stack([column(name, check_rate) for name in found.names], axis=1),
        column("p_s", _accuracy),
        column("p_o", _accuracy),
        column("budget", check_rate) if "budget" in columns else None,
        column("seed", lambda value, _: value) if "seed" in columns else None,
        str(path),
        column("reward", check_rate) if "reward" in columns else None,
        column("strength", check_rate) if "strength" in columns else None,
    )


def ranked_combination(trials: Trials, base: float = PAPER_BASE) -> Distribution:
    """Combines the trials of one pair into a distribution.

    Per group exp(sum_r w_r log rate_r / sum_r w_r) with w_r = base^-r and r = 0, 1, …
    the rank by reward, best first (arXiv 2404.01317, section 3).

    Raises:
        ValueError: If `base` is below 1.
    """
    if not (math.isfinite(base) and base >= 1):
        raise InputError(f"`base` must be at least 1. Received: base={base}")
    rates, _ = trials.ranked()
    weights = float(base) ** -np.arange(len(rates), dtype=float)
    mean = weights @ np.log(rates) / weights.sum()
    return Distribution.in_order(
        trials.scheme,
        np.exp(mean),
        {"trials": trials.name, "base": base, "ranked": len(rates)},
    )


def _accuracy(value: float, what: str) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{what} must be an accuracy in [0, 1]. Received: {value!r}")
    return value


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns rank correlations that say whether rungs and reward mean anything.

    Args:
        rows: Trials as `Search.rows` gives them.

    Returns:
        `between_rungs`: for two budgets that at least three settings ran with,
        Spearman's correlation of their rewards, averaged over seeds, and the number of
        settings; `reward_and_forgetting`: that of reward and a1 - p_o over the trials
        of the largest budget. None where there are fewer than three or one does not
        vary.
    """
    names = [k for k in rows[0] if k not in OF_TRIALS or k == STRENGTH] if rows else []
    runs: dict[float, dict[tuple, list[float]]] = {}
    for row in rows:
        setting = tuple(row[name] for name in names)
        runs.setdefault(row["budget"], {}).setdefault(setting, []).append(row["reward"])
    rewards = {
        budget: {setting: float(np.mean(found)) for setting, found in of.items()}
        for budget, of in runs.items()
    }
    budgets = sorted(rewards)
    between = [
        {
            "budgets": [low, high],
            "settings": len(both),
            "spearman": _spearman(
                [rewards[low][s] for s in both], [rewards[high][s] for s in both]
            ),
        }
        for i, low in enumerate(budgets)
        for high in budgets[i + 1 :]
        if len(both := [s for s in rewards[low] if s in rewards[high]]) >= _FEWEST
    ]
    full = [row for row in rows if row["budget"] == budgets[-1]]
    found = _spearman(
        [row["reward"] for row in full],
        [row["a1"] - row["p_o"] for row in full],
    )
    return {"between_rungs": between, "reward_and_forgetting": found}


def _spearman(a: list[float], b: list[float]) -> float | None:
    from scipy.stats import spearmanr

    if len(a) < _FEWEST or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(spearmanr(a, b).statistic)
