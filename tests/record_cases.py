"""Records of runs as `runs.jsonl` holds them."""

import json

import numpy as np

from lrdist_keras.laboratory import metrics


def record(arm="x", seed=0, sequence="a -> b", accuracy=((0.5, None), (0.5, 0.5))):
    """A run with these accuracies, the metrics that follow from them, and no more."""
    matrix = np.array(accuracy, float)
    found = {name: getattr(metrics, name)(matrix) for name in metrics.METRICS}
    return {
        "sequence": sequence,
        "arm": arm,
        "seed": seed,
        "tasks": [f"task {i}" for i in range(len(matrix))],
        **{name: None if np.isnan(value) else value for name, value in found.items()},
        "learned": True,
        "diverged": False,
        "accuracy": [list(row) for row in accuracy],
        "majority_rates": [0.4] * len(matrix),
        "examples": [100] * len(matrix),
    }


def write_runs(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "runs.jsonl").write_text(text)
