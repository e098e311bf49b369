"""Adam's moments that go on from one training to the next, as in the authors' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrdist_keras.training.optimizers import OptimizerState


@dataclass
class _Part:
    """The moments of some variables, after so many steps on them."""

    steps: int
    first: list[Any]
    second: list[Any]


class CarriedMoments:
    """What a run keeps of Adam between its trainings.

    The authors' code makes one PyTorch Adam for the backbone and both heads, which
    trains the first task, then the second: the backbone's moments and step count go on,
    while a head that has had no gradient yet begins with none, at a step count of its
    own, as PyTorch counts per variable. So it is here; a head that trains again goes on
    as well. Their first head also drifts by its last moments while it gets no
    gradient, in a warm-up that begins at 0; here it stays.
    """

    def __init__(self) -> None:
        self._parts: dict[int | None, _Part] = {}  # by task; None is the backbone

    def put(self, state: OptimizerState, active: Sequence[int]) -> OptimizerState:
        """Returns the state of a new optimizer with what is kept in its place.

        Args:
            state: With moments of zero.
            active: The tasks whose heads stand behind the backbone, two variables each.
        """
        first, second = list(state.first), list(state.second)
        for owner, where in _divided(len(first), active).items():
            if owner not in self._parts:
                continue
            part = self._parts[owner]
            # Copies, since programs take over the memory of their arguments.
            first[where] = [jnp.array(x, copy=True) for x in part.first]
            second[where] = [jnp.array(x, copy=True) for x in part.second]
        return replace(
            state,
            iterations=jnp.full_like(state.iterations, self._steps(None)),
            first=first,
            second=second,
        )

    def head_steps(self, active: Sequence[int]) -> np.ndarray:
        """Returns the steps done on the head of each task, float32, shape [active]."""
        return np.array([self._steps(task) for task in active], np.float32)

    def keep(
        self, state: OptimizerState, active: Sequence[int], steps: int, heads_only: bool
    ) -> None:
        """Takes the moments from an optimizer at the end of a training.

        Args:
            state: The state that the training ended with.
            active: Tasks whose heads were trained, see `put`.
            steps: Steps of this training.
            heads_only: Whether the backbone was not trained, and keeps what it had.
        """
        for owner, where in _divided(len(state.first), active).items():
            if owner is not None or not heads_only:
                moments = state.first[where], state.second[where]
                self._parts[owner] = _Part(self._steps(owner) + steps, *moments)

    def _steps(self, owner: int | None) -> int:
        return self._parts[owner].steps if owner in self._parts else 0


def bias_correction(steps: Any, beta_1: float, beta_2: float) -> Any:
    """Returns sqrt(1 - beta_2^t) / (1 - beta_1^t), by which Adam's step t is scaled.

    arXiv 1412.6980, section 2, with the efficient order of computation.

    Args:
        steps: The steps t, from 1.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
    """
    return jnp.sqrt(1 - beta_2**steps) / (1 - beta_1**steps)


def _divided(variables: int, active: Sequence[int]) -> dict[int | None, slice]:
    """Returns where the backbone and each head stand among so many variables."""
    count = variables - 2 * len(active)
    parts: dict[int | None, slice] = {None: slice(count)}
    for i, task in enumerate(active):
        parts[task] = slice(count + 2 * i, count + 2 * i + 2)
    return parts
