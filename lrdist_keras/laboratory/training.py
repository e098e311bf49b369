"""One run whose model is kept: from configuration to the folder of a trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.errors import InputError
from lrdist_keras.laboratory import loading
from lrdist_keras.laboratory.arms import for_run
from lrdist_keras.laboratory.comparison import Comparison, assembled
from lrdist_keras.laboratory.saving import KeptModel, check_new, save_model
from lrdist_keras.printable import printable
from lrdist_keras.settings import nearest
from lrdist_keras.training.run import Observer, Run


@dataclass(frozen=True)
class Training:
    """A run that is ready to begin: everything in it has been checked.

    Args:
        comparison: What it would be a comparison of: this arm, this sequence, this
            seed. Its numbers are the same there.
        folder: Where the model is to lie.
    """

    comparison: Comparison
    folder: Path

    @property
    def sequence(self) -> SequenceSettings:
        """What is trained one after the other."""
        return self.comparison.configuration.sequences[0]

    @property
    def arm(self) -> ArmSettings:
        """How it is trained."""
        return self.comparison.configuration.arms[0]

    @property
    def seed(self) -> int:
        """What everything random follows from."""
        return self.comparison.configuration.seeds[0]

    @property
    def steps(self) -> int:
        """Its training steps."""
        return self.comparison.steps(self.sequence, self.arm)

    def run(self, on_steps: Callable[[int], None] = lambda steps: None) -> Run:
        """Trains, saves the model, and returns what the run gave.

        Args:
            on_steps: Called with the number of training steps just done.

        Raises:
            InputError: If the run diverged, or the folder is no longer new.
            OSError: If the folder cannot be written.
        """
        comparison, arm = self.comparison, self.arm
        tasks = comparison.tasks[self.sequence.name]
        strategy = comparison.strategies[arm.name]
        kept = KeptModel(len(tasks), strategy)
        run = comparison.trainer.run(
            tasks,
            for_run(arm, comparison.rates[arm.name], len(tasks)),
            strategy,
            self.seed,
            observer=Observer(on_steps, kept.after_task),
        )
        found = comparison.trained(self.sequence, arm, self.seed, run, kept)
        save_model(found, self.folder)
        return run


def prepare(
    configuration: Configuration,
    arm: str | None,
    sequence: str | None,
    seed: int | None,
    folder: Path,
) -> Training:
    """Loads and checks all that the training of one arm needs.

    Args:
        configuration: What it is part of.
        arm: Name of the arm; not needed where there is one.
        sequence: Name of the sequence; not needed where there is one.
        seed: The seed; the first of the configuration if not given.
        folder: Where the model is to lie, a new or empty folder.

    Raises:
        ValueError: If an input breaks a rule.
        OSError: If an input is missing.
    """
    check_new(folder)
    configuration = loading.resolved(configuration)
    chosen_arm = _chosen(configuration.arms, arm, "arm")
    chosen = _chosen(configuration.sequences, sequence, "sequence")
    narrow: dict[str, Any] = {
        "arms": [chosen_arm],
        "sequences": [chosen],
        "seeds": [configuration.seeds[0] if seed is None else seed],
    }
    return Training(assembled(configuration.model_copy(update=narrow), folder), folder)


def _chosen(entries: Sequence[Any], name: str | None, what: str) -> Any:
    names = [entry.name for entry in entries]
    known = ", ".join(repr(printable(n)) for n in names) or "none"
    if name is None and len(entries) == 1:
        return entries[0]
    if name is None:
        raise InputError(
            f"The configuration has {len(entries)} {what}s; name one with --{what}. "
            f"There are: {known}"
        )
    if name not in names:
        raise InputError(
            f"--{what} must be one of the configuration{nearest(name, names)}. "
            f"There are: {known}. Received: '{printable(name)}'"
        )
    return entries[names.index(name)]
