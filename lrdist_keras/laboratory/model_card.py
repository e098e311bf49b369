"""What is written beside a saved model for the person who uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from lrdist_keras.models.saved import SavedModel
from lrdist_keras.printable import printable
from lrdist_keras.training.run import Run, TaskData

_CONFIDENCE = 0.95


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of an accuracy.

    Args:
        correct: Whether each example was told right, bool, shape [examples].
    """
    found = stats.binomtest(int(correct.sum()), len(correct))
    interval = found.proportion_ci(_CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def change_interval(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Returns a 95 % interval of the change of an accuracy on the same examples.

    It is Newcombe's for paired proportions: Wilson's intervals of both, combined with
    their correlation phi (Statistics in Medicine 17, 2635, method 10).

    Args:
        before: Whether each example was told right before, bool, shape [examples].
        after: The same after.
    """
    p, q = after.mean(), before.mean()
    (p_low, p_high), (q_low, q_high) = map(accuracy_interval, (after, before))
    both, only_after = (after & before).sum(), (after & ~before).sum()
    only_before, neither = (~after & before).sum(), (~after & ~before).sum()
    size = math.sqrt(
        float(both + only_after)
        * float(only_before + neither)
        * float(both + only_before)
        * float(only_after + neither)
    )
    product = float(both * neither - only_after * only_before)
    if product > 0:
        product = max(product - len(before) / 2, 0.0)
    phi = product / size if size else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    change = float(p - q)
    return (
        change - reach(p - p_low, q_high - q),
        change + reach(p_high - p, q - q_low),
    )


def correct_answers(run: Run, tasks: Sequence[TaskData], i: int, j: int) -> np.ndarray:
    """Returns whether each validation example of task j was told right after task i."""
    found = np.argmax(run.logits[i, j], axis=1) == tasks[j].validation.labels
    return np.asarray(found)


def card(saved: SavedModel, run: Run, tasks: Sequence[TaskData]) -> str:
    """Returns the model card, in Markdown.

    Args:
        saved: What is saved.
        run: The run that trained it.
        tasks: Its tasks.
    """
    names = [task.name for task in saved.tasks]
    lines = [
        f"# {_plain(saved.sequence)}",
        "",
        f"{_tasks_in_words(len(names))} from `{_plain(saved.preset)}` by "
        f"`lrdist train`: arm '{_plain(saved.arm)}' (strategy {saved.strategy}), "
        f"seed {saved.seed}.",
        "",
        "## Accuracy",
        "",
        "On validation examples, with 95 % intervals that know nothing of other seeds.",
        "",
        "| task | examples | right after its training | now | change |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(map(_plain, row))} |" for row in accuracy_rows(run, tasks)),
        "",
        _precision(saved),
        "",
        "## Use",
        "",
        "```python",
        "from lrdist_keras import load_classifier",
        "",
        *(
            f'classifier = load_classifier("PATH OF THIS FOLDER", {name!r})'
            for name in names[-1:]
        ),
        'classifier.predict(["a text", "another"])',
        "```",
        "",
        "| task | file | classes | texts | data | training examples |",
        "|---|---|---|---|---|---|",
        *(
            f"| {_plain(t.name)} | `{t.file}` | {_plain(', '.join(t.class_names))} | "
            f"{'pairs' if t.columns == 2 else 'single'} | {_plain(t.source)} | "
            f"{'not trained here' if t.train_examples is None else t.train_examples} |"
            for t in saved.tasks
        ),
        "",
        f"Texts are cut after {saved.max_length} tokens. {_head(saved)}",
        "",
        "## Learning rates",
        "",
        *_rate_rows(saved),
        "",
        "## Made with",
        "",
        ", ".join(f"{name} {value}" for name, value in saved.versions.items()),
        "",
        "The resolved configuration and digests of all inputs are in `model.json`.",
    ]
    return "\n".join(lines) + "\n"


def _tasks_in_words(count: int) -> str:
    if count == 1:
        return "A model of one task, trained"
    return f"One model for {count} tasks, trained"


def accuracy_rows(run: Run, tasks: Sequence[TaskData]) -> list[list[str]]:
    """Returns of each task: name, examples, accuracy then and now, and the change."""
    last, rows = len(tasks) - 1, []
    for j, task in enumerate(tasks):
        then = correct_answers(run, tasks, j, j)
        now = correct_answers(run, tasks, last, j)
        cells = [task.name, f"{len(now):,}", _with(then), _with(now)]
        if j < last:
            low, high = change_interval(then, now)
            change = now.mean() - then.mean()
            cells.append(f"{change:+.3f} [{low:+.3f}, {high:+.3f}]")
        else:
            cells.append("the last task")
        rows.append(cells)
    return rows


def _with(correct: np.ndarray) -> str:
    low, high = accuracy_interval(correct)
    return f"{correct.mean():.3f} [{low:.3f}, {high:.3f}]"


def _precision(saved: SavedModel) -> str:
    if saved.precision == "float32":
        return "Measured in float32, which the saved files compute in."
    return (
        f"Measured in {saved.precision}. The saved files compute in float32; their "
        "answers may differ for texts near the border of two classes."
    )


def _head(saved: SavedModel) -> str:
    if saved.pooler:
        return (
            "Between encoder and head stands a pooler, as in KerasHub's text "
            "classifiers; the folders beside the files are presets of such."
        )
    return (
        "The head is one linear layer on the token that stands for the text, without a "
        "pooler, so the model is no KerasHub text classifier; [model] pooler = true "
        "trains one."
    )


def _rate_rows(saved: SavedModel) -> list[str]:
    trained = [
        (task.name, rates)
        for task, rates in zip(saved.tasks, saved.rates, strict=True)
        if rates is not None
    ]
    if not trained:
        return ["Nothing was trained."]
    head = " | ".join(_plain(name) for name, _ in trained)
    groups = [
        f"| {group} | {' | '.join(f'{rates[group]:.3g}' for _, rates in trained)} |"
        for group in trained[0][1]
    ]
    return [f"| group | {head} |", "|---" * (len(trained) + 1) + "|", *groups]


def _plain(text: str) -> str:
    """Returns a name as a Markdown table can show it."""
    return printable(text).replace("|", "\\|")
