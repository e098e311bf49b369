"""What bfloat16 products do to the accuracy, against what one rounding does.

    python benchmarks/precision_gap.py --data FOLDER [--seeds 8] [--out FILE.json]

SST-2 with 500 training examples, three epochs, and 10,000 other training rows held out.
Each seed is trained and evaluated with float32 products, with bfloat16 products, and
with float32 products from pretrained weights that are each the next larger float32
number. The gap is the absolute difference of the accuracy to that of the first. Needs
prepared TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from saving import save

from lrdist_keras.config import load
from lrdist_keras.data.batches import take
from lrdist_keras.distribution import flat
from lrdist_keras.laboratory import loading
from lrdist_keras.laboratory.paired_tests import t_interval
from lrdist_keras.training.run import TaskData
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.trainer import SequentialTrainer

RESULT = Path(__file__).parent / "results" / "precision_gap.json"
CONFIGURATION = Path(__file__).parents[1] / "configs" / "glue" / "sst2_mrpc.toml"
TRAINED, HELD_OUT, EPOCHS, BATCH, RATE = 500, 10_000, 3, 16, 5e-5


def trainers_and_task(
    data: str, cache: str
) -> tuple[dict[str, SequentialTrainer], TaskData]:
    found = {}
    for precision in ("float32", "bfloat16"):
        overrides = [
            f"data.dir={data}",
            f"data.cache={cache}",
            f"model.precision={precision}",
            f"training.epochs={EPOCHS}",
            f"training.batch_size={BATCH}",
        ]
        loaded = loading.load(load(CONFIGURATION, overrides), {"sst2"})
        found[precision] = loaded.trainer
    exact = found["float32"]
    moved = [np.nextafter(w, np.float32(np.inf)) for w in exact.encoder.weights]
    encoder = replace(exact.encoder, weights=moved)
    found["float32, one rounding away"] = SequentialTrainer(
        encoder, exact.settings, exact.scheme
    )
    task = loaded.tasks["sst2"]
    order = np.random.default_rng(0).permutation(len(task.train))
    rest, held_out = (
        take(task.train, np.sort(part)) for part in (order[HELD_OUT:], order[:HELD_OUT])
    )
    return found, replace(task, train=rest, validation=held_out, train_examples=TRAINED)


def summary(gaps: np.ndarray) -> dict[str, float | list[float]]:
    """Returns the mean and its 95 % interval of t."""
    return {"mean": float(gaps.mean()), "interval": list(t_interval(gaps))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        trainers, task = trainers_and_task(given.data, cache)
        rates = flat(RATE, trainers["float32"].scheme)
        accuracy: dict[str, list[float]] = {name: [] for name in trainers}
        answers: dict[str, list[np.ndarray]] = {name: [] for name in trainers}
        for seed in track(range(given.seeds), "seeds"):
            for name, trainer in trainers.items():
                run = trainer.run([task], rates, Plain(), seed)
                accuracy[name].append(float(run.accuracy[0, 0]))
                answers[name].append(run.logits[0, 0].argmax(axis=1))
    first, bfloat16, rounded = (np.array(a) for a in accuracy.values())
    gaps = {"bfloat16": abs(bfloat16 - first), "one rounding": abs(rounded - first)}
    table = Table("seed", *accuracy, "gap, bfloat16", "gap, one rounding")
    for seed in range(given.seeds):
        row = [a[seed] for a in (first, bfloat16, rounded, *gaps.values())]
        table.add_row(str(seed), *(f"{x:.4f}" for x in row))
    Console().print(table)
    excess = summary(gaps["bfloat16"] - gaps["one rounding"])
    other = {
        name: [float(np.mean(a != b)) for a, b in zip(these, exact, strict=True)]
        for exact in [answers.pop("float32")]
        for name, these in answers.items()
    }
    low, high = excess["interval"]
    print(
        f"gap of bfloat16 minus that of one rounding: {excess['mean']:+.4f} "
        f"[{low:+.4f}, {high:+.4f}]"
    )
    result = {
        "trained": TRAINED,
        "held_out": HELD_OUT,
        "epochs": EPOCHS,
        "batch": BATCH,
        "rate": RATE,
        "accuracy": accuracy,
        "answers_that_differ": other,
        "gaps": {name: summary(these) for name, these in gaps.items()},
        "signed": summary(bfloat16 - first),
        "excess": excess,
    }
    save(given.out, result)


if __name__ == "__main__":
    main()
