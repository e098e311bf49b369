"""What `lrdist train` shows of the model that it has saved."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lrdist_keras.laboratory.model_card import accuracy_rows
from lrdist_keras.printable import printable
from lrdist_keras.report.cells import cell, empty_table
from lrdist_keras.training.run import Run, TaskData


def trained_sentence(run: Run, tasks: Sequence[TaskData]) -> str:
    """Returns what a trained model can do, in one sentence."""
    last = len(tasks) - 1
    parts = [
        f"'{printable(task.name)}' {run.accuracy[last, j]:.3f}"
        + (f" ({run.accuracy[j, j]:.3f} before)" if j < last else "")
        for j, task in enumerate(tasks)
    ]
    what = "one model, and its accuracies are" if last else "a model of accuracy"
    return f"Trained {what}: {', '.join(parts)}."


def trained_table(run: Run, tasks: Sequence[TaskData]) -> Table:
    """Returns the accuracies of a trained model, with 95 % intervals."""
    table = empty_table("Accuracy on validation examples")
    table.add_column("task", overflow="fold")
    for heading in ("examples", "right after\nits training", "now", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, *values in accuracy_rows(run, tasks):
        # An interval stands below its number, or a narrow terminal has no room.
        below = [Text(value.replace(" [", "\n[")) for value in values]
        table.add_row(cell(name), *below)
    table.caption = (
        "95 % intervals over the examples; other seeds would differ by more. change: "
        "now against right after its training, on the same examples."
    )
    return table
