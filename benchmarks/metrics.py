"""The formulas on the accuracy matrix, against Avalanche's and Renate's.

    python benchmarks/metrics.py CLASSIFICATION.PY

The argument is `renate/evaluation/metrics/classification.py` of Renate 0.5.2, which
needs nothing else of it. Avalanche (`avalanche-lib`) must be installed; neither is a
dependency of the project. Writes the largest differences on random matrices.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer

from lrdist_keras.laboratory import metrics

RESULT = Path(__file__).parent / "results" / "metrics.json"
MATRICES = 1000


def load_renate(path):
    spec = importlib.util.spec_from_file_location("classification", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def avalanche(matrix, initial):
    """Feeds Avalanche's metrics as its plugins do while a sequence is trained."""
    count = len(matrix)
    forgetting, backward, forward = Forgetting(), BWT(), ForwardTransfer()
    for task in range(count):
        forward.update(task, initial[task], initial=True)
    for after in range(count):
        for metric in (forgetting, backward):
            metric.update(after, matrix[after, after], initial=True)
            for task in range(after):
                metric.update(task, matrix[after, task])
        if after + 1 < count:
            forward.update(after + 1, matrix[after, after + 1])
    # Its forgetting is from the first value, where ours is from the best.
    return {
        "backward_transfer": np.mean(list(backward.result().values())),
        "first_minus_final": np.mean(list(forgetting.result().values())),
        "forward_transfer": np.mean(list(forward.result().values())),
    }


def renate(module, matrix, initial):
    results = {"accuracy": matrix.tolist(), "accuracy_init": [initial.tolist()]}
    last = len(matrix) - 1
    names = ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer")
    sizes = [1] * len(matrix)
    return {name: getattr(module, name)(results, last, sizes) for name in names}


def ours(matrix, initial):
    backward = metrics.backward_transfer(matrix)
    return {
        "average_accuracy": metrics.average_accuracy(matrix),
        "forgetting": metrics.forgetting(matrix),
        "backward_transfer": backward,
        "first_minus_final": -backward,
        "forward_transfer": metrics.forward_transfer(matrix, initial),
    }


def main():
    module = load_renate(sys.argv[1])
    rng = np.random.default_rng(0)
    worst = {"avalanche": {}, "renate": {}}
    for _ in range(MATRICES):
        count = rng.integers(2, 9)
        matrix, initial = rng.uniform(size=(count, count)), rng.uniform(size=count)
        found = ours(matrix, initial)
        for package, others in (
            ("avalanche", avalanche(matrix, initial)),
            ("renate", renate(module, matrix, initial)),
        ):
            for name, value in others.items():
                old = worst[package].get(name, 0.0)
                worst[package][name] = max(old, abs(float(value) - found[name]))
    result = {
        "matrices": MATRICES,
        "tasks": [2, 8],
        "versions": {
            "avalanche-lib": importlib.metadata.version("avalanche-lib"),
            "renate": "0.5.2",
            "numpy": np.__version__,
        },
        "largest_difference": worst,
    }
    text = json.dumps(result, indent=1)
    RESULT.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
