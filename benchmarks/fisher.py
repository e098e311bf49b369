"""The Fisher of MRPC's examples on MiniLM, against one epoch of training on them.

    python benchmarks/fisher.py --data FOLDER [--examples 3668] [--rounds 3]

Both compiled before, in turn. Needs prepared TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np
from saving import save

from lrdist_keras.config import load
from lrdist_keras.data.batches import take
from lrdist_keras.distribution import flat
from lrdist_keras.laboratory import loading
from lrdist_keras.models.encoder import new_head
from lrdist_keras.training.strategies.plain import Plain

RESULT = Path(__file__).parent / "results" / "fisher.json"
CONFIGURATION = Path(__file__).parents[1] / "configs" / "glue" / "sst2_mrpc.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--examples", type=int, default=3668)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        overrides = [f"data.dir={given.data}", f"data.cache={cache}"]
        configuration = load(CONFIGURATION, [*overrides, "training.epochs=1"])
        loaded = loading.load(configuration, {"mrpc"})
        task, trainer = loaded.tasks["mrpc"], loaded.trainer
        task = replace(
            task,
            train=take(task.train, np.arange(given.examples)),
            validation=take(task.validation, np.arange(16)),
        )
        rates = flat(5e-5, trainer.scheme)
        weights = [jax.numpy.array(w) for w in trainer.encoder.weights]
        head = new_head(2, trainer.encoder.width, np.random.default_rng(0))
        sides = {
            "epoch": lambda: trainer.run([task], rates, Plain(), 0),
            "fisher": lambda: jax.block_until_ready(
                trainer.fisher(task.train, weights, head)
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for i in range(given.rounds + 1):
            for name, run in sides.items():
                start = time.perf_counter()
                run()
                if i:  # the first compiles
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(these)) for name, these in seconds.items()}
    ratio = medians["fisher"] / medians["epoch"]
    print(
        f"{len(task.train)} examples: epoch {medians['epoch']:.1f} s, "
        f"Fisher {medians['fisher']:.1f} s, {ratio:.2f} epochs"
    )
    result = {
        "examples": len(task.train),
        "seconds": seconds,
        "ratio": ratio,
    }
    save(given.out, result)


if __name__ == "__main__":
    main()
