"""The format of `trials.csv`, and the ranked combination of what it holds."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdist_keras._storage import write_text
from lrdist_keras.distribution import (
    PAPER_SCHEME,
    Distribution,
    Mean,
    check_rate,
    mean_rates,
    scheme_from_json,
)
from lrdist_keras.errors import InputError
from lrdist_keras.groups import PatternScheme, Scheme
from lrdist_keras.strict_json import parse_json

PAPER_BASE = 1.8
STRENGTH = "strength"  # that of the strategy, where it is searched
_FEWEST_RANKED = 5
_LONGEST = 500  # characters of what was received
_FEWEST = 8  # settings to correlate
OF_TRIALS = (
    "a1", "p_s", "p_o", "reward", "strength", "budget", "seed", "learned", "seconds",
    "sampler",
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
        learned: Whether each trial learned all its tasks, shape [trials], or None where
            that is not known.
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
    learned: np.ndarray | None = None

    def ranked(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct trials, best first, as (rates, rewards).

        The reward is p_s + p_o if none is given; ties stay in file order. With seeds,
        trials of the same setting and budget are averaged. With budgets, a setting
        counts once, at its highest, and only the full budget is ranked; if it has fewer
        than 5 trials, those of the next budgets below come after them, since rewards of
        different budgets do not compare. Without either, every row is a trial of its
        own.
        """
        ranked = self._ranked()
        return (
            np.array([trial.setting[:-1] for trial in ranked]),
            np.array([trial.reward for trial in ranked]),
        )

    def ranked_without_learning(self) -> int | None:
        """Returns how many of the ranked trials did not learn; None if not known.

        With seeds, a setting learned if most of its runs did.
        """
        if self.learned is None:
            return None
        return int(sum(trial.learned <= 0.5 for trial in self._ranked()))

    def _ranked(self) -> list[_Ranked]:
        reward = self.p_s + self.p_o if self.reward is None else self.reward
        ones = np.ones(len(reward))
        budget = ones if self.budget is None else self.budget
        strength = ones if self.strength is None else self.strength
        learned = ones if self.learned is None else self.learned
        settings = map(tuple, np.column_stack([self.rates, strength]).tolist())
        rows = list(map(_Ranked, settings, budget, reward, learned))
        if self.seed is not None:
            runs: dict[tuple, list[_Ranked]] = {}
            for row in rows:
                runs.setdefault((row.setting, row.budget), []).append(row)
            rows = [
                of[0]._replace(
                    reward=float(np.mean([run.reward for run in of])),
                    learned=float(np.mean([run.learned for run in of])),
                )
                for of in runs.values()
            ]
        if self.budget is not None:
            highest: dict[tuple, float] = {}
            for row in rows:
                most = highest.get(row.setting, row.budget)
                highest[row.setting] = max(row.budget, most)
            rows = [row for row in rows if highest[row.setting] == row.budget]
        chosen: list[_Ranked] = []
        for b in sorted({row.budget for row in rows}, reverse=True):
            if len(chosen) >= _FEWEST_RANKED:
                break
            of_budget = [row for row in rows if row.budget == b]
            chosen += sorted(of_budget, key=lambda row: -row.reward)
        return chosen


class _Ranked(NamedTuple):
    """A setting, with the means of its runs of one budget."""

    setting: tuple[float, ...]  # the rates and the strength
    budget: float
    reward: float
    learned: float


def write_trials(
    folder: Path, scheme: Scheme | PatternScheme, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes `trials.csv`, and the scheme of its groups as `scheme.json` beside it.

    Args:
        folder: Where to.
        scheme: The groups.
        rows: At least one trial, each with the same columns, see `read_trials`.

    Raises:
        ValueError: If `read_trials` would refuse the file; nothing is written then.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_cell(row[name]) for name in rows[0]] for row in rows)
    _parsed(text.getvalue(), folder / "trials.csv", scheme)
    write_text(folder / "scheme.json", json.dumps(scheme.to_json()) + "\n")
    write_text(folder / "trials.csv", text.getvalue())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(float(value)) if isinstance(value, float) else str(value)


def read_trials(path: str | os.PathLike[str], scheme: Scheme | None = None) -> Trials:
    """Reads a trials file, or the `trials.csv` of a run folder.

    The columns are p_s, p_o, one per group, and optionally a1, reward (of sequences of
    more than two tasks it is not p_s + p_o), strength, budget, seed, learned (`true` or
    `false`), seconds and sampler. The scheme is the argument, else that of
    `scheme.json` beside the file, else 12/8/ceil where the groups are its groups.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column or all rows are missing, a column stands in it twice, or
            a value is not a number of its range; the message names file, line and
            column.
    """
    path = Path(path)
    path = path / "trials.csv" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8: {error}") from None
    return _parsed(text, path, scheme or _scheme_beside(path))


def _scheme_beside(path: Path) -> Scheme | PatternScheme:
    neighbour = path.with_name("scheme.json")
    if not neighbour.is_file():
        return PAPER_SCHEME
    try:
        return scheme_from_json(parse_json(neighbour.read_bytes()))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{neighbour} is not the scheme of {path.name}; mend it, or remove it and "
            f"name the scheme. {str(error)[:_LONGEST]}"
        ) from None


def _parsed(text: str, path: Path, scheme: Scheme | PatternScheme) -> Trials:
    """Returns the trials that the text of a file holds."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(reader, [])
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    _check_columns(columns, path, scheme)
    if not rows:
        raise InputError(f"{path} holds no trials, only a header.")
    for line, cells in rows:
        if len(cells) > len(columns):
            raise InputError(
                f"{path}, line {line}: a row must have at most one value for each of "
                f"the {len(columns)} columns. Received: {len(cells)}"
            )

    def column(name: str, read: Callable[[str], Any]) -> np.ndarray:
        values, index = [], columns.index(name)
        for line, cells in rows:
            try:
                if index >= len(cells):
                    raise InputError("the value is missing")
                values.append(read(cells[index]))
            except ValueError as error:
                raise InputError(
                    f"{path}, line {line}, column {name}: {str(error)[:_LONGEST]}"
                ) from None
        return np.array(values)

    def optional(name: str, read: Callable[[str], Any]) -> np.ndarray | None:
        return column(name, read) if name in columns else None

    return Trials(
        scheme,
        np.stack([column(name, _positive) for name in scheme.names], axis=1),
        column("p_s", _accuracy),
        column("p_o", _accuracy),
        optional("budget", _positive),
        optional("seed", _seed),
        str(path),
        optional("reward", _reward),
        optional("strength", _positive),
        optional("learned", _truth),
    )


def _check_columns(
    columns: Sequence[str], path: Path, scheme: Scheme | PatternScheme
) -> None:
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise InputError(
            f"{path}: each column must stand in it once. Received twice: {repeated}"
        )
    remedy = "If the file is of another scheme, name it."
    if isinstance(scheme, Scheme) and scheme.encoder_groups > len(columns):
        raise InputError(
            f"{path}: the scheme {scheme} has a column for each of its "
            f"{scheme.encoder_groups} encoder groups. {remedy} Received: "
            f"{len(columns)} columns"
        )
    if taken := sorted(set(scheme.names) & set(OF_TRIALS)):
        raise InputError(
            f"{path}: a group must not be called as another column of trials; give it "
            f"another name. Received: {taken}"
        )
    missing = [name for name in ("p_s", "p_o", *scheme.names) if name not in columns]
    unknown = [name for name in columns if name not in (*OF_TRIALS, *scheme.names)]
    if missing or unknown:
        raise InputError(
            f"{path}: trials of the scheme {scheme} have the columns p_s, p_o, one per "
            "group, and optionally a1, reward, strength, budget, seed, learned, "
            f"seconds and sampler. Missing: {missing}; unknown: {unknown}. {remedy}"
        )


def ranked_combination(
    trials: Trials, base: float = PAPER_BASE, mean: Mean = "geometric"
) -> Distribution:
    """Combines the trials of one pair into a distribution.

    Per group exp(sum_r w_r log rate_r / sum_r w_r) with w_r = base^-r and r = 0, 1, …
    the rank by reward, best first (arXiv 2404.01317, section 3); if `mean` is
    `"arithmetic"`, sum_r w_r rate_r / sum_r w_r, and the provenance says so.

    Raises:
        ValueError: If `base` is below 1 or the mean is unknown.
    """
    if not (math.isfinite(base) and base >= 1):
        raise InputError(f"`base` must be at least 1. Received: base={base}")
    rates, _ = trials.ranked()
    weights = float(base) ** -np.arange(len(rates), dtype=float)
    return Distribution.in_order(
        trials.scheme,
        mean_rates(rates, lambda x: weights @ x / weights.sum(), mean),
        {
            "trials": trials.name,
            "base": base,
            **({"mean": mean} if mean != "geometric" else {}),
            "ranked": len(rates),
            "not_learned": trials.ranked_without_learning(),
        },
    )


def _positive(cell: str) -> float:
    return check_rate(float(cell), "the value")


def _accuracy(cell: str) -> float:
    if not 0 <= (value := float(cell)) <= 1:
        raise InputError(f"the value must be an accuracy in [0, 1]. Received: {cell}")
    return value


def _reward(cell: str) -> float:
    if not 0 <= (value := float(cell)) < math.inf:
        raise InputError(
            "the value must be a sum of accuracies, finite and at least 0. "
            f"Received: {cell}"
        )
    return value


def _seed(cell: str) -> int:
    value = float(cell)
    if not (value.is_integer() and 0 <= value < 2**53):
        raise InputError(
            f"the value must be a whole number of at least 0. Received: {cell}"
        )
    return int(value)


def _truth(cell: str) -> bool:
    if cell.lower() not in ("true", "false"):
        raise InputError(f"the value must be true or false. Received: {cell}")
    return cell.lower() == "true"


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns rank correlations that say whether rungs and reward mean anything.

    Args:
        rows: Trials as `Search.rows` gives them.

    Returns:
        `between_rungs`: for two budgets that some settings ran with, Spearman's
        correlation of their rewards, averaged over seeds, and the number of settings;
        `reward_and_forgetting`: that of reward and a1 - p_o over the trials of the
        largest budget, and `reward_and_forgetting_trials`, their number. A correlation
        of fewer than eight is None, for its error is 1 / sqrt(n - 1), more than 0.4; so
        is one of what does not vary.
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
        if (both := [s for s in rewards[low] if s in rewards[high]])
    ]
    full = [row for row in rows if row["budget"] == budgets[-1]] if rows else []
    found = _spearman(
        [row["reward"] for row in full],
        [row["a1"] - row["p_o"] for row in full],
    )
    return {
        "between_rungs": between,
        "reward_and_forgetting": found,
        "reward_and_forgetting_trials": len(full),
    }


def _spearman(a: list[float], b: list[float]) -> float | None:
    from scipy.stats import spearmanr

    if len(a) < _FEWEST or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(spearmanr(a, b).statistic)
