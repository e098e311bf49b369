"""What a training is made of: its examples, its batches, and what it obeys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdist_keras.data.batches import (
    Encoded,
    Steps,
    buckets,
    filled,
    training_steps,
)
from lrdist_keras.distribution import Distribution
from lrdist_keras.settings import TrainingSettings

if TYPE_CHECKING:  # strategies plan trainings before JAX is there
    from lrdist_keras.training.frozen_groups import FrozenGroups
    from lrdist_keras.training.penalties import (
        AnnealedPull,
        DarkExperience,
        Distillation,
        QuadraticPenalty,
    )
    from lrdist_keras.training.token_rows import UsedRows


class Terms(NamedTuple):
    """What a training step obeys beside the likelihood of the labels.

    All numbers in it are arguments of the compiled step. A term that is None costs
    nothing.

    Args:
        penalty: On weights.
        pull: RecAdam's pull to the weights before.
        distillation: The distillation term of learning without forgetting.
        dark_experience: The terms of DER++, of the memory that each batch then has. A
            probe leaves them out.
        head_steps: For moments that go on from task to task: the steps done before on
            each active head, float32, shape [heads]. Adam corrects its bias by them.
        frozen: The groups that are not trained; None for none of them.
    """

    penalty: QuadraticPenalty | None = None
    pull: AnnealedPull | None = None
    distillation: Distillation | None = None
    dark_experience: DarkExperience | None = None
    head_steps: Any = None
    frozen: FrozenGroups | None = None


@dataclass(frozen=True)
class TrainingSet:
    """Examples that one training runs on.

    Args:
        encoded: Token ids and labels.
        head: Which of the active heads each example belongs to, int32, shape
            [examples]; None where there is one active head.
        teacher: For distillation: the old model's logits for each old head, each of
            shape [examples, classes].
        memory: Examples of earlier tasks, of which each batch has some beside its own.
        features: What the heads see of each example, where the encoder is not trained,
            float32, shape [examples, width]; batches then hold them and no tokens.
    """

    encoded: Encoded
    head: np.ndarray | None = None
    teacher: tuple[np.ndarray, ...] = ()
    memory: Memory | None = None
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def shown(self) -> Encoded:
        """All that a training shows to the encoder: the examples and the memory."""
        if self.memory is None:
            return self.encoded
        return mixed([self.encoded, self.memory.examples.encoded]).encoded

    def narrowed(self, rows: UsedRows) -> TrainingSet:
        """Returns the same examples, with the number of its row for each token."""
        memory = self.memory and self.memory.narrowed(rows)
        return replace(self, encoded=rows.narrowed(self.encoded), memory=memory)

    def arrays(self, indices: np.ndarray, length: int) -> dict[str, Any]:
        """Returns a batch, see `Encoded.arrays`, with each example's `head`.

        Where there is a memory, the batch has another one, `memory`, with an example
        for each of its own; a row of padding has padding there, too.
        """
        inputs: dict[str, Any] = (
            self.encoded.arrays(indices, length)
            if self.features is None
            else self._seen(indices, self.features)
        )
        if self.head is not None:
            inputs["head"] = self.head[indices]
        if self.teacher:
            inputs["teacher"] = [logits[indices] for logits in self.teacher]
        if self.memory is not None:
            inputs["memory"] = self.memory.arrays(indices)
        return inputs

    def _seen(self, indices: np.ndarray, features: np.ndarray) -> dict[str, Any]:
        real = indices >= 0
        rows = np.where(real, indices, 0)
        return {
            "features": features[rows],
            "labels": np.where(real, self.encoded.labels[rows], 0).astype(np.int32),
            "weights": real.astype(np.float32),
        }


@dataclass(frozen=True)
class Memory:
    """Examples of earlier tasks that batches of new examples have beside their own.

    Args:
        examples: They, with the head that each belongs to.
        drawn: Which of them goes with each of the new examples, int64, shape [new
            examples].
        length: Tokens per row, the same for all batches, so that few programs do.
    """

    examples: TrainingSet
    drawn: np.ndarray
    length: int

    def narrowed(self, rows: UsedRows) -> Memory:
        """Returns the same examples, with the number of its row for each token."""
        return replace(self, examples=self.examples.narrowed(rows))

    def arrays(self, indices: np.ndarray) -> dict[str, Any]:
        """Returns what goes with these new examples, see `TrainingSet.arrays`."""
        beside = np.where(indices >= 0, self.drawn[indices], -1)
        return self.examples.arrays(beside, self.length)


def mixed(parts: Sequence[Encoded]) -> TrainingSet:
    """Returns the examples of several tasks as one set; part i belongs to head i.

    With all of each task it is joint training, with a few of the earlier ones
    experience replay (arXiv 1902.10486, where batches are drawn from both; here an
    epoch takes every example once, and a batch whatever falls into it).
    """
    starts = np.cumsum([0, *[len(part.ids) for part in parts[:-1]]])
    offsets = [p.offsets[1:] + start for p, start in zip(parts, starts, strict=True)]
    return TrainingSet(
        Encoded(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([[0], *offsets]),
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.labels for part in parts]),
            parts[0].pad_id,
        ),
        np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts]),
    )


def _no_stops(total: int) -> set[int]:
    return set()


@dataclass(frozen=True)
class Stage:
    """One training of a task.

    Args:
        examples: What it runs on.
        active: The tasks whose heads are trained, in the order of `TrainingSet.head`.
        rates: Learning rates.
        terms: What it obeys beside the labels.
        probe: Whether the heads alone are trained.
        stops: From the number of its steps to those after which `at_stop` is asked.
        at_stop: From the weights to those that it goes on with.
    """

    examples: TrainingSet
    active: tuple[int, ...]
    rates: Distribution
    terms: Terms = Terms()
    probe: bool = False
    stops: Callable[[int], set[int]] = _no_stops
    at_stop: Callable[[Sequence[Any]], Sequence[Any]] | None = None

    def is_plain_of(self, task: int) -> bool:
        """Whether it is a training of a task on its labels alone, without more."""
        examples = self.examples
        return (
            self.active == (task,)
            and examples.head is None
            and not examples.teacher
            and examples.memory is None
            and all(term is None for term in self.terms)
            and not self.probe
            and self.at_stop is None
        )


@dataclass(frozen=True)
class Visit:
    """A task whose turn it is in a run.

    Args:
        task: Its number.
        examples: Number of training examples of each of its trainings.
        anew: Whether it begins with the pretrained weights.
    """

    task: int
    examples: tuple[int, ...]
    anew: bool = False


@dataclass(frozen=True)
class Part:
    """Some steps between two stops, ready for the device.

    Args:
        batches: Arrays of shape [steps per call, batch, …]; those behind `steps` are
            padding.
        steps: How many to do.
        examples: Training examples in them.
    """

    batches: dict[str, Any]
    steps: int
    examples: int


class Plan:
    """The batches of one training, in random order, epoch by epoch.

    Args:
        examples: What it runs on.
        settings: Size and length of batches.
        epochs: Passes over the examples.
        rng: What the order follows; None leaves the examples in their own.
    """

    def __init__(
        self,
        examples: TrainingSet,
        settings: TrainingSettings,
        epochs: int,
        rng: np.random.Generator | None,
    ) -> None:
        self.examples = examples
        self.settings = settings
        # Each is planned when its turn comes, and draws from the same generator.
        self._epochs = (
            training_steps(
                examples.encoded,
                buckets(settings.max_length, settings.row_lengths),
                settings.batch_size,
                settings.steps_per_call,
                rng,
            )
            for _ in range(epochs)
        )
        self._first = next(self._epochs, [])

    def shapes(self, total: int) -> Iterator[dict[str, Any]]:
        """Yields batches of padding, one of each shape that so many steps need."""
        nothing = np.zeros((0, self.settings.batch_size), int)
        # The batches of the other epochs are of the same lengths.
        for length in lengths(self._first, total):
            yield self._arrays(nothing, length)

    def parts(self, total: int, stops: Collection[int]) -> Iterator[Part]:
        """Yields the batches of so many steps, once, with an end at every stop."""
        done = 0
        later = itertools.chain.from_iterable(self._epochs)
        for call in itertools.chain(self._first, later):
            batches = call.indices
            while len(batches) and done < total:
                ends = [stop - done for stop in stops if stop > done]
                steps = min([len(batches), total - done, *ends])
                now, batches = batches[:steps], batches[steps:]
                arrays = self._arrays(now, call.length)
                yield Part(arrays, steps, int((now >= 0).sum()))
                done += steps

    def _arrays(self, batches: np.ndarray, length: int) -> dict[str, Any]:
        count = self.settings.steps_per_call
        return self.examples.arrays(filled(batches, count), length)


def lengths(calls: Iterable[Steps], steps: float = math.inf) -> list[int]:
    """Returns the lengths of the first so many batches, in the order of their use."""
    found: dict[int, None] = {}
    for call in calls:
        if steps > 0:
            found[call.length] = None
        steps -= len(call.indices)
    return list(found)
