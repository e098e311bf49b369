"""The commands that train nothing: `check`, `groups`, `show` and `combine`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lrdist_keras.commands.common import (
    OverridesOption,
    input_errors,
    new_console,
    print_compat,
    print_statistics,
)
from lrdist_keras.errors import InputError

if TYPE_CHECKING:
    from lrdist_keras.settings import ModelSettings


def check(
    config: Annotated[Path, typer.Argument(help="A configuration file (TOML).")],
    overrides: OverridesOption = None,
    every: Annotated[bool, typer.Option("--all", help="List every row.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all of it, with every row."),
    ] = None,
) -> None:
    """Checks the data of a configuration; exits with 2 where it must be mended."""
    with input_errors():
        from lrdist_keras import config as config_file
        from lrdist_keras._storage import write_text
        from lrdist_keras.laboratory import checking
        from lrdist_keras.report import check_tables

        configuration = config_file.load(config, overrides or [])
        found = checking.check(configuration)
        if to is not None:
            write_text(to, json.dumps(found.to_json(), indent=1) + "\n")
    console, most = new_console(), None if every else 20
    for table in check_tables.tables(found):
        console.print(table)
    console.print(check_tables.findings_text(found, most), soft_wrap=True)
    raise typer.Exit(2 if found.errors else 0)


def groups(
    preset: Annotated[
        str, typer.Argument(help="KerasHub name, folder, or package://module/folder.")
    ],
    encoder_groups: Annotated[
        int | None, typer.Option(help="Encoder groups, 8 if not given.")
    ] = None,
    rounding: Annotated[
        str | None, typer.Option(help="floor, if not given, or ceil.")
    ] = None,
    layer_groups: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Instead of both: layers of each encoder group, such as 1,2,9.",
        ),
    ] = None,
) -> None:
    """Prints the groups of a pretrained model."""
    with input_errors():
        from lrdist_keras.models.encoder import find_preset, load_encoder, scheme_of
        from lrdist_keras.report.tables import group_tables
        from lrdist_keras.settings import TrainingSettings
        from lrdist_keras.training.trainer import SequentialTrainer

        settings = _model_settings(preset, encoder_groups, rounding, layer_groups)
        encoder = load_encoder(find_preset(settings))
        scheme = scheme_of(encoder, settings)
        trainer = SequentialTrainer(encoder, TrainingSettings(), scheme)
    console = new_console()
    (table,) = group_tables(trainer.group_table([2]), {})
    table.title = (
        f"{encoder.family}, scheme {trainer.scheme}, with a new head for 2 classes, "
        "not yet trained"
    )
    console.print(table)


def _model_settings(
    preset: str,
    encoder_groups: int | None,
    rounding: str | None,
    layer_groups: str | None,
) -> ModelSettings:
    """Returns the section `[model]` that says what these options say.

    Raises:
        InputError: If a value breaks a rule; the message names the option.
    """
    from pydantic import ValidationError

    from lrdist_keras.settings import ModelSettings

    given: dict[str, Any] = {"encoder_groups": encoder_groups, "rounding": rounding}
    if layer_groups is not None:
        try:
            given["layer_groups"] = tuple(map(int, layer_groups.split(",")))
        except ValueError:
            raise InputError(
                "--layer-groups must be the number of layers of each encoder group, "
                f"joined by commas, such as 1,2,9. Received: {layer_groups!r}"
            ) from None
    content = {key: value for key, value in given.items() if value is not None}
    try:
        return ModelSettings.model_validate({"preset": preset, **content})
    except ValidationError as error:
        problem = error.errors()[0]
        where = [str(part).replace("_", "-") for part in problem["loc"][:1]]
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(
            f"--{where[0]}: {message}. Received: {problem['input']!r}"
            if where
            else message
        ) from None


def show(
    what: Annotated[
        str, typer.Argument(help="A distribution (file or preset), or a run's folder.")
    ],
) -> None:
    """Prints a distribution, or what a comparison or a search found."""
    with input_errors():
        if not Path(what).is_dir():
            _show_distribution(what, what)
        elif (Path(what) / "runs.jsonl").is_file():
            _show_comparison(Path(what))
        elif (Path(what) / "distribution.json").is_file():
            for name, title in (
                ("distribution.json", "Ranked combination of the trials"),
                ("best.json", "Best setting"),
            ):
                _show_distribution(str(Path(what) / name), title)
        else:
            raise InputError(
                f"The folder '{what}' holds no finished run of a comparison and no "
                "finished trial of a search."
            )


def _show_distribution(what: str, title: str) -> None:
    from lrdist_keras.distribution import get
    from lrdist_keras.report import tables

    distribution = get(what)
    new_console().print(tables.distribution_table(distribution, title))
    compat = distribution.provenance.get("compat")
    print_compat(compat if isinstance(compat, list) else [])


def _show_comparison(folder: Path) -> None:
    from lrdist_keras.laboratory.records import read_runs
    from lrdist_keras.laboratory.results import ordered
    from lrdist_keras.laboratory.run_folder import read_configuration
    from lrdist_keras.laboratory.summaries import summarize
    from lrdist_keras.report import comparison_tables, tables

    configuration = read_configuration(folder)
    # As in results.json: runs of seeds that are no longer asked for do not count.
    records = ordered(configuration, read_runs(folder))
    if not records:
        raise InputError(f"The folder '{folder}' holds no finished runs.")
    console = new_console()
    console.print(tables.results_table(summarize(records), str(folder)))
    for table in comparison_tables.measures_tables(records):
        console.print(table)
    print_statistics(configuration, records)
    print_compat(configuration.compat)


def combine(
    trials: Annotated[
        list[Path], typer.Argument(help="Trials files or run folders, one per pair.")
    ],
    out: Annotated[Path, typer.Option(help="The distribution file to write.")],
    base: Annotated[float, typer.Option(help="Weights are base^-rank.")] = 1.8,
    mean: Annotated[
        str,
        typer.Option(
            help="geometric, as in the paper, or arithmetic: of the ranked trials of "
            "each pair, and of the pairs."
        ),
    ] = "geometric",
    scheme: Annotated[
        str | None,
        typer.Option(
            help="layers/groups/rounding, or such as 12/1-2-9; if no scheme.json lies "
            "beside."
        ),
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
    with input_errors():
        from lrdist_keras import distribution
        from lrdist_keras.groups import Scheme
        from lrdist_keras.report import tables
        from lrdist_keras.search.trials import ranked_combination, read_trials

        _check_repeated(trials)
        given = None if scheme is None else Scheme.parse(scheme)
        kind = cast(distribution.Mean, mean)  # `mean_rates` refuses what is none
        pairs = [
            ranked_combination(read_trials(path, given), base, kind)
            for path in _without(trials, leave_out or [])
        ]
        combined = distribution.combine_pairs(pairs, kind)
        spread = distribution.spread(pairs)
        combined.save(out)
    new_console().print(tables.spread_table(combined, pairs, spread))
    if len(pairs) == 1:
        print(
            "lrdist: warning: one pair alone is combined with nothing; what is written "
            "are its own rates.",
            file=sys.stderr,
        )
    wide = [name for name, factor in spread.items() if factor > tables.SPREAD_LIMIT]
    if wide:
        print(
            "lrdist: warning: the pairs lie more than a factor "
            f"{tables.SPREAD_LIMIT:g} apart in {', '.join(wide)}; their mean says "
            "little there.",
            file=sys.stderr,
        )
    print(f"Written: {out}")


def _check_repeated(trials: list[Path]) -> None:
    """Raises InputError if a pair is named twice, which would count twice."""
    places = [
        (path / "trials.csv" if path.is_dir() else path).resolve() for path in trials
    ]
    repeated = sorted({str(p) for p in places if places.count(p) > 1})
    if repeated:
        raise InputError(
            "Each pair may be named once, since it would count twice. Named twice: "
            + ", ".join(repeated)
        )


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
