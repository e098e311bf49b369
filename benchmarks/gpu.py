"""Steps, runs in one program and whole comparisons on one GPU, beside PyTorch's steps.

    python benchmarks/gpu.py [--data FOLDER] [--seconds 440] [--preset P] [--config C]

Parts, all unless named: `step` (each side a process of its own; all get ready at once,
then blocks are timed in turn), `population` (several runs in one program by
`jax.vmap`), `loop` (`lrdist compare CONFIG` twice with one cache, empty at first: what
compiling costs, and whether equal runs are equal bit for bit). Token ids are drawn; the
weights of MiniLM are the preset's, those of BERT-base drawn. The file is written after
every part and at the deadline. `--small` is for a look on a CPU. A side that cannot
run, such as PyTorch's without transformers, is named in the file as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # sides share the card

import numpy as np
import step

MINILM = step.MINILM | {"steps": 16}
BASE = step.GEOMETRIES["base"] | {"batch": 32, "steps": 16}
SMALL = {"layers": 2, "width": 64, "heads": 2, "batch": 8, "length": 16, "steps": 2}
GEOMETRIES = {"minilm": MINILM, "base": BASE}
DETERMINISM = "xla_gpu_enable_scatter_determinism_expander"
# Geometry, framework or precision, and what else differs, as options of XLA.
SIDES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minilm, ours": ("minilm", "bfloat16", {}),
    "minilm, PyTorch autocast": ("minilm", "eager", {}),
    "minilm, PyTorch CUDA graphs, fused Adam": ("minilm", "graphs", {}),
    "base, ours": ("base", "bfloat16", {}),
    "base, PyTorch autocast": ("base", "eager", {}),
    "base, PyTorch CUDA graphs, fused Adam": ("base", "graphs", {}),
    "minilm, ours, not repeatable": ("minilm", "bfloat16", {DETERMINISM: False}),
    "minilm, ours, not tuned": ("minilm", "bfloat16", {"xla_gpu_autotune_level": 0}),
    "minilm, ours, tf32": ("minilm", "tf32", {}),
    "minilm, ours, float32": ("minilm", "float32", {}),
}
ROUNDS = 5
POPULATIONS = (1, 4, 16)


def geometry(name: str) -> dict[str, Any]:
    small = SMALL if os.environ.get("SMALL") == "1" else {}
    return GEOMETRIES[name] | small


def drawn(g: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns a block of batches of full rows, of drawn tokens."""
    shape = g["steps"], g["batch"], g["length"]
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 9000, shape).astype(np.int32)
    labels = rng.integers(0, 2, shape[:2]).astype(np.int32)
    ones = {"padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    return {"token_ids": ids, "labels": labels, **ones}


def take_preset(given: str) -> None:
    """Has `step` take the weights of MiniLM from a preset, and draw all others."""
    from lrdist_keras.models.encoder import find_preset
    from lrdist_keras.settings import ModelSettings

    of_base = step.preset

    def preset(g: dict[str, Any]) -> str:
        if g["layers"] == MINILM["layers"]:
            return find_preset(ModelSettings(preset=given))
        return of_base(g)

    step.preset = preset


def block_of(side: str, found: dict[str, Any]) -> Any:
    """Returns what does a side's block of steps, and notes its logits before."""
    name, how, options = SIDES[side]
    g = geometry(name)
    if how in ("eager", "graphs"):
        graphs = how == "graphs"
        return step.pytorch(g, drawn(g), True, compiled=graphs, graphs=graphs)
    import jax

    from lrdist_keras.training import compiler

    always = compiler.compiler_options
    on_gpu = jax.default_backend() == "gpu"
    compiler.compiler_options = lambda: always() | (options if on_gpu else {})
    trainer, state, inputs = step.job(g, drawn(g), how)
    batch = {k: v[0] for k, v in inputs.items()}
    given = (state.weights, state.heads[0], trainer.encoder.state, batch)
    logits, _ = trainer.compiler.call(trainer.step.evaluate, *given)
    found["logits"] = np.asarray(logits).ravel().tolist()
    return step.block_of(trainer, state, inputs)


def kernels(block: Any, steps: int) -> dict[str, Any]:
    """Returns what a trace of a block says of the GPU's kernels, per step."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            block()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        events = [
            (event.name[:60], event.duration_ns / 1e6)
            for plane in planes
            if "GPU" in plane.name
            for line in plane.lines
            if line.name.startswith("Stream")
            for event in line.events
        ]
    total: dict[str, list[float]] = {}
    for name, ms in events:
        total.setdefault(name, []).append(ms)
    longest = sorted(total.items(), key=lambda x: -sum(x[1]))[:12]
    return {
        "kernels_per_step": len(events) / steps,
        "busy_ms_per_step": sum(ms for _, ms in events) / steps,
        "longest": [[n, len(ms) / steps, sum(ms) / steps] for n, ms in longest],
    }


def timed(block: Any) -> float:
    """Returns a block's seconds, the mean of three after one that warms up."""
    block()
    start = time.perf_counter()
    for _ in range(3):
        block()
    return (time.perf_counter() - start) / 3


def serve(side: str) -> None:
    start, found = time.perf_counter(), {}
    block = block_of(side, found)
    block()
    found["seconds_to_first_block"] = time.perf_counter() - start
    block()
    print("READY " + json.dumps(found), flush=True)
    for line in sys.stdin:
        if line == "trace\n":
            trace = kernels(block, geometry(SIDES[side][0])["steps"])
            print("TRACE " + json.dumps(trace), flush=True)
        else:
            print(f"TIME {timed(block)}", flush=True)


def serve_population() -> None:
    """Several runs in one program: of different weights, on the same batches."""
    import jax

    from lrdist_keras.models.platforms import compiler_options
    from lrdist_keras.training.plan import Terms

    g = geometry("minilm")
    trainer, state, inputs = step.job(g, drawn(g), "bfloat16")
    call = jax.vmap(trainer.step.train_steps, in_axes=(0, None, None, None))
    program = jax.jit(call, donate_argnums=0, compiler_options=compiler_options())

    def stacked(size: int) -> Any:
        return jax.tree.map(lambda x: jax.numpy.stack(size * [x]), state)

    given = (inputs, step.clock_of(inputs), Terms())
    programs = {size: program.lower(stacked(size), *given) for size in POPULATIONS}
    ready = {size: lowered.compile() for size, lowered in programs.items()}
    print("READY {}", flush=True)
    for _ in sys.stdin:
        found = {}
        for size, compiled in ready.items():
            states = stacked(size)

            def block(compiled: Any = compiled) -> None:
                nonlocal states
                states, loss = compiled(states, *given)
                jax.block_until_ready((states, loss))

            block()
            found[size] = 1e3 * timed(block) / g["steps"]
        print("TIME " + json.dumps(found), flush=True)


class Side:
    """A process that gets ready by itself, and does what it is asked."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *options, *_COMMON],
            text=True,
            bufsize=1,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def answer(self, word: str, seconds: float) -> Any:
        """Returns what follows a word on a line of its own; None if it never comes."""
        timer = threading.Timer(max(1.0, seconds), self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout or ():
                if line.startswith(word):
                    return json.loads(line.removeprefix(word))
        finally:
            timer.cancel()
        return None

    def ask(self, question: str, word: str, seconds: float) -> Any:
        """Writes a line; returns the answer to it, see `answer`."""
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer(word, seconds)


def step_part(sides: dict[str, Side], found: dict[str, Any], left: Any) -> None:
    ready = {}
    for name, side in sides.items():
        answer = side.answer("READY ", left() - 20)
        found[name] = answer or {"failed": "it was not ready in time, or ended"}
        if answer is not None:
            ready[name] = side
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, side in list(ready.items()):
            if left() > 3 and (answer := side.ask("time", "TIME ", left())):
                seconds[name].append(answer)
    for name, side in ready.items():
        if seconds[name]:
            of, how, _ = SIDES[name]
            ms = [1e3 * s / geometry(of)["steps"] for s in seconds[name]]
            median = statistics.median(ms)
            found[name] |= {"ms_per_step": ms, "median_ms": median}
            print(f"{name:45} {median:8.2f} ms", flush=True)
            if how == "bfloat16" and left() > 10:
                found[name]["trace"] = side.ask("trace", "TRACE ", left())
    exact = found.get("minilm, ours, float32", {}).get("logits")
    for name, x in found.items():
        logits = x.pop("logits", None)
        if logits and exact and name.startswith("minilm"):
            error = np.subtract(logits, exact)
            x["error_of_logits"] = float(np.abs(error).max())
    for side in ready.values():
        side.process.kill()


def loop_part(given: Any, found: dict[str, Any], left: Any) -> None:
    """Runs `lrdist compare` twice in processes of their own, with one cache."""
    folder = Path(tempfile.mkdtemp(prefix="loop-"))
    command = [sys.executable, "-m", "lrdist_keras", "compare", given.config]
    command += ["--set", f"data.cache={folder / 'cache'}"]
    if given.data:
        command += ["--set", f"data.dir={given.data}"]
    for name in ("first", "second"):
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--out", str(folder / name)])
        try:
            code: Any = process.wait(timeout=max(1, left()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "killed: no time left"
        found[name] = {"exit": code, "seconds": time.perf_counter() - start}
        runs = folder / name / "runs.jsonl"
        if runs.is_file():
            lines = runs.read_text().splitlines()
            keys = ("arm", "seed", "accuracy", "seconds", "training_seconds")
            keys += ("compile_seconds", "examples_per_second", "compilations")
            found[name]["runs"] = [{k: json.loads(x)[k] for k in keys} for x in lines]
    both = [sorted((folder / name / "logits").glob("*.npz")) for name in found]
    differences = []
    for a, b in zip(*both, strict=False):
        with np.load(a) as one, np.load(b) as other:
            differences += [float(np.abs(one[k] - other[k]).max()) for k in one]
    if differences:
        found["largest_difference_of_equal_runs"] = max(differences)


_COMMON: list[str] = []


def main() -> None:
    from saving import save

    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("step", "population", "loop")
    parser.add_argument("parts", nargs="*", default=[*parts])
    parser.add_argument("--out", type=Path, default=step.RESULTS / "gpu.json")
    parser.add_argument("--seconds", type=float, default=440)
    parser.add_argument("--preset", default=step.PRESET)
    parser.add_argument("--config", default="configs/glue/sst2_mrpc.toml")
    parser.add_argument("--data", help="folder of prepared TFDS data, for `loop`")
    parser.add_argument("--without", nargs="*", default=[], choices=SIDES)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--population", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.small:
        os.environ["SMALL"] = "1"
    _COMMON[:] = ["--preset", given.preset]
    take_preset(given.preset)
    if given.side:
        return serve(given.side)
    if given.population:
        return serve_population()
    begin, result = time.perf_counter(), {part: {} for part in given.parts}
    sides: dict[str, Side] = {}

    def left() -> float:
        return given.seconds - (time.perf_counter() - begin)

    def keep() -> None:
        geometries = {name: geometry(name) for name in GEOMETRIES}
        save(given.out, {**geometries, **result}, "torch", "transformers")

    def end() -> None:
        keep()
        for side in [*sides.values(), *runs]:
            side.process.kill()
        os._exit(0)

    runs = [Side("--population")] if "population" in given.parts else []
    if "step" in given.parts:
        chosen = [name for name in SIDES if name not in given.without]
        sides |= {name: Side("--side", name) for name in chosen}
    timer = threading.Timer(given.seconds, end)
    timer.daemon = True
    timer.start()
    if "step" in given.parts:
        step_part(sides, result["step"], left)
        keep()
    for side in runs:
        side.answer("READY ", left())
        result["population"]["ms_per_step"] = side.ask("time", "TIME ", left())
        side.process.kill()
        keep()
    if "loop" in given.parts:
        loop_part(given, result["loop"], left)
    end()


if __name__ == "__main__":
    main()
