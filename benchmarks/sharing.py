"""Time and results of a comparison with and without what its arms have in common.

    python benchmarks/sharing.py CONFIG [--set KEY=VALUE …] [--rounds 1] [--out FILE]

Each round runs the comparison twice, in processes of their own and in turn: as `lrdist
compare` does, and with every arm training all by itself. All programs come from a cache
that a run before has filled. The logits of both must have the same bits; the times are
those of the runs, without loading. With two seeds or more the file also holds, for each
arm but the first, the standard deviation over the seeds of its p_o minus that of the
first arm, to be set beside that of the same configuration with `--set first={rate=…}`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

RESULTS = Path(__file__).parent / "results"
SIDES = ("shared", "alone")


def child(side: str, config: str, overrides: list[str], out: str) -> None:
    """Runs the comparison into a new folder; prints its seconds."""
    from lrdist_keras import config as config_file
    from lrdist_keras.laboratory import comparison
    from lrdist_keras.laboratory.sharing import Sharing

    if side == "alone":
        Sharing.of_run = lambda *_: None  # type: ignore[method-assign,assignment,return-value]
    prepared = comparison.prepare(config_file.load(Path(config), overrides), out)
    start = time.perf_counter()
    prepared.run(lambda *_: None, lambda *_: None, lambda *_: None)
    print("seconds", time.perf_counter() - start)


def run(side: str, arguments: argparse.Namespace, out: Path) -> float:
    """Runs a side in a process of its own; returns its seconds."""
    command = [sys.executable, __file__, arguments.config, "--child", side]
    command += ["--out", str(out)]
    for override in arguments.overrides:
        command += ["--set", override]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(found.stdout.split()[-1])


def same_bits(one: Path, other: Path) -> int:
    """Returns the number of logits of two folders; raises unless they are equal."""
    import numpy as np

    count = 0
    for path in sorted((one / "logits").iterdir()):
        with np.load(path) as left, np.load(other / "logits" / path.name) as right:
            assert left.files == right.files, path
            for name in left.files:
                np.testing.assert_array_equal(left[name], right[name], f"{path} {name}")
                count += left[name].size
    return count


def deviations(folder: Path) -> dict[str, float]:
    """Returns the deviation over seeds of p_o minus that of the first arm, by arm."""
    from lrdist_keras.laboratory.records import read_runs

    runs = read_runs(folder)
    first = runs[0]["arm"]
    p_o = {(r["sequence"], r["arm"], r["seed"]): r["p_o"] for r in runs}
    found: dict[str, list[float]] = {}
    for (sequence, arm, seed), value in p_o.items():
        base = p_o[sequence, first, seed]
        if arm != first and None not in (value, base):
            found.setdefault(arm, []).append(value - base)
    return {
        arm: statistics.stdev(differences)
        for arm, differences in found.items()
        if len(differences) > 1
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all rounds; returns what the file holds."""
    from lrdist_keras import machine

    times: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as place:
        run("shared", arguments, Path(place) / "warm")
        for i in range(arguments.rounds):
            for side in SIDES if i % 2 else SIDES[::-1]:
                times[side].append(run(side, arguments, Path(place) / f"{side}-{i}"))
                print(side, f"{times[side][-1]:.1f} s", flush=True)
            count = same_bits(Path(place) / f"shared-{i}", Path(place) / f"alone-{i}")
        spread = deviations(Path(place) / "shared-0")
    ratio = statistics.median(times["shared"]) / statistics.median(times["alone"])
    print(f"With sharing {ratio:.2f} of the time; {count:,} logits bit-equal.")
    return {
        "configuration": arguments.config,
        "overrides": arguments.overrides,
        "seconds": times,
        "ratio": ratio,
        "equal_logits": count,
        "deviation_of_p_o_to_the_first_arm": spread,
        "versions": machine.versions(),
        "machine": machine.description(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", default=str(RESULTS / "sharing.json"))
    parser.add_argument("--child", choices=SIDES)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.config, arguments.overrides, arguments.out)
        return
    text = json.dumps(measure(arguments), indent=1) + "\n"
    Path(arguments.out).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
