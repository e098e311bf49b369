"""Weights that are held: EWC in three forms, L2-SP and RecAdam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from lrdist_keras.errors import InputError
from lrdist_keras.settings import Share, UserPath
from lrdist_keras.training.plan import Stage, Terms
from lrdist_keras.training.strategies.base import Strategy, Strength, TextFisher

if TYPE_CHECKING:
    from lrdist_keras.training.course import Course
    from lrdist_keras.training.penalties import QuadraticPenalty


class Overshoot(InputError):
    """Learning rate and strength together would overshoot what is pulled to."""


class _Penalised(Strategy):
    """Trains with the penalty that it remembers, if it has one yet."""

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training of a task with the penalty."""
        return [replace(course.plain(task), terms=Terms(penalty=memory))]


class Ewc(_Penalised):
    """Elastic weight consolidation with the Fisher of each task so far.

    Args:
        strategy: Its name.
        strength: Lambda of arXiv 1612.00796, 400 in its table of Atari.
    """

    strategy: Literal["ewc"] = "ewc"
    strength: Strength = 400.0

    def after_task(
        self, course: Course, task: int, memory: QuadraticPenalty | None
    ) -> QuadraticPenalty | None:
        """Returns the penalty of the tasks so far, with that of this one."""
        if task + 1 == len(course.tasks):
            return memory
        new = _penalty_now(course, task, self.strength)
        return new if memory is None else memory.plus(new)


class EwcOnline(_Penalised):
    """Elastic weight consolidation with a running sum of Fishers (arXiv 1805.06370).

    Args:
        strategy: Its name.
        strength: Lambda, as of `ewc`.
        fisher_decay: Gamma, the factor of the earlier Fisher.
    """

    strategy: Literal["ewc_online"] = "ewc_online"
    strength: Strength = 400.0
    fisher_decay: Share = 0.95

    def after_task(
        self, course: Course, task: int, memory: QuadraticPenalty | None
    ) -> QuadraticPenalty | None:
        """Returns the penalty with the running sum, around the weights now."""
        if task + 1 == len(course.tasks):
            return memory
        new = _penalty_now(course, task, self.strength)
        return new if memory is None else memory.followed_by(new, self.fisher_decay)


class EwcPretraining(_Penalised):
    """Elastic weight consolidation with the Fisher of masked language modelling.

    Args:
        strategy: Its name.
        strength: Lambda, 2000 is what the authors of arXiv 2404.01317 used.
        raw_text: A text file, one paragraph a line.
        fisher_examples: Pieces of text that the Fisher is of.
    """

    strategy: Literal["ewc_pretraining"] = "ewc_pretraining"
    strength: Strength = 2000.0
    raw_text: UserPath = ""
    fisher_examples: int = Field(default=1000, ge=1)
    _fisher: Sequence[Any] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _text_is_given(self) -> Self:
        if not self.raw_text:
            raise InputError("the strategy 'ewc_pretraining' needs `raw_text`")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """The text that the Fisher is of."""
        return (self.raw_text,)

    def prepared(self, text_fisher: TextFisher) -> Self:
        """Returns this strategy with the Fisher of the pretrained weights."""
        new = self.model_copy()
        new._fisher = text_fisher(self.raw_text, self.fisher_examples)
        return new

    def check(self, course: Course) -> None:
        """Refuses to train without a Fisher.

        Raises:
            ValueError: If the strategy was not `prepared`.
        """
        if self._fisher is None:
            raise InputError(
                "The strategy ewc_pretraining needs `pretraining_fisher`, see "
                "lrdist_keras.training.mlm_fisher. Received: None"
            )

    def begin(self, course: Course) -> QuadraticPenalty:
        """Returns the penalty around the pretrained weights."""
        from lrdist_keras.training.course import copied
        from lrdist_keras.training.penalties import QuadraticPenalty

        assert self._fisher is not None  # `check` has seen to it
        fisher, strength = copied(self._fisher), np.float32(self.strength)
        return QuadraticPenalty(fisher, course.copied_weights(), strength)


class L2Sp(_Penalised):
    """L2 around the pretrained weights, and plain L2 on the head (arXiv 1802.01483).

    Args:
        strategy: Its name.
        strength: Alpha, of the encoder, 0.1 in the paper.
        head_strength: Beta, of the head, 0.01 in the paper.
    """

    strategy: Literal["l2_sp"] = "l2_sp"
    strength: Strength = 0.1
    head_strength: Strength = 0.01

    def begin(self, course: Course) -> QuadraticPenalty:
        """Returns the penalty around the pretrained weights."""
        from lrdist_keras.training.penalties import l2_sp

        pretrained = course.evaluator.step.encoder.weights
        return l2_sp(pretrained, 2, self.strength, self.head_strength)


class RecAdam(Strategy):
    """Training that fades in while a pull to the weights before fades out.

    See `lrdist_keras.training.penalties.AnnealedPull` (arXiv 2004.12651).

    Args:
        strategy: Its name.
        strength: Gamma, 5000 in the paper.
        midpoint: Share of a task's steps at which the pull and the training weigh the
            same; the paper counts steps (250 of them, or others).
        steepness: How fast the one gives way to the other, per task.
    """

    largest_rate_times_strength: ClassVar[float] = 1.0
    strategy: Literal["recadam"] = "recadam"
    strength: Strength = 5000.0
    midpoint: Share = 0.25
    steepness: float = Field(default=20.0, gt=0, le=1e6)

    def check(self, course: Course) -> None:
        """Refuses a rate and a strength that overshoot.

        Raises:
            Overshoot: If their product is above 1.
        """
        largest = max(rates.reference_rate for rates in course.planned)
        if (factor := largest * self.strength) > self.largest_rate_times_strength:
            raise Overshoot(
                "largest learning rate x `strength` must be at most 1, or the pull of "
                "recadam overshoots its anchor; lower one of them. Received: "
                f"{factor:g}"
            )

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the training of a task with the pull to the weights before it."""
        from lrdist_keras.training.penalties import AnnealedPull

        numbers = map(np.float32, (self.strength, self.midpoint, self.steepness))
        pull = AnnealedPull(course.copied_weights(), *numbers)
        return [replace(course.plain(task), terms=Terms(pull=pull))]


def _penalty_now(course: Course, task: int, strength: float) -> QuadraticPenalty:
    """Returns the penalty of a task that has just been trained."""
    from lrdist_keras.training.penalties import QuadraticPenalty

    fisher = course.fisher(task)
    return QuadraticPenalty(fisher, course.copied_weights(), np.float32(strength))
