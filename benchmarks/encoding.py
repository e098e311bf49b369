"""Texts encoded per second: ours against KerasHub's preprocessor, on tasks of GLUE.

    python benchmarks/encoding.py --data FOLDER [--rounds 5]

All training texts of SST-2, CoLA, MRPC and RTE, at most 128 tokens, MiniLM's tokenizer.
Ours ends with the cache on disk. KerasHub's is run as its users do, mapped in parallel
over batches of a `tf.data.Dataset`. In turn, in one process; the ids of both are
compared. Needs prepared TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_hub
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from saving import save
from step import PRESET, RESULTS

from lrdist_keras.config import DataSettings, ModelSettings, TaskSettings
from lrdist_keras.data.splits import Split
from lrdist_keras.data.tasks import load_task
from lrdist_keras.data.tokenizer import Texts, Tokenizer, encode, load_tokenizer
from lrdist_keras.models.encoder import find_preset

TASKS = ("sst2", "cola", "mrpc", "rte")
LENGTH, BATCH = 128, 1024


def ours(split: Split, tokenizer: Tokenizer) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as cache:
        encoded = encode(split, tokenizer, LENGTH, cache)
        return np.split(np.array(encoded.ids), encoded.offsets[1:-1])


def keras_hubs(texts: Texts, preprocessor: Any) -> list[np.ndarray]:
    columns = tuple(list(column) for column in texts)
    data = tf.data.Dataset.from_tensor_slices(
        columns if len(columns) == 2 else columns[0]
    )
    # Given alone, the second of two texts would be taken for the label.
    label = tf.zeros(BATCH)
    batches = data.batch(BATCH).map(
        lambda *x: preprocessor(x if len(x) == 2 else x[0], y=label)[0],
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    found = []
    for batch in batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        sizes = batch["padding_mask"].sum(axis=1)
        found += [ids[:n] for ids, n in zip(batch["token_ids"], sizes, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    folder = find_preset(ModelSettings(preset=PRESET))
    tokenizer = load_tokenizer(folder)
    preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
        folder, sequence_length=LENGTH
    )
    table = Table("task", "examples", "ours/s", "KerasHub/s", "ratio", "other ids")
    result = {}
    for name in TASKS:
        task = TaskSettings(name=name, source=f"glue/{name}")
        split = load_task(task, DataSettings(dir=given.data)).splits["train"]
        sides = {
            "ours": lambda split=split: ours(split, tokenizer),
            "keras_hub": lambda split=split: keras_hubs(split.texts, preprocessor),
        }
        ids = {side: run() for side, run in sides.items()}  # and a warm-up
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, run in sides.items():
                start = time.perf_counter()
                run()
                seconds[side].append(time.perf_counter() - start)
        median = {side: float(np.median(s)) for side, s in seconds.items()}
        differ = sum(
            not np.array_equal(a, b)
            for a, b in zip(ids["ours"], ids["keras_hub"], strict=True)
        )
        result[name] = {
            "examples": len(split),
            "examples_per_second": {s: len(split) / median[s] for s in sides},
            "ratio": median["keras_hub"] / median["ours"],
            "examples_with_other_ids": differ,
        }
        table.add_row(
            name,
            str(len(split)),
            *(f"{len(split) / median[side]:,.0f}" for side in sides),
            f"{result[name]['ratio']:.1f}",
            str(differ),
        )
    Console().print(table)
    save(RESULTS / "encoding.json", {"rounds": given.rounds, "tasks": result})


if __name__ == "__main__":
    main()
