"""Tables of what a comparison measures and proves, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from lrdist_keras.laboratory import metrics
from lrdist_keras.laboratory.paired_tests import FLIPS, LEVEL, MOST_PAIRS, POWER
from lrdist_keras.laboratory.statistics import Difference, Statistics
from lrdist_keras.laboratory.summaries import FURTHER, mean_rates, summarize
from lrdist_keras.printable import printable
from lrdist_keras.report.cells import caption, cell, empty_table, short

_RATES_PER_TABLE = 4
_METRIC_NAMES = {
    "matthews": "Matthews",
    "f1": "F1",
    "accuracy": "accuracy",
}


def measures_tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns the tables of what the records hold beside the main metrics.

    One over the arms, one over tasks, for sequences of more than two tasks the accuracy
    matrices, and the learning rates that runs found. What no record holds, as those of
    older versions, is left out.
    """
    tables = [_arms_table(records), _tasks_table(records)]
    long = {r["sequence"]: r["tasks"] for r in records if len(r.get("tasks", [])) > 2}
    for sequence, tasks in long.items():
        chosen = [r for r in records if r["sequence"] == sequence]
        tables.append(_matrices_table(sequence, tasks, chosen))
    found = [table for table in tables if table is not None]
    return [*found, *_rates_tables(records)]


def _arms_table(records: Sequence[Mapping[str, Any]]) -> Table | None:
    known = [n for n in FURTHER if any(r.get(n) is not None for r in records)]
    if not known:
        return None
    table = empty_table("Further measures")
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
            table.add_row(cell(sequence), style="bold")
        for s in (s for s in summaries if s.sequence == sequence):
            cells = [_spread(s.mean[n], s.deviation[n]) for n in known]
            table.add_row(cell(s.arm), *cells)
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
    table = empty_table("Each task by its own metric")
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
            table.add_row(_task_heading(task + where, metric))
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
                table.add_row(cell(arm), *cells)
    table.caption = (
        "after: right after the task's own training; end: after the last task. ECE: "
        "expected calibration error."
    )
    return table


def _task_heading(task: str, metric: str) -> Text:
    return Text.assemble((printable(task), "bold"), f" {_METRIC_NAMES[metric]}")


def _matrices_table(
    sequence: str, tasks: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> Table:
    table = empty_table(f"Accuracy after each task: {sequence}")
    table.add_column("after", overflow="fold")
    for task in tasks:
        table.add_column(cell(f"on {task}"), justify="right", overflow="fold")
    for arm in dict.fromkeys(r["arm"] for r in records):
        runs = [r for r in records if r["arm"] == arm]
        table.add_section()
        table.add_row(cell(arm), style="bold")
        for i, task in enumerate(tasks):
            cells = [
                _over_seeds([r["accuracy"][i][j] for r in runs])
                for j in range(len(tasks))
            ]
            table.add_row(cell(task), *cells)
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


def _rates_tables(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Returns the tables of rates that were found, some columns in each."""
    found = list(mean_rates(records).items())
    sequences = {sequence for (sequence, _, _), _ in found}
    tables = []
    for i in range(0, len(found), _RATES_PER_TABLE):
        part = found[i : i + _RATES_PER_TABLE]
        table = empty_table("Learning rates that were found")
        table.add_column("group", no_wrap=True)
        for (sequence, arm, task), _ in part:
            where = f" of {sequence}" if len(sequences) > 1 else ""
            heading = cell(f"{arm} on {task}{where}")
            table.add_column(heading, justify="right", overflow="fold", min_width=8)
        for group in part[0][1]:
            table.add_row(cell(group), *(f"{rates[group]:.2e}" for _, rates in part))
        tables.append(table)
    if tables:
        tables[-1].caption = "Geometric mean over the seeds, without what diverged."
    return tables


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
        return short(mean)
    return f"{short(mean)}±{short(deviation)}"


def statistics_tables(statistics: Statistics) -> list[Table]:
    """Returns the tables of differences: per sequence, over them, and at equal p_s.

    One row per metric and arm, in 80 columns.
    """
    reference, last = statistics.reference, _explanations(statistics)
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
        lines = [*(last if sequence == sequences[-1] else []), *_limits(chosen)]
        table.caption = caption(lines)
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
        table.caption = caption(lines)
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
        table.caption = caption(lines)
        tables.append(table)
    return tables


def _explanations(statistics: Statistics) -> list[str]:
    """How to read the tables of differences, and which runs do not count."""
    lines = [
        f"Arm minus '{statistics.reference}', paired by seed. t, BCa: 95 % intervals "
        "of Student and of the bootstrap. p: sign-flip test; Holm: corrected for all "
        "comparisons of a metric. *: t and Holm agree on a difference. n: pairs. need: "
        f"seeds that would show this difference (power {POWER:g} in a t test at "
        f"{LEVEL:g} / comparisons). ± beside a metric: binomial standard error of one "
        "run, from its validation examples."
    ]
    if count := sum(statistics.not_learned.values()):
        arms = ", ".join(f"{a}: {n}" for a, n in statistics.not_learned.items())
        lines.append(
            f"{count} of {statistics.runs} runs did not learn ({arms}); their pairs "
            "are left out of forgetting, and n is red."
        )
    if lost := statistics.diverged:
        arms = ", ".join(f"{a}: {n}" for a, n in lost.items())
        lines.append(f"Runs that diverged ({arms}) are left out of every metric.")
    return lines


def _differences_table(
    title: str,
    differences: Sequence[Difference],
    errors: Mapping[str, float] | None = None,
    bootstrap: str = "BCa",
) -> Table:
    table = empty_table(title)
    table.add_column("arm", overflow="fold")
    for heading in ("mean", "t", bootstrap, "p", "Holm", "n", "need"):
        table.add_column(heading, justify="right", no_wrap=True)
    several = len({d.sequence for d in differences}) > 1
    for metric in dict.fromkeys(d.metric for d in differences):
        error = f" ±{short(errors[metric])}" if errors else ""
        table.add_section()
        table.add_row(metric + error, style="bold")
        for d in (d for d in differences if d.metric == metric):
            name = f"{d.arm} on {d.sequence}" if several else d.arm
            n = str(d.pairs)
            decision = d.decision
            table.add_row(
                cell(name),
                short(decision.mean, "+") + ("*" if decision.marked else " "),
                " ".join(short(bound, "+") for bound in decision.interval),
                " ".join(short(bound, "+") for bound in d.bootstrap),
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
