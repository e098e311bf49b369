"""The distribution and the groups that a model is trained with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

import keras

from lrdist_keras.distribution import PRESETS, Distribution
from lrdist_keras.errors import InputError
from lrdist_keras.groups import (
    Groups,
    Scheme,
    normalize,
    partition,
    transformer_groups,
)

_BY_PATTERN = (
    "make a distribution for your groups: `Distribution(PatternScheme(groups), rates)` "
    "with a rate for each, or `llrd(rate, decay, PatternScheme(groups))`."
)


def check_recipe(optimizer: Any, schedule: Any, options: Mapping[str, Any]) -> None:
    """Checks what an inner optimizer is to be made of.

    Args:
        optimizer: Its class.
        schedule: Makes a learning-rate schedule from its peak; None for none.
        options: Further arguments of the class.

    Raises:
        ValueError: If one is of the wrong kind, or the options name a learning rate.
    """
    if not isinstance(optimizer, type) or "learning_rate" in options:
        raise ValueError(
            "`optimizer` must be the class of an optimizer, such as "
            "`keras.optimizers.AdamW`, whose learning rate the distribution gives. "
            f"Received: {optimizer!r} with {', '.join(options) or 'no options'}"
        )
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        raise ValueError(
            "`schedule` must be a function from peak to schedule, such as "
            "`lambda rate: CosineDecay(rate, 1000)`. Received: "
            f"{type(schedule).__name__}"
        )


def fitted(
    distribution: Distribution | str, model: Any, groups: Any = None
) -> tuple[Distribution, Groups]:
    """Returns a distribution that fits a model, and the groups of its variables.

    Args:
        distribution: One of the model's scheme or of patterns, or the name of a
            published one, which is resampled to the model's layers.
        model: The model.
        groups: Must be None; what a user gave as `groups` beside the distribution.

    Raises:
        ValueError: If the distribution is of another scheme or is none, or groups were
            given.
    """
    if groups is not None:
        raise ValueError(
            "`groups` belong to the distribution and cannot be given beside it; "
            f"{_BY_PATTERN} Received: groups={groups!r}"
        )
    if isinstance(distribution, str):
        distribution = _preset(distribution).resample(_layers_of(model)[0])
    elif not isinstance(distribution, Distribution):
        raise ValueError(
            "`distribution` must be a `Distribution`, such as "
            "`Distribution.load('mine.json')`, or the name of a published one: "
            f"{', '.join(PRESETS)}. For rates of your own, {_BY_PATTERN} "
            f"Received: {distribution!r}"
        )
    scheme = distribution.scheme
    if not isinstance(scheme, Scheme):
        return distribution, normalize(scheme.patterns)
    if scheme.layer_groups is not None:
        layers = _layers_of(model)[0].layers
        if layers != scheme.layers:
            raise ValueError(
                f"The distribution is made for the scheme {scheme}, the model has "
                f"{layers} layers; use `distribution.resample(Scheme({layers}))`, or "
                f"resample it to `layer_groups` that add up to {layers}."
            )
    found, of_layers = _layers_of(
        model, scheme.encoder_groups, scheme.rounding, scheme.layer_groups
    )
    if found != scheme:
        raise ValueError(
            f"The distribution is made for the scheme {scheme}, the model has {found}; "
            f"use `distribution.resample(Scheme.parse('{found}'))`."
        )
    return distribution, of_layers


def _layers_of(model: Any, *scheme: Any) -> tuple[Scheme, dict[str, tuple[str, ...]]]:
    """The scheme and groups of a model that a distribution over layers is made for."""
    try:
        return transformer_groups(model, *scheme)
    except (ValueError, AttributeError) as error:
        reason = str(error).split("; give")[0]
        raise ValueError(
            "The distribution is made for the layers of a KerasHub transformer. "
            f"{reason} For a model of another kind, {_BY_PATTERN}"
        ) from error


def _preset(name: str) -> Distribution:
    if name not in PRESETS:
        raise ValueError(
            f"A distribution by name is one of {', '.join(PRESETS)}; read a file with "
            f"`Distribution.load`. Received: {name!r}"
        )
    return PRESETS[name]()


def partition_trainable(
    paths: Sequence[str], groups: Groups, saved: Sequence[int] | None = None
) -> list[int]:
    """Returns the group of each trainable variable.

    Where layers are frozen a group may hold nothing; it keeps its place, with a warning
    that names it.

    Args:
        paths: Paths of the variables.
        groups: Ordered mapping from group name to pattern(s).
        saved: The groups when the model was saved: a subclassed model that is loaded
            has other paths.

    Raises:
        ValueError: If a path belongs to no group or to several.
    """
    try:
        return partition(paths, groups)
    except ValueError:
        if saved and len(paths) == len(saved):
            return list(saved)
        indices = partition(paths, groups, allow_empty=True)
    empty = "; ".join(
        f"'{name}' ({', '.join(patterns)})"
        for index, (name, patterns) in enumerate(normalize(groups).items())
        if index not in indices
    )
    warnings.warn(
        "A group matches no trainable variable: its layers are frozen, or its pattern "
        f"is wrong. It has nothing to train. Found: {empty}",
        stacklevel=3,
    )
    return indices


def exact_patterns(
    names: Sequence[Any], paths: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns groups with one pattern per variable, from the group of each.

    Args:
        names: Name of each variable's group.
        paths: Path of each variable.

    Raises:
        ValueError: If a name is no string or empty.
    """
    patterns: dict[str, tuple[str, ...]] = {}
    for name, path in zip(names, paths, strict=True):
        if not isinstance(name, str) or not name:
            raise InputError(
                "`groups` as a function must return the name of a group for each "
                f"variable. Received: {name!r} for '{path}'"
            )
        # With the leading slash it holds this variable and none that ends alike.
        patterns[name] = (*patterns.get(name, ()), f"/{escape(path)}")
    return patterns
