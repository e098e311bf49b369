"""LoRA: low-rank adapters are trained, the pretrained weights stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from lrdist_keras.training.run import Purpose
from lrdist_keras.training.strategies.base import Strategy

if TYPE_CHECKING:
    from lrdist_keras.models.encoder import Encoder
    from lrdist_keras.training.course import Course


class Lora(Strategy):
    """Trains adapters of the query and value projections (arXiv 2106.09685).

    Args:
        strategy: Its name.
        rank: Rank of the adapters, 8 in the paper's tables of GLUE.
    """

    adapts_the_encoder: ClassVar[bool] = True
    strategy: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)

    def encoder(self, pretrained: Encoder) -> Encoder:
        """Returns the encoder with adapters.

        Raises:
            ValueError: If it has no projections that can take them.
        """
        from lrdist_keras.models.pooler import adapted

        return adapted(pretrained, self.rank)

    def begin(self, course: Course) -> None:
        """Draws new adapters."""
        from lrdist_keras.models.pooler import drawn_adapters

        rng = course.rng(Purpose.ADAPTERS)
        course.restart(drawn_adapters(course.evaluator.step.encoder, rng))
