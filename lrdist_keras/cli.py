"""The commands of `lrdist`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

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
        from lrdist_keras import comparison, report, statistics

        prepared = comparison.prepare(configuration, folder)
        pending = prepared.pending()
    console = _console()
    classes = [task.classes for task in prepared.tasks.values()]
    groups = prepared.trainer.group_table(classes)
    for table in report.group_tables(groups, prepared.distributions):
        console.print(table)
    with _input_errors((OSError,)):
        records = _run(prepared, pending)
        summaries = statistics.summarize(records)
        prepared.save_results(records)
        console.print(report.results_table(summaries, configuration.name))
        report.save_picture(folder / "comparison.png", records, prepared.distributions)
    print(f"Results: {folder}/results.json, {folder}/comparison.png")


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
        from lrdist_keras.models import find_preset, load_encoder
        from lrdist_keras.report import group_tables
        from lrdist_keras.training import SequentialTrainer

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
    """Prints a distribution, or the table of a comparison."""
    with _input_errors():
        from lrdist_keras import report

        if Path(what).is_dir():
            from lrdist_keras.comparison import read_runs
            from lrdist_keras.statistics import summarize

            records = read_runs(what)
            if not records:
                raise ValueError(f"The folder '{what}' holds no finished runs.")
            table = report.results_table(summarize(records), what)
        else:
            from lrdist_keras.distribution import get

            table = report.distribution_table(get(what), what)
    _console().print(table)


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
) -> None:
    """Combines the trials of several task pairs into one distribution."""
    with _input_errors():
        from lrdist_keras import distribution, report
        from lrdist_keras.groups import Scheme

        given = None if scheme is None else Scheme.parse(scheme)
        pairs = [
            distribution.ranked_combination(distribution.read_trials(path, given), base)
            for path in trials
        ]
        combined = distribution.combine_pairs(pairs)
        spread = distribution.spread(pairs)
        combined.save(out)
    _console().print(report.spread_table(combined, pairs, spread))
    wide = [name for name, factor in spread.items() if factor > report.SPREAD_LIMIT]
    if wide:
        print(
            "lrdist: warning: the pairs lie more than a factor "
            f"{report.SPREAD_LIMIT:g} apart in {', '.join(wide)}; their mean says "
            "little there.",
            file=sys.stderr,
        )
    print(f"Written: {out}")


def _run(prepared: Any, pending: list) -> list[dict[str, Any]]:
    """Does the runs under a progress bar, with a line for each that is finished."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    progress = Progress(
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
        disable=not console.is_terminal,
    )
    total = sum(prepared.steps(sequence) for sequence, _, _ in pending)
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
