"""The commands that train: `compare`, `train` and `search`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lrdist_keras.commands.common import (
    OutOption,
    OverridesOption,
    input_errors,
    interruptible,
    new_console,
    print_compat,
    print_compilations,
    print_statistics,
)
from lrdist_keras.errors import InputError, SearchFailed
from lrdist_keras.report.progress import run_comparison, run_search, run_training


class SavedModels(StrEnum):
    """Which models a comparison keeps."""

    BEST = "best"
    ALL = "all"


def compare(
    config: Annotated[Path, typer.Argument(help="A configuration file (TOML).")],
    overrides: OverridesOption = None,
    out: OutOption = None,
    save_models: Annotated[
        SavedModels | None,
        typer.Option(
            help="Keep the models in models/ of the results, as `train` saves one: "
            "all, or of each sequence the best by p_s + p_o."
        ),
    ] = None,
) -> None:
    """Trains every arm on every sequence with every seed, and compares them.

    Killed and started again, it skips the runs that are done.
    """
    with input_errors():
        from lrdist_keras import config as config_file

        configuration = config_file.load(config, overrides or [])
        folder = out or Path("runs") / configuration.name
        from lrdist_keras.laboratory import comparison, summaries
        from lrdist_keras.report import comparison_tables, figures, tables

        prepared = comparison.prepare(configuration, folder)
        pending = prepared.pending()
    console = new_console()
    classes = {
        task.name: task.classes for tasks in prepared.tasks.values() for task in tasks
    }
    groups = prepared.trainer.group_table(list(classes.values()))
    shown = [
        arm.name + (" (first task)" if arm.rates_from else "")
        for arm in configuration.arms
    ]
    rates = dict(zip(shown, prepared.distributions.values(), strict=True))
    frozen = {arm.name: arm.strategy.frozen for arm in configuration.arms}
    still = dict(zip(shown, frozen.values(), strict=True))
    for table in tables.group_tables(groups, rates, still):
        console.print(table)
    console.print(tables.labels_table(prepared.labels))
    with input_errors():
        with interruptible():
            records = run_comparison(prepared, pending, keeper(folder, save_models))
        prepared.save_results(records)
        means = summaries.summarize(records)
        console.print(tables.results_table(means, configuration.name))
        for table in comparison_tables.measures_tables(records):
            console.print(table)
        print_statistics(configuration, records)
        figures.save_picture(
            folder / "comparison.png",
            records,
            prepared.distributions,
            configuration.compat,
            frozen,
        )
        written = ["results.json", "comparison.png"]
        if any("drift" in r or "similarity" in r for r in records):
            figures.save_drift_picture(folder / "drift.png", records)
            written.append("drift.png")
    print_compat(configuration.compat)
    print("Results:", ", ".join(f"{folder}/{name}" for name in written))
    if save_models is not None:
        _print_models(folder / "models")
    print_compilations()


def keeper(folder: Path, which: SavedModels | None) -> Any:
    """Returns who keeps the models of a comparison's runs; None for nobody."""
    from lrdist_keras.laboratory.saving import ModelKeeper

    return None if which is None else ModelKeeper(folder / "models", which.value)


def _print_models(folder: Path) -> None:
    saved = sorted(path.parent for path in folder.glob("*/model.json"))
    if saved:
        print("Models:", ", ".join(map(str, saved)))
    else:
        print("No model was saved: the runs were done before, or none learned.")


def train(
    config: Annotated[Path, typer.Argument(help="A configuration file (TOML).")],
    out: Annotated[Path, typer.Option(help="A new folder for the model.")],
    overrides: OverridesOption = None,
    arm: Annotated[
        str | None, typer.Option(help="Name of the arm, if there are several.")
    ] = None,
    sequence: Annotated[
        str | None, typer.Option(help="Name of the sequence, if there are several.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The seed [the configuration's first].")
    ] = None,
) -> None:
    """Trains one arm and saves its model: a classifier for each task.

    The numbers are those of the same run in `compare`.
    """
    with input_errors():
        from lrdist_keras import config as config_file

        configuration = config_file.load(config, overrides or [])
        from lrdist_keras.laboratory import training
        from lrdist_keras.report import trained_tables

        prepared = training.prepare(configuration, arm, sequence, seed, out)
        with interruptible("Nothing is saved; the same command begins again."):
            run = run_training(prepared)
    tasks = prepared.comparison.tasks[prepared.sequence.name]
    print(trained_tables.trained_sentence(run, tasks))
    new_console().print(trained_tables.trained_table(run, tasks))
    print_compat(configuration.compat)
    print(f"Saved: {out} (its README.md says how to use it)")
    print_compilations()


def search(
    config: Annotated[Path, typer.Argument(help="A configuration file (TOML).")],
    overrides: OverridesOption = None,
    out: OutOption = None,
    chief: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve workers at this address, train nothing."
        ),
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Train for the chief at --chief.")
    ] = False,
) -> None:
    """Searches a distribution for one sequence of tasks.

    Killed and started again, it goes on where it stood.
    """
    with input_errors():
        from lrdist_keras import config as config_file

        configuration = config_file.load(config, overrides or [])
        folder = out or Path("runs") / configuration.name
        from lrdist_keras.report import figures, tables
        from lrdist_keras.search import distributed, search
        from lrdist_keras.search.trials import correlations, read_trials

        if chief is None:
            chief, worker = distributed.from_environment()
        if worker and chief is None:
            raise InputError("--worker needs the chief's address: --chief HOST:PORT.")
        if chief is not None:
            distributed.parse_address(chief)
        if worker and chief is not None:
            distributed.become_worker(chief)
            folder = folder / "worker"
        prepared = search.prepare(configuration, folder)
    with input_errors():
        if worker:
            with interruptible():
                run_search(prepared)
            return
        if chief is not None:
            if distributed.is_open(chief):
                print(
                    f"lrdist: warning: {chief} can be reached from other machines, and "
                    "there is no authentication: whoever reaches it can take part.",
                    file=sys.stderr,
                )
            print(f"Serving workers at {chief}.", flush=True)
            prepared.serve(chief, prepared.save_results)
        else:
            with interruptible():
                run_search(prepared)
        distribution = prepared.save_results()
        rows = prepared.rows()
        if distribution is None:
            raise SearchFailed(f"No trial of the search in '{folder}' was finished.")
        trials = read_trials(folder)
        figures.save_search_picture(
            folder / "search.png", rows, trials, distribution, configuration.compat
        )
    console = new_console()
    console.print(tables.trials_table(rows, "Best trials", 8))
    console.print(tables.correlations_table(correlations(rows)))
    title = f"{configuration.name}: ranked combination"
    console.print(tables.distribution_table(distribution, title))
    print_compat(configuration.compat)
    print(
        f"Results: {folder}/distribution.json (the combination), best.json (the best "
        "setting), trials.csv, search.json, search.png"
    )
    print_compilations()
