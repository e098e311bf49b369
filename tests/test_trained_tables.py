"""What `lrdist train` shows, in a narrow terminal too."""

from types import SimpleNamespace

import numpy as np
from rich.console import Console
from trainer_cases import task

from lrdist_keras.report.trained_tables import trained_sentence, trained_table


def test_a_narrow_terminal_shows_tasks_numbers_and_intervals():
    tasks = [task("the first task", 0), task("second", 1)]
    right = [np.eye(2)[t.validation.labels] for t in tasks]
    logits = {(0, 0): right[0], (1, 0): 1 - right[0], (1, 1): right[1]}
    accuracy = np.array([[1.0, np.nan], [0.0, 1.0]])
    run = SimpleNamespace(logits=logits, accuracy=accuracy)
    console = Console(width=80, record=True)
    console.print(trained_table(run, tasks))
    text = console.export_text()
    for part in ("the first task", "second", "24", "1.000", "0.000", "-1.000"):
        assert part in text
    assert "[0.862, 1.000]" in text and "the last task" in text
    assert trained_sentence(run, tasks) == (
        "Trained one model, and its accuracies are: 'the first task' 0.000 (1.000 "
        "before), 'second' 1.000."
    )
