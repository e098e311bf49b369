"""A learning-rate distribution: presets, files, other depths."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lrdist_keras._storage import write_text
from lrdist_keras.errors import InputError, MissingFile
from lrdist_keras.groups import PatternScheme, Scheme
from lrdist_keras.strict_json import parse_json

FORMAT = 1
Mean = Literal["geometric", "arithmetic"]
PAPER_SCHEME = Scheme(12, 8, "ceil")
_PAPER = "arXiv 2404.01317, the authors' train.py"


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
            raise InputError(
                f"A distribution gives one rate for each group of its scheme: "
                f"{', '.join(names)}. Missing: {sorted(set(names) - set(given))}; "
                f"unknown: {sorted(set(given) - set(names))}"
            )
        rates = {name: check_rate(given[name], f"group '{name}'") for name in names}
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
        factor = check_rate(rate, "`rate`") / self.geometric_mean
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
            raise InputError(
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
            content = parse_json(Path(path).read_bytes())
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise InputError(f'it must be a JSON object with "format": {FORMAT}')
            if missing := {"scheme", "rates"} - set(content):
                raise InputError(f"it lacks {sorted(missing)}")
            if not isinstance(content["rates"], dict):
                raise InputError('"rates" must map group names to numbers')
            provenance = content.get("provenance", {})
            if not isinstance(provenance, dict):
                raise InputError('"provenance" must be a JSON object')
            return cls(
                scheme_from_json(content["scheme"]),
                content["rates"],
                provenance,
            )
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is not a distribution: {error}") from error


def scheme_from_json(content: Mapping[str, Any]) -> Scheme | PatternScheme:
    """Reads the `scheme` entry of a distribution file, or a `scheme.json`."""
    rule = (
        "a scheme is {layers, encoder_groups, rounding}, {layers, layer_groups} or "
        "{patterns}"
    )
    try:
        if "patterns" in content:
            return PatternScheme(**content)
        if "layer_groups" in content and (
            content["layer_groups"] is None or set(content) > {"layers", "layer_groups"}
        ):
            raise InputError(f"{rule}. Received: {content!r}")
        return Scheme(**content)
    except TypeError as error:
        raise InputError(f"{rule}. Received: {content!r}") from error


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
        raise InputError(f"`decay` must be in (0, 1]. Received: decay={decay!r}")
    rate = check_rate(rate, "`rate`")
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


def fast_head(
    rate: float, factor: float, scheme: Scheme | PatternScheme = PAPER_SCHEME
) -> Distribution:
    """Returns one rate for embeddings and encoder, and `factor` times it for the head.

    A head begins with random numbers, the encoder with what it has learned before, so
    that the head has further to go. Of groups by pattern the last one is the head.

    Raises:
        ValueError: If `rate`, `factor` or their product is not a positive, finite
            number.
    """
    rate, factor = check_rate(rate, "`rate`"), check_rate(factor, "`factor`")
    head = check_rate(rate * factor, "`rate` times `factor`, the head's rate,")
    encoder = [rate] * (len(scheme.names) - 1)
    provenance = {"preset": f"fast_head({rate:g}, {factor:g})"}
    return Distribution.in_order(scheme, [*encoder, head], provenance)


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
        raise MissingFile(
            f"A distribution is a file or one of {', '.join(PRESETS)}. "
            f"Received: {str(name)!r}"
        )
    return Distribution.load(name)


def combine_pairs(
    distributions: Sequence[Distribution], mean: Mean = "geometric"
) -> Distribution:
    """Combines the distributions of several pairs by the plain mean of each group.

    Args:
        distributions: One of each pair.
        mean: `"geometric"`, as in arXiv 2404.01317, or `"arithmetic"`, which large
            rates draw up. The provenance says which.

    Raises:
        ValueError: If there are none, their schemes differ or the mean is unknown.
    """
    if not distributions:
        raise InputError("Combining needs at least one distribution. Received none.")
    scheme = distributions[0].scheme
    for other in distributions[1:]:
        if other.scheme != scheme:
            raise InputError(
                "Only distributions of one scheme can be combined; resample the others "
                f"first. Received: {scheme} and {other.scheme}"
            )
    rates = np.array([d.values for d in distributions])
    return Distribution.in_order(
        scheme,
        mean_rates(rates, lambda x: x.mean(axis=0), mean),
        {"combined": [dict(d.provenance) for d in distributions], "mean": mean},
    )


def mean_rates(
    rates: np.ndarray, average: Callable[[np.ndarray], np.ndarray], mean: Mean
) -> np.ndarray:
    """Returns a mean of the rates of each group, shape [groups].

    Args:
        rates: Shape [distributions, groups].
        average: From such an array to the average over its distributions.
        mean: `"arithmetic"`, that of the rates, or `"geometric"`, of their logarithms.

    Raises:
        ValueError: If the mean is unknown.
    """
    if mean not in get_args(Mean):
        raise InputError(
            f"`mean` must be 'geometric' or 'arithmetic'. Received: mean={mean!r}"
        )
    if mean == "arithmetic":
        return average(rates)
    found: np.ndarray = np.exp(average(np.log(rates)))
    return found


def spread(distributions: Sequence[Distribution]) -> dict[str, float]:
    """Returns per group the largest rate over the smallest, over several pairs."""
    rates = np.array([d.values for d in distributions])
    factors = (rates.max(axis=0) / rates.min(axis=0)).tolist()
    return dict(zip(distributions[0].scheme.names, factors, strict=True))


def _positions(scheme: Scheme) -> list[float]:
    return [(r.start + r.stop) / 2 / scheme.layers for r in scheme.layer_ranges]


def check_rate(value: Any, what: str) -> float:
    """Returns a learning rate as a float.

    Raises:
        ValueError: If it is not a positive, finite number; `what` names it.
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and 0 < value <= sys.float_info.max):
        raise InputError(
            f"{what} must be a positive, finite number. Received: {value!r}"
        )
    return float(value)
