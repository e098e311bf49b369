"""The commands of `lrdist`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from lrdist_keras.errors import InputError, SearchFailed
from lrdist_keras.machine import take_large_pages
from lrdist_keras.report.progress import run_comparison, run_search

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
    try:
        app()
    except Exception:
        traceback.print_exc()
        print(
            "lrdist: this is a fault of lrdist_keras, not of your input. Please report "
            "it with the traceback above, the command and the configuration.",
            file=sys.stderr,
        )
        sys.exit(1)


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
    with _input_errors():
        records = run_comparison(prepared, pending)
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
    with _input_errors():
        if worker:
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
            run_search(prepared)
        distribution = prepared.save_results()
        rows = prepared.rows()
        if distribution is None:
            raise SearchFailed(f"No trial of the search in '{folder}' was finished.")
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
            raise InputError(
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
        f"{encoder.family}, scheme {trainer.scheme}, with a new head for 2 classes, "
        "not yet trained"
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
                raise InputError(f"The folder '{what}' holds no finished runs.")
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
            raise InputError(
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


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turns what the user can mend into one line on stderr and exit code 2."""
    try:
        yield
    except (InputError, SearchFailed, OSError) as error:
        text = str(error)
        if not isinstance(error, SearchFailed):  # which holds a traceback
            text = " ".join(text.split())
        print("lrdist: error:", text, file=sys.stderr)
        raise typer.Exit(2) from None


def _console() -> Any:
    from rich.console import Console

    return Console()
