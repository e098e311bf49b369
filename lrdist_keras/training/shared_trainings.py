"""A training as arrays that other runs take over, and all that it depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from lrdist_keras.training.course import Course, copied
from lrdist_keras.training.plan import Stage
from lrdist_keras.training.run import Curve


def what_it_depends_on(
    course: Course, i: int, stage: Stage, earlier: Sequence[int]
) -> tuple[str | np.ndarray, ...]:
    """Returns all that a plain training and its curve depend on.

    Args:
        course: The run, before it.
        i: Number of the task.
        stage: The training.
        earlier: The tasks that its curve is of.
    """
    rates, examples = stage.rates, stage.examples.encoded
    numbers = [course.seed, i, course.tasks[i].epochs, course.budget_of(i)]
    tasks = [course.tasks[j] for j in (*earlier, i)]
    heads = [array for j in (*earlier, i) for array in course.heads[j]]
    return (
        *course.evaluator.identity,
        json.dumps([*numbers, course.rows, rates.rates, course.frozen_in(i)]),
        examples.digest,
        np.asarray(examples.labels),
        *(task.validation.digest for task in tasks),
        *(np.asarray(task.validation.labels) for task in tasks),
        *map(np.asarray, [*course.weights, *course.model_state, *heads]),
    )


def arrays_of(
    course: Course, i: int, curve: Curve, earlier: Sequence[str], diverged: bool
) -> Mapping[str, np.ndarray]:
    """Returns what a training of task i left, for other runs."""
    lists = {
        "weight": course.weights,
        "head": course.heads[i],
        "state": course.model_state,
        "curve": [curve.accuracy[name] for name in earlier],
    }
    arrays = {
        f"{name}_{k}": np.asarray(value)
        for name, values in lists.items()
        for k, value in enumerate(values)
    }
    known = dict(
        zip(("logits", "features"), course.known_validation(i) or (), strict=False)
    )
    steps = {"steps": np.asarray(curve.steps), "diverged": np.asarray(diverged)}
    return {**arrays, **known, **steps}


def put(
    course: Course, i: int, found: Mapping[str, np.ndarray], earlier: Sequence[str]
) -> Curve:
    """Puts what a training of task i left into its place; returns its curve."""

    def values(name: str) -> list[np.ndarray]:
        count = sum(key.startswith(f"{name}_") for key in found)
        return [found[f"{name}_{k}"] for k in range(count)]

    course.weights, course.heads[i] = copied(values("weight")), copied(values("head"))
    course.model_state = copied(values("state"))
    if "logits" in found:
        logits, features = (np.array(found[x]) for x in ("logits", "features"))
        course.note_validation(i, logits, features)
    curves = [curve.tolist() for curve in values("curve")]
    return Curve(found["steps"].tolist(), dict(zip(earlier, curves, strict=True)))
