"""Trials per hour: `lrdist search` against a stock `keras_tuner.Hyperband`.

    python benchmarks/trials.py --data FOLDER [--examples 200] [--out FILE.json]

Twelve trials each (two Hyperband iterations of 1 and 3 epochs per task) on SST-2, then
MRPC, MiniLM. The stock tuner has a hypermodel as its users write it: `build` loads the
backbone, `fit` compiles and fits one task after the other, texts padded to 128 tokens
as KerasHub's preprocessing does. It goes on from the weights of a promoted trial, ours
trains it again. Compilations are counted by JAX's own events. Each side is a process of
its own, one after the other: ours once with an empty cache of programs, and once with
what that left, and as under `lrdist` with memory in pages of 2 MiB (what those bring
either side, `step.py` tells). Needs prepared TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

CONFIGURATION = Path(__file__).parents[1] / "configs" / "glue" / "search_sst2_mrpc.toml"
RESULT = Path(__file__).parent / "results" / "trials.json"
SIDES = {
    "stock": "stock",
    "ours": "ours",
    "ours, second start": "ours",
}
EPOCHS, FACTOR, ITERATIONS = 3, 3, 2
BUDGET = 8  # full runs that the twelve trials of two iterations are


def count_compilations() -> list[str]:
    """Returns a list that JAX's compilations are written to as they happen."""
    import jax

    seen: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def load(data: str, examples: int, cache: str, folder: str) -> Any:
    from lrdist_keras import config
    from lrdist_keras.search import search

    overrides = [
        f"data.dir={data}",
        f"data.cache={cache}",
        f"training.epochs={EPOCHS}",
        f"tasks.sst2.train_examples={examples}",
        f"tasks.mrpc.train_examples={examples}",
        f"search.budget={BUDGET}",
        f"search.units={EPOCHS}",
        f"search.factor={FACTOR}",
        f"search.slice_examples={examples}",
        "search.repeats=0",
    ]
    return search.prepare(config.load(CONFIGURATION, overrides), folder)


def ours(prepared: Any, folder: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    seen = count_compilations()
    start = time.perf_counter()

    def ended(trial: Any) -> None:
        found.append({"end": time.perf_counter() - start, "compilations": len(seen)})

    prepared.run(on_end=ended)
    return found


def stock(prepared: Any, folder: str) -> list[dict[str, float]]:
    import keras
    import keras_hub
    import keras_tuner
    import numpy as np

    from lrdist_keras import LayerwiseOptimizer
    from lrdist_keras.data.sampling import stratified
    from lrdist_keras.models.encoder import find_preset

    configuration = prepared.configuration
    preset = find_preset(configuration.model)
    length = configuration.training.max_length
    names = prepared.trainer.scheme.names
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def arrays(data: Any, count: int) -> tuple[dict[str, Any], Any]:
        chosen = stratified(data.labels, count, np.random.default_rng(0))
        inputs = data.arrays(chosen, length)
        labels = inputs.pop("labels")
        del inputs["weights"]
        return inputs, labels

    tasks = [
        (arrays(t.train, t.train_examples), arrays(t.validation, len(t.validation)))
        for t in prepared.tasks
    ]
    heads = ("first", "second")
    found: list[dict[str, float]] = []

    class Sequence(keras_tuner.HyperModel):
        def build(self, hp: Any) -> Any:
            backbone = keras_hub.models.Backbone.from_preset(preset, dropout=0.0)
            text = backbone.output["sequence_output"][:, 0]
            self.models = [
                keras.Model(backbone.input, keras.layers.Dense(2, name=head)(text))
                for head in heads
            ]
            self.rates = [hp.Float(n, 1e-7, 1e-3, sampling="log") for n in names]
            return self.models[-1]

        def fit(self, hp: Any, model: Any, **options: Any) -> Any:
            callbacks = options.pop("callbacks")
            largest = max(self.rates)
            for head, own, (train, validation) in zip(
                heads, self.models, tasks, strict=True
            ):
                optimizer = LayerwiseOptimizer(
                    keras.optimizers.Adam(largest),
                    prepared.trainer.groups | {"head": head},
                    [rate / largest for rate in self.rates],
                )
                own.compile(optimizer, loss=loss, metrics=["accuracy"])
                history = own.fit(
                    *train,
                    batch_size=configuration.training.batch_size,
                    validation_data=validation,
                    callbacks=callbacks if own is model else [],
                    **options,
                )
            (_, first), _ = tasks
            self.models[0].evaluate(*first, verbose=0)
            elapsed = time.perf_counter() - start
            found.append({"end": elapsed, "compilations": len(seen)})
            return history

    tuner = keras_tuner.Hyperband(
        Sequence(),
        keras_tuner.Objective("val_accuracy", "max"),
        max_epochs=EPOCHS,
        factor=FACTOR,
        hyperband_iterations=ITERATIONS,
        seed=1,
        directory=folder,
        project_name="stock",
    )
    seen = count_compilations()
    start = time.perf_counter()
    tuner.search(verbose=0)
    return found


def side(name: str, data: str, examples: int, cache: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = load(data, examples, cache, folder)
        found = {"stock": stock, "ours": ours}[SIDES[name]](prepared, folder)
    print("RESULT " + json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="prepared TFDS data")
    parser.add_argument("--examples", type=int, default=200, help="of each task")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, arguments.data, arguments.examples, arguments.cache)
        return
    from rich.console import Console
    from rich.table import Table
    from saving import save
    from step import environment

    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", name]
            output = subprocess.run(
                [*command, "--cache", cache],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(large_pages=name != "stock"),
            ).stdout
            lines = [x for x in output.splitlines() if x.startswith("RESULT ")]
            found[name] = json.loads(lines[0].removeprefix("RESULT "))
    table = Table("tuner", "trials", "minutes", "trials per hour", "compilations")
    per_hour = {}
    for name, trials in found.items():
        seconds = trials[-1]["end"]
        per_hour[name] = 3600 * len(trials) / seconds
        compiled = ", ".join(str(t["compilations"]) for t in trials)
        table.add_row(
            name,
            str(len(trials)),
            f"{seconds / 60:.1f}",
            f"{per_hour[name]:.1f}",
            compiled,
        )
    Console().print(table)
    ratios = {
        f"{a} / {b}": per_hour[a] / per_hour[b]
        for a in SIDES
        for b in SIDES
        if SIDES[a] == "ours" and SIDES[b] == "stock"
    }
    for name, ratio in ratios.items():
        print(f"trials per hour, {name}: {ratio:.2f}")
    result = {
        "what": __doc__.strip().splitlines()[0],
        "examples": arguments.examples,
        "trials_per_hour": per_hour,
        "ratios": ratios,
        "trials": found,
    }
    save(arguments.out, result)


if __name__ == "__main__":
    main()
