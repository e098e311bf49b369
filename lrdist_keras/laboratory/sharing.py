"""Which trainings and Fishers the arms of a comparison have in common."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lrdist_keras.config import ArmSettings, Configuration, SequenceSettings
from lrdist_keras.laboratory.arms import Rates
from lrdist_keras.training.shared_results import SharedResults
from lrdist_keras.training.strategies.base import Strategy


@dataclass(frozen=True)
class Sharing:
    """Where runs find what they have in common with those of other arms.

    It says only what is worth keeping; whether two trainings are the same is decided by
    all that they depend on, see `SharedResults`.

    Args:
        folder: Where results lie, by number of the sequence and seed.
        configuration: What is compared.
        rates: Learning rates by name of the arm.
        strategies: Strategies by name of the arm.
        begun: Whether the first task is given or its training is shared by all, by name
            of the sequence.
    """

    folder: Path
    configuration: Configuration
    rates: Mapping[str, Rates]
    strategies: Mapping[str, Strategy]
    begun: Mapping[str, bool]

    def of_run(
        self, sequence: SequenceSettings, arm: ArmSettings, seed: int
    ) -> SharedResults | None:
        """Returns the common results of a run; None where no other arm has any."""
        others = [
            (self.rates[other.name], self.strategies[other.name])
            for other in self.configuration.arms
            if other is not arm
        ]
        rates, strategy = self.rates[arm.name], self.strategies[arm.name]
        begun = self.begun[sequence.name]
        begin_alike = [s for r, s in others if begun or r[0] == rates[0]]
        alike = [s for r, s in others if r == rates and s.frozen == strategy.frozen]
        trainings = 1 if begin_alike else 0
        if strategy.trains_plainly and any(s.trains_plainly for s in alike):
            trainings = sequence.parts
        fishers = strategy.estimates_fisher and any(
            s.estimates_fisher for s in begin_alike
        )
        if not trainings and not fishers:
            return None
        return SharedResults(self._folder(sequence, seed), trainings, fishers)

    def forget_all_but(
        self, pending: Iterable[tuple[SequenceSettings, ArmSettings, int]]
    ) -> None:
        """Removes what none of these runs can use."""
        wanted = {self._folder(sequence, seed).name for sequence, _, seed in pending}
        entries = list(self.folder.iterdir()) if self.folder.is_dir() else []
        for entry in entries:
            if entry.name not in wanted:
                shutil.rmtree(entry, ignore_errors=True)
        if not wanted:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _folder(self, sequence: SequenceSettings, seed: int) -> Path:
        number = self.configuration.sequences.index(sequence)
        return self.folder / f"{number}-{seed}"
