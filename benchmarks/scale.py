"""Time and memory against examples, length, size of the model, arms and runs.

    python benchmarks/scale.py --data FOLDER [--only examples] [--out FILE.json]

Every point is a process of its own, whose peak memory is taken: one epoch of SST-2 with
MiniLM for the examples, from 1,000 to 64,000; steps of drawn models and tokens for the
length, depth and width up to BERT-base; a hundred small runs in one process, of ten
arms, whose resident memory is taken after each. Needs prepared TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

from lrdist_keras.machine import take_large_pages

RESULT = Path(__file__).parent / "results" / "scale.json"
EXAMPLES = [1_000, 4_000, 16_000, 64_000]
LENGTHS = [16, 32, 64, 128, 256]
SIZES = [(2, 128), (4, 256), (6, 384), (8, 512), (12, 768)]  # layers, width
WARM_UP = 200  # steps
RUNS = 100
RATE = 5e-5


def epoch(data: str, examples: int) -> dict[str, Any]:
    """Trains one epoch on real rows, after steps enough to see most lengths."""
    from lrdist_keras.config import load
    from lrdist_keras.data.batches import take
    from lrdist_keras.distribution import flat
    from lrdist_keras.laboratory import loading
    from lrdist_keras.training.strategies.plain import Plain

    configuration = load(
        Path(__file__).parents[1] / "configs" / "glue" / "sst2_mrpc.toml",
        [f"data.dir={data}", "training.epochs=1", f"data.cache={tempfile.mkdtemp()}"],
    )
    loaded = loading.load(configuration, {"sst2"})
    task, trainer = loaded.tasks["sst2"], loaded.trainer
    few = take(task.validation, np.arange(16))
    task = replace(task, validation=few, train_examples=examples)
    rates, plain = flat(RATE, trainer.scheme), Plain()
    warm_up = min(1.0, WARM_UP / trainer.steps([task]))
    trainer.run([task], rates, plain, 0, budget=warm_up)
    start = time.perf_counter()
    run = trainer.run([task], rates, plain, 0)
    return {
        "seconds": time.perf_counter() - start,
        "compilations": run.compilations,
        "steps": trainer.steps([task]),
    }


def steps(layers: int, width: int, length: int) -> dict[str, Any]:
    """Trains on drawn tokens of one length with a drawn model."""
    from lrdist_keras.distribution import flat
    from lrdist_keras.training.strategies.plain import Plain

    trainer, task = drawn(layers, width, length, examples=64)
    rates, plain = flat(RATE, trainer.scheme), Plain()
    trainer.run([task], rates, plain, 0)
    run = trainer.run([task], rates, plain, 1)
    return {"seconds": run.training_seconds, "steps": trainer.steps([task])}


def runs(count: int) -> dict[str, Any]:
    """Does many runs in one process, of ten arms and many seeds."""
    from lrdist_keras.distribution import flat
    from lrdist_keras.training.strategies.elastic import Ewc, RecAdam
    from lrdist_keras.training.strategies.plain import Plain

    trainer, task = drawn(6, 384, 32, examples=32)
    arms = [(RATE * (i + 1), Plain()) for i in range(8)]
    arms += [(RATE, Ewc(strength=1.0)), (RATE, RecAdam(strength=50.0))]
    second = replace(task, name="second")
    resident = []
    for i in range(count):
        rate, strategy = arms[i % len(arms)]
        trainer.run([task, second], flat(rate, trainer.scheme), strategy, i)
        resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    return {"resident_bytes": resident}


def drawn(layers: int, width: int, length: int, examples: int) -> Any:
    import keras_hub

    from lrdist_keras.config import TrainingSettings
    from lrdist_keras.data.batches import Encoded
    from lrdist_keras.models.encoder import load_encoder
    from lrdist_keras.training.run import TaskData
    from lrdist_keras.training.trainer import SequentialTrainer

    with tempfile.TemporaryDirectory() as folder:
        heads = max(2, width // 64)
        keras_hub.models.BertBackbone(
            30522, layers, heads, width, 4 * width
        ).save_to_preset(folder)
        encoder = load_encoder(folder)
    rng = np.random.default_rng(0)
    data = Encoded(
        ids=rng.integers(1000, 4000, examples * length).astype(np.int32),
        offsets=np.arange(examples + 1) * length,
        second=np.full(examples, length, np.int32),
        labels=rng.integers(0, 2, examples).astype(np.int32),
        pad_id=0,
    )
    settings = TrainingSettings(max_length=length, curve_points=0)
    task = TaskData("task", data, data, 2, None, 1)
    return SequentialTrainer(encoder, settings), task


def point(*arguments: Any) -> dict[str, Any]:
    """Runs a point in a process of its own."""
    command = [sys.executable, __file__, "--point", json.dumps(arguments)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """Returns b of seconds = a sizes^b by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    take_large_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--only", choices=["examples", "length", "size", "runs"])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        what, *numbers = given.point
        found = {"epoch": epoch, "steps": steps, "runs": runs}[what](*numbers)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**found, "peak_bytes": peak}))
        return
    from rich.console import Console
    from rich.table import Table
    from saving import save

    points: dict[str, list[dict[str, Any]]] = {}
    if given.only in (None, "examples"):
        points["examples"] = [
            {"examples": n, **point("epoch", given.data, n)} for n in EXAMPLES
        ]
    if given.only in (None, "length"):
        points["length"] = [{"length": n, **point("steps", 6, 384, n)} for n in LENGTHS]
    if given.only in (None, "size"):
        points["size"] = [
            {"layers": n, "width": w, **point("steps", n, w, 64)} for n, w in SIZES
        ]
    result: dict[str, Any] = dict(points)
    for name, rows in points.items():
        table = Table(name, "s", "ms a step", "peak, MiB")
        for row in rows:
            size = row.get(name) or f"{row['layers']} x {row['width']}"
            table.add_row(
                str(size),
                f"{row['seconds']:.1f}",
                f"{1e3 * row['seconds'] / row['steps']:.0f}",
                f"{row['peak_bytes'] / 2**20:.0f}",
            )
        Console().print(table)
        if name != "size":
            sizes, seconds = ([row[x] for row in rows] for x in (name, "seconds"))
            result[f"{name}_exponent"] = exponent(sizes, seconds)
            print(f"seconds ~ {name}^{result[f'{name}_exponent']:.3f}")
    if given.only in (None, "runs"):
        result["runs"] = point("runs", RUNS)
        resident = np.array(result["runs"]["resident_bytes"]) / 2**20
        # Every arm has compiled its programs after the first fifth.
        settled, last = resident[RUNS // 5 : RUNS // 2], resident[-RUNS // 5 :]
        result["runs"]["growth"] = float(last.mean() / settled.mean() - 1)
        print(
            f"{RUNS} runs: resident {settled.mean():.0f} MiB, at the end "
            f"{last.mean():.0f} MiB ({result['runs']['growth']:+.1%})"
        )
    save(given.out, result)


if __name__ == "__main__":
    main()
