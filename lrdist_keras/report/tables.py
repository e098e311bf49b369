"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lrdist_keras.distribution import Distribution
from lrdist_keras.laboratory.summaries import Summary
from lrdist_keras.report.cells import caption, cell, empty_table, short, with_deviation
from lrdist_keras.search.trials import OF_TRIALS

if TYPE_CHECKING:  # shows a distribution without loading a model's libraries
    from lrdist_keras.data.shifts import LabelShares


_ARMS_PER_TABLE = 4
SPREAD_LIMIT = 3.0


def group_tables(
    groups: Sequence[tuple[str, int, int]],
    distributions: Mapping[str, Distribution],
    frozen: Mapping[str, Collection[str]] | None = None,
) -> list[Table]:
    """Returns the table of group, variables, parameters and each arm's rate.

    Arms with the same rates share a column; several tables where there are many arms.

    Args:
        groups: Name, variables and parameters of each group.
        distributions: Rates by name of the arm.
        frozen: Groups that arms do not train.
    """
    columns: dict[tuple[str, ...], list[str]] = {}
    for arm, distribution in distributions.items():
        still = (frozen or {}).get(arm, ())
        shown = [
            "frozen" if group in still else f"{rate:.2e}"
            for group, rate in distribution.rates.items()
        ]
        columns.setdefault(tuple(shown), []).append(arm)
    arms = [(", ".join(names), rates) for rates, names in columns.items()]
    parts = [
        arms[i : i + _ARMS_PER_TABLE] for i in range(0, len(arms), _ARMS_PER_TABLE)
    ]
    total = ("all", str(sum(g[1] for g in groups)), f"{sum(g[2] for g in groups):,}")
    tables = []
    for part in parts or [[]]:
        table = empty_table("Groups and their learning rates")
        table.add_column("group", no_wrap=True)
        table.add_column("variables", justify="right", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
        for arm, _ in part:
            table.add_column(cell(arm), justify="right", overflow="fold", min_width=8)
        for index, (name, variables, parameters) in enumerate(groups):
            rates_of = [rates[index] for _, rates in part]
            table.add_row(name, str(variables), f"{parameters:,}", *rates_of)
        table.add_row(*total, *[""] * len(part), style="bold")
        tables.append(table)
    return tables


def compat_line(compat: Sequence[str]) -> str:
    """Returns the line that names the faults that were on, empty where none was."""
    return f"compat: {', '.join(map(str, compat))}" if compat else ""


def results_table(summaries: Sequence[Summary], title: str) -> Table:
    """Returns the table of the metrics, mean ± standard deviation over the seeds."""
    table = empty_table(title)
    several = len({s.sequence for s in summaries}) > 1
    for heading in (*(["sequence"] if several else []), "arm"):
        table.add_column(heading, overflow="fold")
    for heading in ("a1", "p_s", "p_o", "p_s + p_o", "forgetting", "learned"):
        table.add_column(heading, justify="right", no_wrap=True)
    for s in summaries:
        cells = [with_deviation(s.mean[n], s.deviation[n]) for n in s.mean]
        learned = f"{s.learned}/{s.seeds}"
        if s.learned < s.seeds:
            learned = f"[red]{learned}[/red]"
        names = [s.sequence, s.arm] if several else [s.arm]
        table.add_row(*map(cell, names), *cells, learned)
    text = (
        "Mean ± standard deviation over the seeds. learned: runs in which every task "
        "got 2 standard errors above its majority rate; the others (red) are left out "
        "of forgetting."
    )
    lost = [f"{s.arm} ({s.diverged} of {s.seeds})" for s in summaries if s.diverged]
    if lost:
        text += (
            f" Diverged, with weights or moments that are not finite, and left out of "
            f"every mean: {', '.join(lost)}."
        )
    table.caption = caption([text])
    return table


def labels_table(labels: Mapping[str, Sequence[LabelShares]]) -> Table:
    """Returns the table of the labels of all tasks and parts, each printed once."""
    table = empty_table("Labels")
    for heading in ("task", "class"):
        table.add_column(heading, overflow="fold")
    for heading in ("train", "validation", "distance\ntrain", "distance\nvalidation"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown: set[tuple[str, ...]] = set()
    for rows in labels.values():
        table.add_section()
        for row in rows:
            distances = short(row.train_distance), short(row.validation_distance)
            cells = [*map(short, (*row.train, *row.validation)), *distances]
            if (key := (row.part, *cells)) in shown:
                continue
            shown.add(key)
            beside = (row.part, *distances)
            for name, *shares in zip(
                row.classes, row.train, row.validation, strict=True
            ):
                part, *last = beside
                table.add_row(cell(part), cell(name), *map(short, shares), *last)
                beside = ("", "", "")
    table.caption = (
        "Shares of the classes. distance: total variation to the first task of the "
        "sequence, where it has the same classes. It is in [0, 1]."
    )
    return table


def distribution_table(distribution: Distribution, title: str) -> Table:
    """Returns the table of a distribution."""
    table = empty_table(title)
    for heading in ("group", "rate", "multiplier"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    for name, rate in distribution.rates.items():
        table.add_row(
            cell(name), f"{rate:.4e}", f"{distribution.multipliers[name]:.4f}"
        )
    parts = [
        f"scheme {distribution.scheme}; geometric mean "
        f"{distribution.geometric_mean:.4e}"
    ]
    found = distribution.provenance
    parts += [f"{k} {found[k]}" for k in ("strategy", "strength") if k in found]
    table.caption = caption(["; ".join(parts)])
    return table


def spread_table(
    combined: Distribution, pairs: Sequence[Distribution], spread: Mapping[str, float]
) -> Table:
    """Returns the table of a combination and of how far the pairs lie apart."""
    table = empty_table("Combined distribution")
    table.add_column("group")
    for heading in ("rate", "smallest", "largest", "largest / smallest"):
        table.add_column(heading, justify="right")
    for name, rate in combined.rates.items():
        values = [pair.rates[name] for pair in pairs]
        factor = f"{spread[name]:.2f}"
        table.add_row(
            cell(name),
            f"{rate:.4e}",
            f"{min(values):.4e}",
            f"{max(values):.4e}",
            f"[red]{factor}[/red]" if spread[name] > SPREAD_LIMIT else factor,
        )
    return table


def trials_table(rows: Sequence[Mapping[str, Any]], title: str, most: int) -> Table:
    """Returns the table of the best trials, those of the largest budgets first.

    Args:
        rows: Trials as `lrdist_keras.search.tuner.Search.rows` gives them.
        title: Its title.
        most: How many to show.
    """
    table = empty_table(title)
    searched = ["strength"] if rows and "strength" in rows[0] else []
    headings = ["budget", "reward", "a1", "p_s", "p_o", *searched, "seed", "seconds"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("rates, first to last group", overflow="fold")
    ranked = sorted(rows, key=lambda r: (-r["budget"], -r["reward"]))
    for row in ranked[:most]:
        rates = " ".join(f"{row[name]:.0e}" for name in _groups_of(row))
        table.add_row(
            f"{row['budget']:.2f}",
            f"{row['reward']:.3f}",
            *(f"{row[name]:.3f}" for name in ("a1", "p_s", "p_o")),
            *(f"{row[name]:.3g}" for name in searched),
            str(row["seed"]),
            f"{row['seconds']:.0f}",
            rates,
            style=None if row.get("learned", True) else "red",
        )
    if not all(row.get("learned", True) for row in ranked[:most]):
        table.caption = "Red: a task was not learned; such a setting is not the best."
    return table


def correlations_table(found: Mapping[str, Any]) -> Table:
    """Returns the table of what `lrdist_keras.search.tuner.correlations` found."""
    table = empty_table("Rank correlations (Spearman)")
    table.add_column("of", no_wrap=True)
    for heading in ("settings", "correlation"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pair in found["between_rungs"]:
        low, high = pair["budgets"]
        table.add_row(
            f"rewards at budgets {low:.2f} and {high:.2f}",
            str(pair["settings"]),
            _number(pair["spearman"]),
        )
    full = _number(found["reward_and_forgetting"])
    trials = found.get("reward_and_forgetting_trials")
    count = "" if trials is None else str(trials)
    table.add_row("reward and forgetting, largest budget", count, full)
    table.caption = (
        "Near 1 between budgets: small ones tell the better settings early. Settings "
        "that ran with both are the promoted ones, which are alike: this lowers it."
    )
    return table


def _groups_of(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if name not in OF_TRIALS]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
