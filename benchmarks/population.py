"""Several runs in one program, by `vmap`, against the same runs one after the other.

    python benchmarks/population.py --data FOLDER [--sizes 2 4] [--rounds 8]

A training step of MiniLM on the same batches of MRPC for so many vectors of learning
rates: weights and states get a leading axis, the program is `jax.vmap` of ours. In
turn, in one process; at the end the weights of both are compared. Needs prepared TFDS
data in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from saving import save
from step import GEOMETRIES, RATE, RESULTS, job, rows

from lrdist_keras.distribution import kenneweg2022
from lrdist_keras.machine import take_large_pages
from lrdist_keras.models.precision import resolve_here
from lrdist_keras.training.plan import Terms
from lrdist_keras.training.step import Clock, TrainState

GEOMETRY = GEOMETRIES["minilm"] | {"batch": 16, "steps": 4}


def main() -> None:
    take_large_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    precision = resolve_here("auto")
    batches = rows(given.data, GEOMETRY)
    trainer, first, inputs = job(GEOMETRY, batches, precision)
    shaped = kenneweg2022().resample(trainer.scheme)
    steps = np.int32(GEOMETRY["steps"])
    clock = Clock(steps, np.float32(0), np.float32(1e6), np.float32(RATE))
    one = jax.jit(trainer.step.train_steps, donate_argnums=0)
    many = jax.jit(
        jax.vmap(trainer.step.train_steps, in_axes=(0, None, None, None)),
        donate_argnums=0,
    )

    def member(share: float) -> TrainState:
        rates = {k: v**share for k, v in shaped.multipliers.items()}
        copy = jax.tree.map(lambda x: x.copy(), first)
        return trainer.step.begin(copy.weights, copy.heads, copy.model_state, rates)

    def timed(program: Any, states: list[TrainState], i: int = 0) -> float:
        start = time.perf_counter()
        states[i], loss = program(states[i], inputs, clock, Terms())
        jax.block_until_ready((states[i], loss))
        return time.perf_counter() - start

    table = Table("runs", "in turn, ms a step", "together, ms a step", "ratio")
    result = []
    for size in given.sizes:
        members = [member(i / size) for i in range(size)]
        stacked = [jax.tree.map(lambda *x: jax.numpy.stack(x), *members)]
        seconds = []
        for _ in range(given.rounds + 1):
            alone = sum(timed(one, members, i) for i in range(size))
            seconds.append((alone, timed(many, stacked)))
        difference = max(
            float(np.abs(np.asarray(a[i]) - np.asarray(b)).max())
            for i, state in enumerate(members)
            for a, b in zip(stacked[0].weights, state.weights, strict=True)
        )
        alone, together = np.median(np.array(seconds[1:]), axis=0) / float(steps)
        result.append(
            {
                "runs": size,
                "seconds_in_turn": alone,
                "seconds_together": together,
                "largest_difference_of_a_weight": difference,
            }
        )
        table.add_row(
            str(size),
            f"{1e3 * alone:.0f}",
            f"{1e3 * together:.0f}",
            f"{alone / together:.2f}",
        )
    Console().print(table)
    save(RESULTS / "population.json", {"geometry": GEOMETRY, "sizes": result})


if __name__ == "__main__":
    main()
