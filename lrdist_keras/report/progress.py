"""The progress of comparisons and searches, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lrdist_keras.printable import printable


def run_search(prepared: Any) -> None:
    """Runs the trials under a table of the best and a progress bar.

    Each that is finished gets a line too.
    """
    from lrdist_keras.report.tables import trials_table

    oracle, spent = prepared.oracle, 0.0
    budget = prepared.configuration.search.budget
    full = prepared.steps(1.0)
    above: list[Any] = []

    def best() -> str:
        """The best full run so far; that of others a worker does not know."""
        rewards = [r["reward"] for r in prepared.rows() if r["budget"] == 1]
        return f", best {max(rewards):.3f}" if rewards else ""

    with _progress(above) as progress:
        bar = progress.add_task("", total=round(budget * full))

        def started(trial: Any) -> None:
            values = trial.hyperparameters.values
            rows = prepared.rows()
            above[:] = [trials_table(rows, "Best trials so far", 5)] if rows else []
            above.append(
                f"trial {trial.trial_id}, bracket {values['tuner/bracket']}, rung "
                f"{values['tuner/round']}, budget {oracle.budget(trial):.2f}{best()}"
            )
            done = round((max(oracle.spent, spent) - oracle.budget(trial)) * full)
            progress.update(bar, completed=max(done, 0))

        def ended(trial: Any) -> None:
            nonlocal spent
            spent += oracle.budget(trial)
            known = oracle.trials.get(trial.trial_id, trial)
            if known.score is None:
                print(f"trial {trial.trial_id}: {known.status.lower()}", flush=True)
                return
            names = ("a1", "p_s", "p_o", "seconds", "compilations")
            found = {name: known.metrics.get_best_value(name) for name in names}
            accuracies = ", ".join(f"{name} {found[name]:.3f}" for name in names[:3])
            print(
                f"trial {trial.trial_id}, budget {oracle.budget(trial):.2f}, seed "
                f"{known.hyperparameters.values['tuner/seed']}: "
                f"{accuracies}, reward {known.score:.3f}{best()}; "
                f"{found['seconds']:.0f} s, {found['compilations']:.0f} compilations; "
                f"{oracle.spent:.1f} of {budget:g} runs",
                flush=True,
            )
            prepared.save_results()

        prepared.run(started, lambda n: progress.advance(bar, n), ended)


def _progress(above: Sequence[Any] = ()) -> Any:
    """A progress bar with an estimate of what is left; none where no one looks.

    Args:
        above: What is shown above the bar, at any moment.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Bar(Progress):
        def get_renderables(self) -> Iterator[Any]:
            yield from above
            yield from super().get_renderables()

    console = Console(stderr=True)
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        speed_estimate_period=600,  # seconds: between steps there are evaluations
        disable=not console.is_terminal,
    )


def run_training(prepared: Any) -> Any:
    """Trains and saves one model under a progress bar; returns the run."""
    with _progress() as progress:
        bar = progress.add_task("training", total=prepared.steps)
        return prepared.run(lambda n: progress.advance(bar, n))


def run_comparison(
    prepared: Any, pending: list, keep: Any = None
) -> list[dict[str, Any]]:
    """Does the runs under a progress bar, with a line for each that is finished."""
    progress = _progress()
    total = sum(prepared.steps(sequence, arm) for sequence, arm, _ in pending)
    skipped = (
        len(prepared.configuration.seeds)
        * len(prepared.configuration.sequences)
        * len(prepared.configuration.arms)
    ) - len(pending)
    if skipped:
        print(f"{skipped} runs are done already, {len(pending)} are left.", flush=True)
    done = 0
    with progress:
        bar = progress.add_task("", total=total)

        def started(sequence: Any, arm: Any, seed: int) -> None:
            text = f"run {done + 1}/{len(pending)}: {printable(arm.name)}, seed {seed}"
            progress.update(bar, description=text)

        def finished(record: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            values = ", ".join(
                f"{name} {record[name]:.3f}"
                for name in ("a1", "p_s", "p_o")
                if record[name] is not None
            )
            print(
                f"[{done}/{len(pending)}] {printable(record['sequence'])}, "
                f"{printable(record['arm'])}, seed {record['seed']}: {values}"
                f"{_fate(record)}; "
                f"{record['seconds']:.0f} s, "
                f"{record['examples_per_second']:.0f} examples/s, "
                f"{record['compilations']} compilations",
                flush=True,
            )

        return prepared.run(started, lambda n: progress.advance(bar, n), finished, keep)


def _fate(record: dict[str, Any]) -> str:
    if record.get("diverged"):
        return " (diverged: weights or moments are not finite)"
    return "" if record["learned"] else " (did not learn)"
