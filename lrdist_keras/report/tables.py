"""Tables for the terminal, and the picture of a comparison."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lrdist_keras._storage import replacing
from lrdist_keras.distribution import OF_TRIALS, Distribution, Trials
from lrdist_keras.laboratory import metrics
from lrdist_keras.laboratory.statistics import (
    FLIPS,
    FURTHER,
    LEVEL,
    MOST_PAIRS,
    POWER,
    Difference,
    Statistics,
    Summary,
    summarize,
)

if TYPE_CHECKING:  # shows a distribution without loading a model's libraries
    from lrdist_keras.data.shifts import LabelShares

_MARKERS = "osD^vP*X"
_ARMS_PER_TABLE = 4
SPREAD_LIMIT = 3.0
_BEST_DRAWN = 5
_METRIC_NAMES = {
    "matthews": "Matthews",
    "f1": "F1",
    "accuracy": "accuracy",
}


def group_tables(
    groups: Sequence[tuple[str, int, int]], distributions: Mapping[str, Distribution]
) -> list[Table]:
    """Returns the table of group, variables, parameters and each arm's rate.

    Arms with the same rates share a column; several tables where there are many arms.
    """
    columns: dict[tuple[float, ...], list[str]] = {}
    for arm, distribution in distributions.items():
        columns.setdefault(tuple(distribution.values), []).append(arm)
    arms = [(", ".join(names), rates) for rates, names in columns.items()]
    parts = [
        arms[i : i + _ARMS_PER_TABLE] for i in range(0, len(arms), _ARMS_PER_TABLE)
    ]
    total = ("all", str(sum(g[1] for g in groups)), f"{sum(g[2] for g in groups):,}")
    tables = []
    for part in parts or [[]]:
        table = _table("Groups and their learning rates")
        table.add_column("group", no_wrap=True)
        table.add_column("variables", justify="right", no_wrap=True)
        table.add_column("parameters", justify="right", no_wrap=True)
        for arm, _ in part:
            table.add_column(escape(arm), justify="right", overflow="fold", min_width=8)
        for index, (name, variables, parameters) in enumerate(groups):
            rates_of = [f"{rates[index]:.2e}" for _, rates in part]
            table.add_row(name, str(variables), f"{parameters:,}", *rates_of)
        table.add_row(*total, *[""] * len(part), style="bold")
        tables.append(table)
    return tables


def compat_line(compat: Sequence[str]) -> str:
    """Returns the line that names the faults that were on, empty where none was."""
    return f"compat: {', '.join(map(str, compat))}" if compat else ""


def results_table(summaries: Sequence[Summary], title: str) -> Table:
    """Returns the table of the metrics, mean ± standard deviation over the seeds."""
    table = _table(title)
    several = len({s.sequence for s in summaries}) > 1
    for heading in (*(["sequence"] if several else []), "arm"):
        table.add_column(heading, overflow="fold")
    for heading in ("a1", "p_s", "p_o", "p_s + p_o", "forgetting", "learned"):
        table.add_column(heading, justify="right", no_wrap=True)
    for s in summaries:
        cells = [_with_deviation(s.mean[n], s.deviation[n]) for n in s.mean]
        learned = f"{s.learned}/{s.seeds}"
        if s.learned < s.seeds:
            learned = f"[red]{learned}[/red]"
        names = [s.sequence, s.arm] if several else [s.arm]
        table.add_row(*map(escape, names), *cells, learned)
    table.caption = (
        "Mean ± standard deviation over the seeds. learned: runs in which every task "
        "got 2 standard errors above its majority rate; the others (red) are left out "
        "of forgetting."
    )
    return table


def labels_table(labels: Mapping[str, Sequence[LabelShares]]) -> Table:
    """Returns the table of the labels of all tasks and parts, each printed once."""
    table = _table("Labels")
    for heading in ("task", "class"):
        table.add_column(heading, overflow="fold")
    for heading in ("train", "validation", "distance\ntrain", "distance\nvalidation"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown: set[tuple[str, ...]] = set()
    for rows in labels.values():
        table.add_section()
        for row in rows:
            distances = _short(row.train_distance), _short(row.validation_distance)
            cells = [*map(_short, (*row.train, *row.validation)), *distances]
            if (key := (row.part, *cells)) in shown:
                continue
            shown.add(key)
            beside = (row.part, *distances)
            for name, *shares in zip(
                row.classes, row.train, row.validation, strict=True
            ):
                part, *last = beside
                table.add_row(escape(part), escape(name), *map(_short, shares), *last)
                beside = ("", "", "")
    table.caption = (
        "Shares of the classes. distance: total variation to the first task of the "
        "sequence, where it has the same classes. It is in [0, 1]."
    )
    return table


def measures_tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns the tables of what the records hold beside the main metrics.

    One over the arms, one over tasks, and for sequences of more than two tasks the
    accuracy matrices. What no record holds, as those of older versions, is left out.
    """
    tables = [_arms_table(records), _tasks_table(records)]
    long = {r["sequence"]: r["tasks"] for r in records if len(r.get("tasks", [])) > 2}
    for sequence, tasks in long.items():
        chosen = [r for r in records if r["sequence"] == sequence]
        tables.append(_matrices_table(sequence, tasks, chosen))
    return [table for table in tables if table is not None]


def _arms_table(records: Sequence[Mapping[str, Any]]) -> Table | None:
    known = [n for n in FURTHER if any(r.get(n) is not None for r in records)]
    if not known:
        return None
    table = _table("Further measures")
    table.padding = (0, 0, 0, 1)
    table.add_column("arm", overflow="fold")
    for name in known:
        heading = name.replace("_", "\n", 1)
        table.add_column(heading, justify="right", no_wrap=True)
    summaries = summarize(records, known)
    sequences = list(dict.fromkeys(s.sequence for s in summaries))
    for sequence in sequences:
        if len(sequences) > 1:
            table.add_section()
            table.add_row(escape(sequence), style="bold")
        for s in (s for s in summaries if s.sequence == sequence):
            cells = [_spread(s.mean[n], s.deviation[n]) for n in known]
            table.add_row(escape(s.arm), *cells)
    lines = [
        "Mean ± standard deviation over the seeds. average, learning: mean accuracy on "
        "all tasks at the end, and on each right after its training."
    ]
    if "backward_transfer" in known:
        lines.append(
            "backward: change of the earlier tasks since their training, of runs that "
            "learned."
        )
    if "forward_transfer" in known:
        lines.append(
            "forward: what the tasks before changed about a task's new, untrained head."
        )
    if "probe_p_o" in known:
        lines.append(
            "probe: accuracy on the earlier tasks of heads refitted on the frozen "
            "features after each one's training, and at the end (probe p_o): what it "
            "lost is lost features, what only p_o lost is a head that no longer fits."
        )
    table.caption = "\n".join(lines)
    return table


def _tasks_table(records: Sequence[Mapping[str, Any]]) -> Table | None:
    records = [r for r in records if "task_metrics" in r]
    if not records:
        return None
    table = _table("Each task by its own metric")
    table.padding = (0, 0, 0, 1)
    table.add_column("arm", overflow="fold")
    probed = any("probe" in r for r in records)
    for name in ("metric", "ECE", *(["probe"] if probed else [])):
        for moment in ("after", "end"):
            table.add_column(f"{name}\n{moment}", justify="right", no_wrap=True)
    sequences = list(dict.fromkeys(r["sequence"] for r in records))
    for sequence in sequences:
        runs = [r for r in records if r["sequence"] == sequence]
        for j, task in enumerate(runs[0]["tasks"]):
            metric = next(iter(runs[0]["task_metrics"]["final"][j]))
            where = f" of {sequence}" if len(sequences) > 1 else ""
            table.add_section()
            table.add_row(f"[bold]{escape(task + where)}[/] {_METRIC_NAMES[metric]}")
            for arm in dict.fromkeys(r["arm"] for r in runs):
                of_arm = [r for r in runs if r["arm"] == arm]
                cells = [
                    _over_seeds([read(r, moment) for r in of_arm])
                    for read in (
                        lambda r, m, j=j, name=metric: r["task_metrics"][m][j][name],
                        lambda r, m, j=j: r["calibration_error"][m][j],
                        lambda r, m, j=j: (
                            dict(enumerate(r["probe"][m])).get(j)
                            if "probe" in r
                            else None
                        ),
                    )[: 3 if probed else 2]
                    for moment in ("after", "final")
                ]
                table.add_row(escape(arm), *cells)
    table.caption = (
        "after: right after the task's own training; end: after the last task. ECE: "
        "expected calibration error."
    )
    return table


def _matrices_table(
    sequence: str, tasks: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> Table:
    table = _table(f"Accuracy after each task: {sequence}")
    table.add_column("after", overflow="fold")
    for task in tasks:
        table.add_column(f"on {escape(task)}", justify="right", overflow="fold")
    for arm in dict.fromkeys(r["arm"] for r in records):
        runs = [r for r in records if r["arm"] == arm]
        table.add_section()
        table.add_row(escape(arm), style="bold")
        for i, task in enumerate(tasks):
            cells = [
                _over_seeds([r["accuracy"][i][j] for r in runs])
                for j in range(len(tasks))
            ]
            table.add_row(escape(task), *cells)
        sequential = [r for r in runs if "task_forgetting" in r]
        if sequential:
            of_tasks = [
                [r["task_forgetting"][j] for r in sequential if _learned_tasks(r)[j]]
                for j in range(len(tasks) - 1)
            ]
            table.add_row("forgetting", *map(_over_seeds, of_tasks), "", style="italic")
    table.caption = (
        "forgetting: best accuracy before the end - final, of runs that learned that "
        "task (2 standard errors above its majority rate)."
    )
    return table


def _learned_tasks(record: Mapping[str, Any]) -> np.ndarray:
    matrix = np.array(record["accuracy"], float)
    rates, examples = (np.array(record[x]) for x in ("majority_rates", "examples"))
    return metrics.learned_tasks(matrix, rates, examples)


def _over_seeds(values: Sequence[float | None]) -> str:
    known = np.array([v for v in values if v is not None])
    if not len(known):
        return "-"
    deviation = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return _spread(float(known.mean()), deviation)


def _spread(mean: float, deviation: float) -> str:
    """Mean and deviation in little space."""
    if math.isnan(mean) or math.isnan(deviation):
        return _short(mean)
    return f"{_short(mean)}±{_short(deviation)}"


def statistics_tables(statistics: Statistics) -> list[Table]:
    """Returns the tables of differences: per sequence, over them, and at equal p_s.

    One row per metric and arm, in 80 columns.
    """
    reference = statistics.reference
    caption = [
        f"Arm minus '{reference}', paired by seed. t, BCa: 95 % intervals of Student "
        "and of the bootstrap. p: sign-flip test; Holm: corrected for all comparisons "
        "of a metric. *: t and Holm agree on a difference. n: pairs. need: seeds that "
        f"would show this difference (power {POWER:g} in a t test at {LEVEL:g} / "
        "comparisons). ± beside a metric: binomial standard error of one run, from its "
        "validation examples."
    ]
    if count := sum(statistics.not_learned.values()):
        arms = ", ".join(f"{a}: {n}" for a, n in statistics.not_learned.items())
        caption.append(
            f"{count} of {statistics.runs} runs did not learn ({arms}); their pairs "
            "are left out of forgetting, and n is red."
        )
    sequences = list(dict.fromkeys(d.sequence for d in statistics.paired))
    tables = []
    for sequence in sequences:
        where = f" on {sequence}" if len(sequences) > 1 else ""
        chosen = [d for d in statistics.paired if d.sequence == sequence]
        table = _differences_table(
            f"Differences to {reference}{where}",
            chosen,
            statistics.validation_errors[str(sequence)],
        )
        lines = [*(caption if sequence == sequences[-1] else []), *_limits(chosen)]
        table.caption = escape("\n".join(lines)) or None
        tables.append(table)
    if over := statistics.over_sequences:
        table = _differences_table(
            f"Differences to {reference} on average over sequences",
            over,
            bootstrap="two-level",
        )
        lines = [
            "The sequences' means are the units (n, need), as a sample of sequences. "
            "two-level: the bootstrap over sequences and over the seeds in each.",
            *_limits(over),
        ]
        table.caption = escape("\n".join(lines))
        tables.append(table)
    if equal := statistics.equal_p_s:
        table = _differences_table("Differences to the flat rates at equal p_s", equal)
        lines = [
            "Arm minus the line through the flat arms, of the same seed, at the arm's "
            "p_s: who learns less forgets less. Runs that did not learn are left out.",
            *_limits(equal),
        ]
        for d in equal:
            if d.outside and d.metric == "p_o":
                lines.append(
                    f"'{d.arm}' on {d.sequence}: p_s of {d.outside} of "
                    f"{d.pairs + d.outside + d.not_learned} runs lies outside the flat "
                    "arms'; nothing is extrapolated."
                )
        table.caption = escape("\n".join(lines))
        tables.append(table)
    return tables


def distribution_table(distribution: Distribution, title: str) -> Table:
    """Returns the table of a distribution."""
    table = _table(title)
    for heading in ("group", "rate", "multiplier"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    for name, rate in distribution.rates.items():
        table.add_row(
            escape(name), f"{rate:.4e}", f"{distribution.multipliers[name]:.4f}"
        )
    caption = [
        f"scheme {distribution.scheme}; geometric mean "
        f"{distribution.geometric_mean:.4e}"
    ]
    found = distribution.provenance
    caption += [f"{k} {found[k]}" for k in ("strategy", "strength") if k in found]
    table.caption = escape("; ".join(caption))
    return table


def spread_table(
    combined: Distribution, pairs: Sequence[Distribution], spread: Mapping[str, float]
) -> Table:
    """Returns the table of a combination and of how far the pairs lie apart."""
    table = _table("Combined distribution")
    table.add_column("group")
    for heading in ("rate", "smallest", "largest", "largest / smallest"):
        table.add_column(heading, justify="right")
    for name, rate in combined.rates.items():
        values = [pair.rates[name] for pair in pairs]
        factor = f"{spread[name]:.2f}"
        table.add_row(
            escape(name),
            f"{rate:.4e}",
            f"{min(values):.4e}",
            f"{max(values):.4e}",
            f"[red]{factor}[/red]" if spread[name] > SPREAD_LIMIT else factor,
        )
    return table


def save_picture(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    distributions: Mapping[str, Distribution],
    compat: Sequence[str] = (),
) -> None:
    """Draws a comparison: distributions, p_s against p_o, and the forgetting curve.

    One row of the three panels per sequence. Small marks are single seeds, hollow where
    the run did not learn; large ones are means over the seeds. The title names the
    faults that were on.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sequences = list(dict.fromkeys(record["sequence"] for record in records))
    rows = len(sequences)
    figure = Figure(figsize=(15, 4.6 * rows + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, sequence in zip(axes, sequences, strict=True):
        runs = [record for record in records if record["sequence"] == sequence]
        _draw_distributions(row[0], distributions)
        _draw_accuracies(row[1], runs, list(distributions))
        _draw_curves(row[2], runs, list(distributions))
        row[1].set_title(_literal(sequence).replace("->", "→"))
    _title_with_faults(figure, compat)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(labels))
    )
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def save_drift_picture(
    path: str | os.PathLike[str], records: Sequence[Mapping[str, Any]]
) -> None:
    """Draws how far weights and features moved, group by group and layer by layer.

    One row of four panels per sequence: weight drift per group from the pretrained
    model and from the model after the first task to the end; linear CKA per layer
    between the same. Lines are means over the seeds, areas reach from the smallest to
    the largest seed.

    Args:
        path: The PNG file to write.
        records: Runs; those that hold neither drift nor similarity are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(r["arm"] for r in records))
    records = [r for r in records if "drift" in r or "similarity" in r]
    sequences = list(dict.fromkeys(r["sequence"] for r in records))
    figure = Figure(figsize=(17, 4.4 * len(sequences) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(sequences), 4, squeeze=False)
    for row, sequence in zip(axes, sequences, strict=True):
        runs = [r for r in records if r["sequence"] == sequence]
        first = _literal(runs[0]["tasks"][0])
        since = {"pretrained": "pretrained", "after_first": f"after {first}"}
        for column, (key, name) in enumerate(since.items()):
            _draw_drift(row[column], runs, arms, key)
            row[column].set_title(f"weights: {name} → end")
            _draw_similarity(row[2 + column], runs, arms, key)
            row[2 + column].set_title(f"features of {first}: {name} → end")
        if len(sequences) > 1:
            name = _literal(sequence).replace("->", "→")
            row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found, strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(6, len(handles)),
    )
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_drift(
    axis: Any, runs: Sequence[Mapping[str, Any]], arms: Sequence[str], since: str
) -> None:
    names: list[str] = []
    for index, arm in enumerate(arms):
        found = [r["drift"][since] for r in runs if r["arm"] == arm and "drift" in r]
        if since == "pretrained":
            found = [after_tasks[-1] for after_tasks in found]
        if found:
            names = list(found[0])
            _draw_range(axis, [list(f.values()) for f in found], arm, index)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_ylabel("|difference| / |weights|")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


def _draw_similarity(
    axis: Any, runs: Sequence[Mapping[str, Any]], arms: Sequence[str], since: str
) -> None:
    for index, arm in enumerate(arms):
        found = [
            [math.nan if x is None else x for x in r["similarity"][since]]
            for r in runs
            if r["arm"] == arm and "similarity" in r
        ]
        if found:
            _draw_range(axis, found, arm, index, first=1)
    axis.set_xlabel("layer, lowest first")
    axis.set_ylabel("linear CKA")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def _draw_range(
    axis: Any, values: list[list[float]], arm: str, index: int, first: int = 0
) -> None:
    table = np.array(values)
    position = first + np.arange(table.shape[1])
    style = _style(index)
    axis.plot(position, table.mean(axis=0), label=_literal(arm), lw=1.2, ms=5, **style)
    if len(table) > 1:
        low, high = table.min(axis=0), table.max(axis=0)
        axis.fill_between(position, low, high, color=style["color"], alpha=0.15, lw=0)


def trials_table(rows: Sequence[Mapping[str, Any]], title: str, most: int) -> Table:
    """Returns the table of the best trials, those of the largest budgets first.

    Args:
        rows: Trials as `lrdist_keras.search.tuner.Search.rows` gives them.
        title: Its title.
        most: How many to show.
    """
    table = _table(title)
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
        )
    return table


def correlations_table(found: Mapping[str, Any]) -> Table:
    """Returns the table of what `lrdist_keras.search.tuner.correlations` found."""
    table = _table("Rank correlations (Spearman)")
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
    table.add_row("reward and forgetting, largest budget", "", full)
    table.caption = (
        "Near 1 between budgets: small ones tell the better settings early. Settings "
        "that ran with both are the promoted ones, which are alike: this lowers it."
    )
    return table


def save_search_picture(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    trials: Trials,
    distribution: Distribution,
    compat: Sequence[str] = (),
) -> None:
    """Draws a search: the best rates with their spread, and reward against time.

    The spread is the weighted deviation of the logarithms of the rates around the
    ranked combination, with its weights.

    Args:
        path: The PNG file to write.
        rows: As `lrdist_keras.search.tuner.Search.rows` gives them, in their order.
        trials: The same, as they are combined.
        distribution: Their ranked combination.
        compat: The faults that were on, which the title names.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _title_with_faults(figure, compat)
    names = list(distribution.rates)
    rates, rewards = trials.ranked()
    weights = float(distribution.provenance["base"]) ** -np.arange(len(rates))
    logs = np.log(rates / distribution.values)
    factor = np.exp(np.sqrt(weights @ logs**2 / weights.sum()))
    position = np.arange(len(names))
    left.fill_between(
        position,
        distribution.values / factor,
        distribution.values * factor,
        alpha=0.2,
        label="weighted deviation",
    )
    for rank, found in enumerate(rates[:_BEST_DRAWN]):
        label = f"rank {rank}, reward {rewards[rank]:.3f}"
        left.plot(position, found, lw=1, alpha=0.8, label=label, **_style(rank + 1))
    left.plot(position, distribution.values, "k-", lw=2, label="combination")
    left.set_xticks(position, names, rotation=45, ha="right")
    left.set_yscale("log")
    left.set_ylabel("learning rate")
    left.set_title("the best settings, averaged over seeds")
    left.grid(alpha=0.3)
    left.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    minutes = np.cumsum([row["seconds"] for row in rows]) / 60
    reward = np.array([row["reward"] for row in rows])
    budgets = np.array([row["budget"] for row in rows])
    for index, budget in enumerate(np.unique(budgets)):
        chosen = budgets == budget
        style = _style(index)
        label = f"budget {budget:.2g}"
        right.plot(minutes[chosen], reward[chosen], ls="", label=label, **style)
    most = budgets.max()
    best = np.maximum.accumulate(np.where(budgets == most, reward, -np.inf))
    seen = np.isfinite(best)
    right.step(
        minutes[seen], best[seen], "k-", where="post", label="best of the largest"
    )
    right.set_xlabel("minutes of training")
    right.set_ylabel("reward")
    right.set_title("reward against time")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _groups_of(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if name not in OF_TRIALS]


def _table(title: str) -> Table:
    return Table(
        title=escape(title),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )


def _style(index: int) -> dict[str, Any]:
    marker = _MARKERS[index % len(_MARKERS)]
    return {"color": f"C{index % 10}", "marker": marker}


def _title_with_faults(figure: Any, compat: Sequence[str]) -> None:
    if compat:
        figure.suptitle(compat_line(compat), fontsize=8)


def _draw_distributions(axis: Any, distributions: Mapping[str, Distribution]) -> None:
    for index, (arm, distribution) in enumerate(distributions.items()):
        # Arms with the same rates would hide each other.
        shift = 0.06 * (index - (len(distributions) - 1) / 2)
        position = np.arange(len(distribution.rates)) + shift
        axis.plot(
            position, distribution.values, label=_literal(arm), lw=1, **_style(index)
        )
    names = list(next(iter(distributions.values())).rates)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.set_yscale("log")
    axis.set_ylabel("learning rate")
    axis.set_title("distributions")
    axis.grid(alpha=0.3)


def _draw_accuracies(
    axis: Any, runs: Sequence[Mapping[str, Any]], arms: Sequence[str]
) -> None:
    for index, arm in enumerate(arms):
        chosen = [r for r in runs if r["arm"] == arm and r["p_o"] is not None]
        style = _style(index)
        for record in chosen:
            face = style["color"] if record["learned"] else "none"
            point = (record["p_s"], record["p_o"])
            axis.plot(*point, markerfacecolor=face, ms=5, alpha=0.5, ls="", **style)
        if chosen:
            mean = [np.mean([r[name] for r in chosen]) for name in ("p_s", "p_o")]
            axis.plot(*mean, ms=11, ls="", markeredgecolor="black", **style)
    tasks = [_literal(name) for name in runs[0]["tasks"]]
    axis.set_xlabel(f"p_s: accuracy on {tasks[-1]} (second task)")
    axis.set_ylabel(f"p_o: accuracy on {', '.join(tasks[:-1])} at the end")
    axis.grid(alpha=0.3)


def _draw_curves(
    axis: Any, runs: Sequence[Mapping[str, Any]], arms: Sequence[str]
) -> None:
    first, last = runs[0]["tasks"][0], runs[0]["tasks"][-1]
    for index, arm in enumerate(arms):
        curves = [
            record["curves"][last]
            for record in runs
            if record["arm"] == arm and last in record["curves"]
        ]
        for curve in curves:
            axis.plot(
                curve["steps"],
                curve["accuracy"][first],
                color=f"C{index % 10}",
                alpha=0.25,
            )
        if curves:
            steps = np.mean([curve["steps"] for curve in curves], axis=0)
            mean = np.mean([curve["accuracy"][first] for curve in curves], axis=0)
            axis.plot(steps, mean, lw=2, **_style(index))
    first, last = _literal(first), _literal(last)
    axis.set_xlabel(f"steps on {last}")
    axis.set_ylabel(f"accuracy on {first}")
    axis.set_title(f"what training on {last} does to {first}")
    axis.grid(alpha=0.3)


def _literal(text: str) -> str:
    """The text as Matplotlib must be given it, to which a dollar begins mathematics."""
    return text.replace("$", r"\$")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _differences_table(
    title: str,
    differences: Sequence[Difference],
    errors: Mapping[str, float] | None = None,
    bootstrap: str = "BCa",
) -> Table:
    table = _table(title)
    table.add_column("arm", overflow="fold")
    for heading in ("mean", "t", bootstrap, "p", "Holm", "n", "need"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len({d.sequence for d in differences}) > 1
    for metric in dict.fromkeys(d.metric for d in differences):
        error = f" ±{_short(errors[metric])}" if errors else ""
        table.add_section()
        table.add_row(metric + error, style="bold")
        for d in (d for d in differences if d.metric == metric):
            name = f"{d.arm} on {d.sequence}" if several else d.arm
            n = str(d.pairs)
            decision = d.decision
            table.add_row(
                escape(name),
                _short(decision.mean, "+") + ("*" if decision.marked else " "),
                " ".join(_short(bound, "+") for bound in decision.interval),
                " ".join(_short(bound, "+") for bound in d.bootstrap),
                _probability(decision.p),
                _probability(decision.p_holm),
                f"[red]{n}[/red]" if d.not_learned else n,
                _needed(d),
                style="bold" if decision.marked else None,
            )
    return table


def _limits(differences: Sequence[Difference]) -> list[str]:
    """What cannot be marked whatever the data, and which p were drawn."""
    lines = []
    lacking = [d for d in differences if d.pairs < d.decision.least_pairs]
    for k in sorted({d.decision.comparisons for d in lacking}):
        few = [d for d in lacking if d.decision.comparisons == k]
        pairs = ", ".join(map(str, sorted({d.pairs for d in few})))
        what = ", ".join(dict.fromkeys(d.metric for d in few))
        comparisons = "comparison takes" if k == 1 else "comparisons take"
        lines.append(
            f"n = {pairs}: too few to mark anything ({what}). {k} {comparisons} at "
            f"least {few[0].decision.least_pairs}."
        )
    if drawn := sorted({d.pairs for d in differences if not d.decision.exact}):
        pairs = ", ".join(map(str, drawn))
        lines.append(f"n = {pairs}: p is not exact, but of {FLIPS:,} drawn flips.")
    return lines


def _needed(difference: Difference) -> str:
    if difference.pairs_needed is not None:
        return str(difference.pairs_needed)
    known = difference.pairs > 1 and difference.decision.mean != 0
    return f">{MOST_PAIRS}" if known else "-"


def _probability(p: float) -> str:
    return "1" if p >= 0.9995 else f"{p:.3f}"[1:] if p >= 0.001 else "<.001"


def _short(value: float, sign: str = "") -> str:
    """Three decimals without a leading zero."""
    if math.isnan(value):
        return "-"
    # Adding 0 takes the sign off what is rounded to it.
    text = f"{round(value, 3) + 0.0:{sign}.3f}"
    return text if text.lstrip("+-")[0] != "0" else text.replace("0.", ".", 1)


def _with_deviation(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "-"
    if math.isnan(deviation):
        return f"{mean:.3f}"
    return f"{mean:.3f}±" + f"{deviation:.3f}".removeprefix("0")
