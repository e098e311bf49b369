"""The learning rates of arms, on the groups of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lrdist_keras.config import ArmSettings, Configuration, FirstSettings
from lrdist_keras.distribution import Distribution, fast_head, flat, get, llrd
from lrdist_keras.errors import InputError
from lrdist_keras.fisher import FisherRates
from lrdist_keras.groups import Scheme
from lrdist_keras.printable import printable
from lrdist_keras.settings import LARGEST_RATE

Rates = tuple[Distribution, ...]  # one for all tasks, or one for each


def named_distributions(configuration: Configuration) -> dict[str, Distribution]:
    """Returns the distributions that arms and [first] name, by what they name.

    Raises:
        InputError: If one is no distribution.
        FileNotFoundError: If a file is missing.
    """
    entries = [*configuration.arms, configuration.first]
    names = [name for entry in entries if entry is not None for name in files_of(entry)]
    return {name: get(name) for name in names}


def files_of(entry: ArmSettings | FirstSettings) -> list[str]:
    """Returns the distributions that an arm or [first] names, one for each task."""
    if entry.distribution is None:
        return []
    several = isinstance(entry.distribution, list)
    return list(entry.distribution) if several else [str(entry.distribution)]


def arm_rates(
    arm: ArmSettings, given: Mapping[str, Distribution], scheme: Scheme
) -> Rates:
    """Returns the learning rates of an arm on the model's scheme.

    Where an arm has `rates_from`, they are those of the first task.

    Args:
        arm: The arm.
        given: The distributions that it names.
        scheme: The scheme.

    Raises:
        InputError: If a distribution is of another scheme and is not to be resampled,
            or a rate is too large.
    """
    what = f"Arm '{printable(arm.name)}'"
    if not (files := files_of(arm)):
        return (_of_one_rate(arm, arm.rate or 0.0, scheme),)
    return tuple(_fitted(given[name], name, arm, scheme, what) for name in files)


def _of_one_rate(arm: ArmSettings, rate: float, scheme: Scheme) -> Distribution:
    if arm.decay is not None:
        return llrd(rate, arm.decay, scheme)
    if arm.fast_head is not None:
        return fast_head(rate, arm.fast_head, scheme)
    return flat(rate, scheme)


def first_rates(
    first: FirstSettings, given: Mapping[str, Distribution], scheme: Scheme
) -> Distribution:
    """Returns the learning rates of the shared training of the first task.

    Raises:
        InputError: See `arm_rates`.
    """
    if not (files := files_of(first)):
        return flat(first.rate or 0.0, scheme)
    return _fitted(given[files[0]], files[0], first, scheme, "[first]")


def _fitted(
    given: Distribution,
    name: str,
    settings: ArmSettings | FirstSettings,
    scheme: Scheme,
    what: str,
) -> Distribution:
    if given.scheme != scheme:
        if not settings.resample:
            raise InputError(
                f"{what}: the distribution '{name}' is of the scheme {given.scheme}, "
                f"the model of {scheme}; set resample = true to fit it to the model."
            )
        given = given.resample(scheme)
    rates = given if settings.rescale is None else given.rescaled(settings.rescale)
    if rates.reference_rate > LARGEST_RATE:
        raise InputError(
            f"{what}: learning rates must be at most {LARGEST_RATE:g}. Received: "
            f"{rates.reference_rate:g}"
        )
    return rates


def check_counts(configuration: Configuration) -> None:
    """Checks that arms with a distribution for each task have as many as tasks.

    Raises:
        InputError: If one has not.
    """
    for arm in configuration.arms:
        if not isinstance(arm.distribution, list):
            continue
        for sequence in configuration.sequences:
            if (count := len(arm.distribution)) != sequence.parts:
                raise InputError(
                    f"Arm '{printable(arm.name)}': `distribution` must be one, or one "
                    f"for each of the {sequence.parts} tasks of the sequence "
                    f"'{printable(sequence.name)}'. Received: {count}"
                )


def by_name(rates: Mapping[str, Rates]) -> dict[str, Distribution]:
    """Returns distributions by arm; `ARM, task 2` where an arm has one for each."""
    return {
        name if len(of_arm) == 1 else f"{name}, task {i}": distribution
        for name, of_arm in rates.items()
        for i, distribution in enumerate(of_arm, start=1)
    }


def for_run(
    arm: ArmSettings, rates: Rates, tasks: int
) -> Distribution | Sequence[Distribution | FisherRates]:
    """Returns the learning rates of an arm as `SequentialTrainer.run` takes them.

    Args:
        arm: The arm.
        rates: Its rates, see `arm_rates`.
        tasks: Number of tasks of the sequence.

    Raises:
        InputError: If rates that follow from a Fisher may be too large.
    """
    if arm.rates_from is None:
        return rates[0] if len(rates) == 1 else rates
    assert arm.rescale is not None and arm.head_rate is not None  # its settings ask
    inverse = arm.rates_from == "fisher_inverse"
    later = FisherRates(arm.rescale, arm.head_rate, inverse=inverse)
    if later.reference_rate > LARGEST_RATE:
        raise InputError(
            f"`rescale` must be so small that no rate can be above {LARGEST_RATE:g}, "
            f"whatever is measured. Received: {arm.rescale:g}, with which one can be "
            f"{later.reference_rate:g}"
        )
    return [rates[0], *[later] * (tasks - 1)]
