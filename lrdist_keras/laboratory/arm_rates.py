"""The learning rates of an arm, on the scheme of the model."""

from __future__ import annotations

from lrdist_keras.config import ArmSettings
from lrdist_keras.distribution import Distribution, flat, llrd
from lrdist_keras.errors import InputError
from lrdist_keras.fisher import FisherRates
from lrdist_keras.groups import Scheme
from lrdist_keras.settings import LARGEST_RATE
from lrdist_keras.training.run import Rates


def arm_distribution(
    arm: ArmSettings, given: Distribution | None, scheme: Scheme
) -> Distribution:
    """Returns the learning rates of an arm on the model's scheme.

    Where an arm has `rates_from`, they are those of the first task.

    Raises:
        ValueError: If its distribution is of another scheme and is not to be resampled,
            or a rate is too large.
    """
    if given is None:
        rate = arm.rate or 0.0
        return (
            flat(rate, scheme) if arm.decay is None else llrd(rate, arm.decay, scheme)
        )
    if given.scheme != scheme:
        if not arm.resample:
            raise InputError(
                f"Arm '{arm.name}': the distribution '{arm.distribution}' is of the "
                f"scheme {given.scheme}, the model of {scheme}; set resample = true to "
                "fit it to the model."
            )
        given = given.resample(scheme)
    rates = given if arm.rescale is None else given.rescaled(arm.rescale)
    if rates.reference_rate > LARGEST_RATE:
        raise InputError(
            f"Arm '{arm.name}': learning rates must be at most {LARGEST_RATE:g}. "
            f"Received: {rates.reference_rate:g}"
        )
    return rates


def rates_of_tasks(
    arm: ArmSettings, first: Distribution, tasks: int
) -> Distribution | list[Rates]:
    """Returns the learning rates of an arm as a trainer takes them.

    Args:
        arm: It.
        first: Its rates, see `arm_distribution`.
        tasks: Number of tasks of the sequence.

    Raises:
        ValueError: If rates that follow from a Fisher may be too large.
    """
    if arm.rates_from is None:
        return first
    assert arm.rescale is not None and arm.head_rate is not None  # its settings ask
    inverse = arm.rates_from == "fisher_inverse"
    later = FisherRates(arm.rescale, arm.head_rate, inverse=inverse)
    if later.reference_rate > LARGEST_RATE:
        raise InputError(
            f"`rescale` must be so small that no rate can be above {LARGEST_RATE:g}, "
            f"whatever is measured. Received: {arm.rescale:g}, with which one can be "
            f"{later.reference_rate:g}"
        )
    return [first, *[later] * (tasks - 1)]
