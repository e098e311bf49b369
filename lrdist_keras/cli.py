"""The commands of `lrdist`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lrdist_keras.machine import take_large_pages

app = typer.Typer(
    help="Learning-rate distributions for fine-tuning transformers without forgetting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides an entry of CONFIG."),
]


def main() -> None:
    """Runs `lrdist`."""
    take_large_pages()
    # Training runs on JAX; Keras reads its choice when it is first imported.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app()


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="A configuration file (TOML).")],
    overrides: OverridesOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results [runs/NAME].")
    ] = None,
) -> None:
    """Trains every arm on every sequence with every seed, and compares them.

    Killed and started again, it skips the runs that are done.
    """
    with _input_errors():
        from lrdist_keras import config as config_file

        configuration = config_file.load(config, overrides or [])
        folder = out or Path("runs") / configuration.name
        from lrdist_keras.laboratory import comparison, statistics
        from lrdist_keras.report import comparison_tables, figures, tables

        prepared = comparison.prepare(configuration, folder)
        pending = prepared.pending()
    console = _console()
    classes = {
        task.name: task.classes for tasks in prepared.tasks.values() for task in tasks
    }
    groups = prepared.trainer.group_table(list(classes.values()))
    for table in tables.group_tables(groups, prepared.distributions):
        console.print(table)
    console.print(tables.labels_table(prepared.labels))
    with _input_errors((OSError,)):
        records = _run(prepared, pending)
        summaries = statistics.summarize(records)
        prepared.save_results(records)
        console.print(tables.results_table(summaries, configuration.name))
        for table in comparison_tables.measures_tables(records):
            console.print(table)
        _print_statistics(configuration, records)
        figures.save_picture(
            folder / "comparison.png",
            records,
            prepared.distributions,
            configuration.compat,
        )
        written = ["results.json", "comparison.png"]
        if any("drift" in r or "similarity" in r for r in records):
            figures.save_drift_picture(folder / "drift.png", records)
            written.append("drift.png")
    _print_compat(configuration.compat)
    print("Results:", ", ".join(f"{folder}/{name}" for name in written))
    _print_compilations()


@app.command()
def search(
    config: Annotated[Path, typer.Argument(help="A configuration file (TOML).")],
    overrides: OverridesOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results [runs/NAME].")
    ] = None,
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
    with _input_errors():
        from lrdist_keras import config as config_file

        configuration = config_file.load(config, overrides or [])
        folder = out or Path("runs") / configuration.name
        from lrdist_keras.report import figures, tables
        from lrdist_keras.search import distributed, search
        from lrdist_keras.search.oracle import SearchFailed
        from lrdist_keras.search.trials import correlations, read_trials

        if chief is None:
            chief, worker = distributed.from_environment()
        if worker and chief is None:
            raise ValueError("--worker needs the chief's address: --chief HOST:PORT.")
        if chief is not None:
            distributed.parse_address(chief)
        if worker and chief is not None:
            distributed.become_worker(chief)
            folder = folder / "worker"
        prepared = search.prepare(configuration, folder)
    with _input_errors((OSError, SearchFailed)):
        if worker:
            _search(prepared)
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
            _search(prepared)
        distribution = prepared.save_results()
        rows = prepared.rows()
        if distribution is None:
            raise OSError(f"No trial of the search in '{folder}' was finished.")
        trials = read_trials(folder)
        figures.save_search_picture(
            folder / "search.png", rows, trials, distribution, configuration.compat
        )
    console = _console()
    console.print(tables.trials_table(rows, "Best trials", 8))
    console.print(tables.correlations_table(correlations(rows)))
    title = f"{configuration.name}: ranked combination"
    console.print(tables.distribution_table(distribution, title))
    _print_compat(configuration.compat)
    print(
        f"Results: {folder}/distribution.json (the combination), best.json (the best "
        "setting), trials.csv, search.json, search.png"
    )
    _print_compilations()


@app.command()
def groups(
    preset: Annotated[
        str, typer.Argument(help="KerasHub name, folder, or package://module/folder.")
    ],
    encoder_groups: Annotated[int, typer.Option(help="Encoder groups.")] = 8,
    rounding: Annotated[str, typer.Option(help="floor or ceil.")] = "floor",
) -> None:
    """Prints the groups of a pretrained model."""
    with _input_errors():
        from pydantic import ValidationError

        from lrdist_keras.config import ModelSettings, TrainingSettings
        from lrdist_keras.models.encoder import find_preset, load_encoder
        from lrdist_keras.report.tables import group_tables
        from lrdist_keras.training.trainer import SequentialTrainer

        try:
            settings = ModelSettings.model_validate(
                {
                    "preset": preset,
                    "encoder_groups": encoder_groups,
                    "rounding": rounding,
                }
            )
        except ValidationError as error:
            problem = error.errors()[0]
            raise ValueError(
                f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}. "
                f"Received: {problem['input']!r}"
            ) from None
        encoder = load_encoder(find_preset(settings))
        trainer = SequentialTrainer(
            encoder, TrainingSettings(), encoder_groups, settings.rounding
        )
    console = _console()
    (table,) = group_tables(trainer.group_table([2]), {})
    table.title = (
        f"{encoder.family}, scheme {trainer.scheme}, with a head for 2 classes"
    )
    console.print(table)


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="A distribution (file or preset), or a run's folder.")
    ],
) -> None:
    """Prints a distribution, or the tables of a comparison."""
    with _input_errors():
        from lrdist_keras.report import comparison_tables, tables

        if Path(what).is_dir():
            from lrdist_keras.config import Configuration
            from lrdist_keras.laboratory.run_folder import read_runs
            from lrdist_keras.laboratory.statistics import summarize

            records = read_runs(what)
            if not records:
                raise ValueError(f"The folder '{what}' holds no finished runs.")
            console = _console()
            console.print(tables.results_table(summarize(records), what))
            for table in comparison_tables.measures_tables(records):
                console.print(table)
            text = (Path(what) / "configuration.json").read_text("utf-8")
            configuration = Configuration.model_validate_json(text)
            _print_statistics(configuration, records)
            _print_compat(configuration.compat)
        else:
            from lrdist_keras.distribution import get

            distribution = get(what)
            _console().print(tables.distribution_table(distribution, what))
            compat = distribution.provenance.get("compat")
            _print_compat(compat if isinstance(compat, list) else [])


@app.command()
def combine(
    trials: Annotated[
        list[Path], typer.Argument(help="Trials files or run folders, one per pair.")
    ],
    out: Annotated[Path, typer.Option(help="The distribution file to write.")],
    base: Annotated[float, typer.Option(help="Weights are base^-rank.")] = 1.8,
    scheme: Annotated[
        str | None,
        typer.Option(help="layers/groups/rounding, if no scheme.json lies beside."),
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PAIR", help="One of TRIALS that is left out; by its path or name."
        ),
    ] = None,
) -> None:
    """Combines the trials of several task pairs into one distribution.

    With --leave-out a pair does not count: what the others say can then be tried on it.
    """
    with _input_errors():
        from lrdist_keras import distribution
        from lrdist_keras.groups import Scheme
        from lrdist_keras.report import tables
        from lrdist_keras.search.trials import ranked_combination, read_trials

        given = None if scheme is None else Scheme.parse(scheme)
        pairs = [
            ranked_combination(read_trials(path, given), base)
            for path in _without(trials, leave_out or [])
        ]
        combined = distribution.combine_pairs(pairs)
        spread = distribution.spread(pairs)
        combined.save(out)
    _console().print(tables.spread_table(combined, pairs, spread))
    wide = [name for name, factor in spread.items() if factor > tables.SPREAD_LIMIT]
    if wide:
        print(
            "lrdist: warning: the pairs lie more than a factor "
            f"{tables.SPREAD_LIMIT:g} apart in {', '.join(wide)}; their mean says "
            "little there.",
            file=sys.stderr,
        )
    print(f"Written: {out}")


def _without(trials: list[Path], leave_out: list[str]) -> list[Path]:
    """Returns the trials files but for those that are named by path, name or stem."""
    kept = list(trials)
    for wanted in leave_out:
        found = [p for p in trials if wanted in (str(p), p.name, p.stem)]
        if len(found) != 1:
            raise ValueError(
                "--leave-out must name one of the trials files by its path or name. "
                f"Received: '{wanted}', which names {len(found)} of "
                f"{[str(p) for p in trials]}"
            )
        kept.remove(found[0])
    return kept


def _print_compilations() -> None:
    from lrdist_keras.training.compiler import compilations

    print(f"Programs: {compilations.compiled} compiled, {compilations.cached} cached")


def _print_statistics(configuration: Any, records: list[dict[str, Any]]) -> None:
    """Prints the tables of differences, or one line that says why there are none."""
    from lrdist_keras.laboratory.comparison import paired_statistics
    from lrdist_keras.laboratory.statistics import NoStatistics
    from lrdist_keras.report import comparison_tables

    try:
        found = paired_statistics(configuration, records)
    except NoStatistics as error:
        print(f"No statistics: {error}")
        return
    console = _console()
    for table in comparison_tables.statistics_tables(found):
        console.print(table)
    if found.equal_p_s is None:
        print(
            "No comparison at equal p_s: the flat-rate curve takes at least two flat "
            "arms, of strategy plain with one `rate` and no `decay`."
        )


def _print_compat(compat: Sequence[str]) -> None:
    """Prints the line that names the faults that were on, if any was."""
    from lrdist_keras.report.tables import compat_line

    if line := compat_line(compat):
        print(line)


def _search(prepared: Any) -> None:
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
        TextColumn("{task.description}"),
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


def _run(prepared: Any, pending: list) -> list[dict[str, Any]]:
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
            text = f"run {done + 1}/{len(pending)}: {arm.name}, seed {seed}"
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
                f"[{done}/{len(pending)}] {record['sequence']}, {record['arm']}, seed "
                f"{record['seed']}: {values}"
                f"{'' if record['learned'] else ' (did not learn)'}; "
                f"{record['seconds']:.0f} s, "
                f"{record['examples_per_second']:.0f} examples/s, "
                f"{record['compilations']} compilations",
                flush=True,
            )

        return prepared.run(started, lambda n: progress.advance(bar, n), finished)


@contextmanager
def _input_errors(
    kinds: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
) -> Iterator[None]:
    """Turns errors of these kinds into one line on stderr and exit code 2."""
    try:
        yield
    except kinds as error:
        print("lrdist: error:", " ".join(str(error).split()), file=sys.stderr)
        raise typer.Exit(2) from None


def _console() -> Any:
    from rich.console import Console

    return Console()
