"""What every strategy is: settings, and what it does in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from lrdist_keras.settings import Section
from lrdist_keras.training.plan import Stage, Visit

if TYPE_CHECKING:  # a configuration is read before JAX is there
    from lrdist_keras.models.encoder import Encoder
    from lrdist_keras.training.course import Course
    from lrdist_keras.training.run import TaskData

TextFisher = Callable[[str, int], Sequence[Any]]
# The factor of a penalty. Far above the limit the square of its gradient, which Adam
# keeps, would overflow in float32.
Strength = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class Strategy(Section):
    """What is done against forgetting beside the learning rates.

    A strategy is a value: its fields are what `[[arms]]` may say of it, beside
    `strategy`, its name. A new one is a file in this folder with a subclass that has a
    field `strategy: Literal["its name"]` and overrides what it does otherwise. What a
    run has to remember between tasks goes from one method to the next as `memory`: what
    `begin` or the last `after_task` returned. A task is evaluated after `after_task`.

    Args:
        frozen: Names of groups that are never trained, such as `embeddings`. What only
            they would need is not computed.
    """

    frozen: tuple[str, ...] = ()

    trains_a_sequence: ClassVar[bool] = True  # one task after the other, on one model
    is_plain: ClassVar[bool] = False  # whether nothing is done
    adapts_the_encoder: ClassVar[bool] = False  # whether it has its own `encoder`
    trains_plainly: ClassVar[bool] = False  # whether all its trainings are plain's
    estimates_fisher: ClassVar[bool] = False  # whether `course.fisher` is asked for
    moves_after_training: ClassVar[bool] = False  # whether `after_task` moves numbers
    # The most that a learning rate times `strength` may be.
    largest_rate_times_strength: ClassVar[float] = float("inf")

    @property
    def name(self) -> str:
        """What `strategy` is set to in a configuration."""
        return getattr(self, "strategy")  # noqa: B009

    @property
    def needs_earlier_examples(self) -> bool:
        """Whether training examples of a task are needed after it is trained."""
        return False

    @property
    def files(self) -> tuple[str, ...]:
        """Names of files that runs depend on, relative to `data.dir`."""
        return ()

    def plan(self, tasks: Sequence[TaskData]) -> list[Visit]:
        """Returns which task has its turn when, and how large its trainings are."""
        return [Visit(i, (task.size,)) for i, task in enumerate(tasks)]

    def check(self, course: Course) -> None:
        """Refuses what cannot be trained, before anything is.

        Raises:
            ValueError: If the model, the data or the rates do not allow it.
        """

    def begin(self, course: Course) -> Any:
        """Returns what is remembered before the first task."""
        return None

    def stages(self, course: Course, task: int, memory: Any) -> list[Stage]:
        """Returns the trainings of a task, one after the other."""
        return [course.plain(task)]

    def after_task(self, course: Course, task: int, memory: Any) -> Any:
        """Does what follows the training of a task; returns what is remembered."""
        return memory

    def encoder(self, pretrained: Encoder) -> Encoder:
        """Returns the encoder that is trained."""
        return pretrained

    def prepared(self, text_fisher: TextFisher) -> Self:
        """Returns this strategy with what it needs from files.

        Args:
            text_fisher: Estimates the diagonal Fisher of masked language modelling, one
                array per weight, from the name of a text file and a number of pieces
                of it. It may take minutes.
        """
        return self
