"""A search by one process, and by a chief with two workers, on the real model.

    python benchmarks/workers.py --data FOLDER [--workers 2] [--out FILE.json]

SST-2, then MRPC, 100 examples each, one epoch, MiniLM; from the start of the first
process to the end of the last, the compilation in each of them included. Needs prepared
TFDS data in FOLDER.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lrdist_keras import machine
from lrdist_keras._storage import write_text

CONFIGURATION = Path(__file__).parents[1] / "configs" / "glue" / "search_sst2_mrpc.toml"
RESULT = Path(__file__).parent / "results" / "workers.json"
LRDIST = [sys.executable, "-c", "from lrdist_keras.cli import main; main()"]


def command(data: str, folder: Path, *rest: str) -> list[str]:
    overrides = [
        f"data.dir={data}",
        "training.epochs=1",
        "tasks.sst2.train_examples=100",
        "tasks.mrpc.train_examples=100",
        "search.slice_examples=100",
        "search.units=3",
        "search.budget=8",
        "search.repeats=2",
    ]
    words = [word for override in overrides for word in ("--set", override)]
    search = [*LRDIST, "search", str(CONFIGURATION), "--out", str(folder)]
    return [*search, *words, *rest]


def timed(commands: list[list[str]]) -> float:
    start = time.perf_counter()
    processes = [subprocess.Popen(c, stdout=subprocess.DEVNULL) for c in commands]
    if any(process.wait() for process in processes):
        raise RuntimeError("A process of the search failed.")
    return time.perf_counter() - start


def trials(folder: Path) -> int:
    with (folder / "trials.csv").open() as file:
        return len(list(csv.DictReader(file)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="prepared TFDS data")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    data = arguments.data
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = timed([command(data, folder / "alone")])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        chief = ["--chief", address]
        workers = [
            command(data, folder / f"worker_{i}", *chief, "--worker")
            for i in range(arguments.workers)
        ]
        together = timed([command(data, folder / "chief", *chief), *workers])
        counts = {side: trials(folder / side) for side in ("alone", "chief")}
    table = Table("search by", "trials", "seconds")
    table.add_row("one process", str(counts["alone"]), f"{alone:.0f}")
    by = f"a chief and {arguments.workers} workers"
    table.add_row(by, str(counts["chief"]), f"{together:.0f}")
    Console().print(table)
    print(f"speed-up: {alone / together:.2f}")
    result = {
        "what": __doc__.strip().splitlines()[0],
        "versions": machine.versions(),
        "machine": machine.description() | {"cores": os.cpu_count()},
        "workers": arguments.workers,
        "trials": counts,
        "seconds": {"one process": alone, "chief and workers": together},
        "speed_up": alone / together,
    }
    write_text(arguments.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
