"""Pictures of comparisons and searches."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from lrdist_keras._storage import replacing
from lrdist_keras.distribution import Distribution
from lrdist_keras.laboratory.summaries import mean_rates
from lrdist_keras.printable import printable
from lrdist_keras.report.tables import compat_line
from lrdist_keras.search.trials import Trials

_MARKERS = "osD^vP*X"
_BEST_DRAWN = 5


def save_picture(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    distributions: Mapping[str, Distribution],
    compat: Sequence[str] = (),
    frozen: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Draws a comparison: distributions, p_s against p_o, and the forgetting curve.

    One row of the three panels per sequence. Small marks are single seeds, hollow where
    the run did not learn; large ones are means over the seeds. Of an arm whose runs
    found their learning rates, the mean of those of the last task is drawn, and of
    groups that an arm does not train, see `frozen`, nothing. The title names the faults
    that were on.
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
        found: dict[str, Mapping[str, float]] = {
            arm: rates
            for (_, arm, task), rates in mean_rates(runs).items()
            if task == runs[0]["tasks"][-1]
        }
        drawn = {arm: found.get(arm, d.rates) for arm, d in distributions.items()}
        _draw_distributions(row[0], drawn, frozen or {})
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
    table = np.array(values, float)  # None, of runs that diverged, becomes NaN
    table = table[np.isfinite(table).all(axis=1)]
    if not len(table):
        return
    position = first + np.arange(table.shape[1])
    style = _style(index)
    axis.plot(position, table.mean(axis=0), label=_literal(arm), lw=1.2, ms=5, **style)
    if len(table) > 1:
        low, high = table.min(axis=0), table.max(axis=0)
        axis.fill_between(position, low, high, color=style["color"], alpha=0.15, lw=0)


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
        rows: The rows that `lrdist_keras.search.search.Search.rows` returns.
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


def _style(index: int) -> dict[str, Any]:
    marker = _MARKERS[index % len(_MARKERS)]
    return {"color": f"C{index % 10}", "marker": marker}


def _title_with_faults(figure: Any, compat: Sequence[str]) -> None:
    if compat:
        figure.suptitle(compat_line(compat), fontsize=8)


def _draw_distributions(
    axis: Any,
    distributions: Mapping[str, Mapping[str, float]],
    frozen: Mapping[str, Collection[str]],
) -> None:
    for index, (arm, rates) in enumerate(distributions.items()):
        # Arms with the same rates would hide each other.
        shift = 0.06 * (index - (len(distributions) - 1) / 2)
        position = np.arange(len(rates)) + shift
        still = frozen.get(arm, ())
        values = [np.nan if g in still else rate for g, rate in rates.items()]
        axis.plot(position, values, label=_literal(arm), lw=1, **_style(index))
    names = list(next(iter(distributions.values())))
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
            if record["arm"] == arm
            and last in record["curves"]
            and None not in record["curves"][last]["accuracy"][first]
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
    return printable(text).replace("$", r"\$")
