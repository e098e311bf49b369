"""A learning-rate distribution: presets, files, other depths, combining trials."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras._storage import write_text
from lrdist_keras.groups import PatternScheme, Scheme

FORMAT = 1
PAPER_SCHEME = Scheme(12, 8, "ceil")
PAPER_BASE = 1.8
_PAPER = "arXiv 2404.01317, the authors' train.py"
_FEWEST_RANKED = 5
OF_TRIALS = (
    "a1", "p_s", "p_o", "reward", "strength", "budget", "seed", "seconds", "sampler",
)  # fmt: skip


@dataclass(frozen=True)
class Distribution:
    """One positive learning rate per group of layers.

    Args:
        scheme: The groups, see `Scheme` and `PatternScheme`.
        rates: Learning rate per group, by name; kept in the scheme's order.
        provenance: Where the rates came from; anything that JSON can hold.

    Raises:
        ValueError: If the groups are not exactly those of the scheme, or a rate is not
            a positive, finite number.

    Example:
    >>> d = flat(2e-5, Scheme(6))
    >>> d.rates["head"]
    2e-05
    """

    scheme: Scheme | PatternScheme
    rates: Mapping[str, float]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        names, given = self.scheme.names, self.rates
        if set(given) != set(names):
            raise ValueError(
                f"A distribution gives one rate for each group of its scheme: "
                f"{', '.join(names)}. Missing: {sorted(set(names) - set(given))}; "
                f"unknown: {sorted(set(given) - set(names))}"
            )
        rates = {name: _rate(given[name], f"group '{name}'") for name in names}
        object.__setattr__(self, "rates", rates)

    @classmethod
    def in_order(
        cls,
        scheme: Scheme | PatternScheme,
        values: Iterable[float],
        provenance: Mapping[str, Any] | None = None,
    ) -> Distribution:
        """Makes a distribution from rates in the order of the scheme's groups."""
        rates = dict(zip(scheme.names, map(float, values), strict=True))
        return cls(scheme, rates, provenance or {})

    @property
    def values(self) -> np.ndarray:
        """The rates in group order, float64, shape [groups]."""
        return np.array(list(self.rates.values()))

    @property
    def reference_rate(self) -> float:
        """The largest rate, which the multipliers refer to."""
        return max(self.rates.values())

    @property
    def multipliers(self) -> dict[str, float]:
        """Rate / reference rate per group, in (0, 1]; a flat distribution gives 1."""
        return {name: r / self.reference_rate for name, r in self.rates.items()}

    @property
    def geometric_mean(self) -> float:
        """The geometric mean of the rates over the groups: their size without shape."""
        return float(np.exp(np.mean(np.log(self.values))))

    def rescaled(self, rate: float) -> Distribution:
        """Returns the same shape with the geometric mean over the groups at `rate`."""
        factor = _rate(rate, "`rate`") / self.geometric_mean
        return replace(
            self,
            rates={name: r * factor for name, r in self.rates.items()},
            provenance={**self.provenance, "rescaled": rate},
        )

    def resample(self, scheme: Scheme) -> Distribution:
        """Returns the distribution for a model of another depth or grouping.

        A group's position is the centre of its layer range divided by the number of
        layers. Logarithms of rates are interpolated linearly between the positions of
        the encoder groups and held constant beyond the first and the last; embeddings
        and head are copied.

        Raises:
            ValueError: If the groups are given by patterns, which have no position.
        """
        if not isinstance(self.scheme, Scheme) or not isinstance(scheme, Scheme):
            raise ValueError(
                "Only distributions over the layers of a transformer can be resampled; "
                "groups by pattern have no position."
            )
        if scheme == self.scheme:
            return self
        encoder = np.interp(
            _positions(scheme), _positions(self.scheme), np.log(self.values[1:-1])
        )
        return Distribution.in_order(
            scheme,
            [self.rates["embeddings"], *np.exp(encoder), self.rates["head"]],
            {**self.provenance, "resampled_from": self.scheme.to_json()},
        )

    def to_json(self) -> dict[str, Any]:
        """The content of a distribution file."""
        return {
            "format": FORMAT,
            "scheme": self.scheme.to_json(),
            "rates": dict(self.rates),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the distribution file, whole or not at all."""
        write_text(path, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Distribution:
        """Reads a distribution file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a distribution; the message names the file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError(f'it must be a JSON object with "format": {FORMAT}')
            if missing := {"scheme", "rates"} - set(content):
                raise ValueError(f"it lacks {sorted(missing)}")
            if not isinstance(content["rates"], dict):
                raise ValueError('"rates" must map group names to numbers')
            provenance = content.get("provenance", {})
            if not isinstance(provenance, dict):
                raise ValueError('"provenance" must be a JSON object')
            json.dumps(provenance, allow_nan=False)
            return cls(
                scheme_from_json(content["scheme"]),
                content["rates"],
                provenance,
            )
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not a distribution: {error}") from error


def scheme_from_json(content: Mapping[str, Any]) -> Scheme | PatternScheme:
    """Reads the `scheme` entry of a distribution file, or a `scheme.json`."""
    try:
        if "patterns" in content:
            return PatternScheme(**content)
        return Scheme(**content)
    except TypeError as error:
        raise ValueError(
            "a scheme is {layers, encoder_groups, rounding} or {patterns}. "
            f"Received: {content!r}"
        ) from error


def flat(rate: float, scheme: Scheme | PatternScheme = PAPER_SCHEME) -> Distribution:
    """Returns the same rate for every group."""
    return Distribution.in_order(
        scheme, [rate] * len(scheme.names), {"preset": f"flat({rate:g})"}
    )


def llrd(
    rate: float, decay: float, scheme: Scheme | PatternScheme = PAPER_SCHEME
) -> Distribution:
    """Returns layer-wise learning-rate decay, as in arXiv 2106.08254 (BEiT).

    The head learns with `rate`, layer l of L (from 0) with `rate * decay**(L - l)`, the
    embeddings with `rate * decay**(L + 1)`; a group of several layers has the geometric
    mean of theirs. Groups by pattern count as one layer each, the first deepest.

    Raises:
        ValueError: If `rate` is not positive or `decay` not in (0, 1].
    """
    if not (isinstance(decay, int | float) and 0 < decay <= 1):
        raise ValueError(f"`decay` must be in (0, 1]. Received: decay={decay!r}")
    rate = _rate(rate, "`rate`")
    if isinstance(scheme, PatternScheme):
        depths = [float(i) for i in reversed(range(len(scheme.names)))]
    else:
        layers, ranges = scheme.layers, scheme.layer_ranges
        middles = [layers - (r.start + r.stop - 1) / 2 for r in ranges]
        depths = [layers + 1.0, *middles, 0.0]
    provenance = {"preset": f"llrd({rate:g}, {decay:g})"}
    return Distribution.in_order(
        scheme, [rate * decay**depth for depth in depths], provenance
    )


def kenneweg2022() -> Distribution:
    """Returns the published distribution for 12 layers, combined over four task pairs.

    Source: arXiv 2404.01317, as printed in the authors' train.py.
    """
    rates = [
        3.29537129e-06, 4.36300010e-06, 9.21473516e-07, 1.92275197e-06, 2.84902669e-06,
        2.14311562e-06, 3.26747809e-06, 3.69894365e-06, 3.18562234e-06, 1.11884272e-05,
    ]  # fmt: skip
    return Distribution.in_order(
        PAPER_SCHEME, rates, {"preset": "kenneweg2022", "source": _PAPER}
    )


def kenneweg2022_rounded() -> Distribution:
    """Returns the published distribution as its authors later rounded it by hand.

    Source: arXiv 2404.01317, as printed in the authors' train.py.
    """
    shape = [1.0, 1.0, 0.3, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0]
    return Distribution.in_order(
        PAPER_SCHEME,
        [m * 2e-5 for m in shape],
        {"preset": "kenneweg2022_rounded", "source": _PAPER},
    )


PRESETS = {
    "kenneweg2022": kenneweg2022,
    "kenneweg2022_rounded": kenneweg2022_rounded,
}


def get(name: str | os.PathLike[str]) -> Distribution:
    """Returns a published distribution by name, or the one in a file.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if str(name) in PRESETS:
        return PRESETS[str(name)]()
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"A distribution is a file or one of {', '.join(PRESETS)}. "
            f"Received: {str(name)!r}"
        )
    return Distribution.load(name)


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
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
        columns = list(reader.fieldnames or [])
    wanted = ["p_s", "p_o", *found.names]
    missing = [name for name in wanted if name not in columns]
    unknown = [name for name in columns if name not in (*OF_TRIALS, *found.names)]
    if missing or unknown:
        raise ValueError(
            f"{path}: trials of the scheme {found} have the columns a1, p_s, p_o, one "
            "per group, and optionally reward, strength, budget, seed, seconds and "
            "sampler. "
            f"Missing: {missing}; unknown: {unknown}. If the file is of another "
            "scheme, name it."
        )
    if not rows:
        raise ValueError(f"{path} holds no trials, only a header.")

    def column(name: str, check: Any) -> np.ndarray:
        values = []
        for line, row in enumerate(rows, start=2):
            try:
                values.append(check(float(row[name]), "the value"))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {line}, column {name}: {error}"
                ) from None
        return np.array(values)

    return Trials(
        found,
        np.stack([column(name, _rate) for name in found.names], axis=1),
        column("p_s", _accuracy),
        column("p_o", _accuracy),
        column("budget", _rate) if "budget" in columns else None,
        column("seed", lambda value, _: value) if "seed" in columns else None,
        str(path),
        column("reward", _rate) if "reward" in columns else None,
        column("strength", _rate) if "strength" in columns else None,
    )


def ranked_combination(trials: Trials, base: float = PAPER_BASE) -> Distribution:
    """Combines the trials of one pair into a distribution.

    Per group exp(sum_r w_r log rate_r / sum_r w_r) with w_r = base^-r and r = 0, 1, …
    the rank by reward, best first (arXiv 2404.01317, section 3).

    Raises:
        ValueError: If `base` is below 1.
    """
    if not (math.isfinite(base) and base >= 1):
        raise ValueError(f"`base` must be at least 1. Received: base={base}")
    rates, _ = trials.ranked()
    weights = float(base) ** -np.arange(len(rates), dtype=float)
    mean = weights @ np.log(rates) / weights.sum()
    return Distribution.in_order(
        trials.scheme,
        np.exp(mean),
        {"trials": trials.name, "base": base, "ranked": len(rates)},
    )


def combine_pairs(distributions: Sequence[Distribution]) -> Distribution:
    """Combines the distributions of several pairs by their plain geometric mean.

    Raises:
        ValueError: If there are none, or their schemes differ.
    """
    if not distributions:
        raise ValueError("Combining needs at least one distribution. Received none.")
    scheme = distributions[0].scheme
    for other in distributions[1:]:
        if other.scheme != scheme:
            raise ValueError(
                "Only distributions of one scheme can be combined; resample the others "
                f"first. Received: {scheme} and {other.scheme}"
            )
    logs = np.log([d.values for d in distributions])
    return Distribution.in_order(
        scheme,
        np.exp(logs.mean(axis=0)),
        {"combined": [dict(d.provenance) for d in distributions]},
    )


def spread(distributions: Sequence[Distribution]) -> dict[str, float]:
    """Returns per group the largest rate over the smallest, over several pairs."""
    rates = np.array([d.values for d in distributions])
    factors = (rates.max(axis=0) / rates.min(axis=0)).tolist()
    return dict(zip(distributions[0].scheme.names, factors, strict=True))


def _positions(scheme: Scheme) -> list[float]:
    return [(r.start + r.stop) / 2 / scheme.layers for r in scheme.layer_ranges]


def _rate(value: Any, what: str) -> float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and 0 < value <= sys.float_info.max):
        raise ValueError(
            f"{what} must be a positive, finite number. Received: {value!r}"
        )
    return float(value)


def _accuracy(value: float, what: str) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{what} must be an accuracy in [0, 1]. Received: {value!r}")
    return value
