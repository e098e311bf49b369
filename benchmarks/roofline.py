"""What this machine can do, and the share of it that a training step reaches.

    python benchmarks/roofline.py [--geometry minilm] [--precision bfloat16]

The ceiling of products: every matrix product of the traced step, forward and backward,
is run alone with row-major operands, by XLA and where it is installed by PyTorch
(oneDNN), in float32 and bfloat16, and the faster counts. That of memory: the rate of
adding two arrays that fit no cache. Then the parts of the step, each a program of its
own: forward, backward as the difference, Adam alone. Last, from a trace of the training
program itself, what its time goes into, and what handing its products to oneDNN could
bring. Weights and tokens are drawn.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from rich.console import Console
from rich.table import Table
from saving import save
from step import GEOMETRIES, RATE, RESULTS, job

from lrdist_keras.machine import take_large_pages
from lrdist_keras.models.bfloat16 import product_sizes
from lrdist_keras.models.encoder import new_head
from lrdist_keras.models.precision import in_precision, resolve_here
from lrdist_keras.training.plan import Terms
from lrdist_keras.training.step import Clock, TrainState
from lrdist_keras.training.trainer import SequentialTrainer

Product = tuple[int, int, int, int]  # how many, rows, depth, columns
PRECISIONS = ("float32", "bfloat16")


def median(run: Callable[[], Any], rounds: int = 9) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def products(jaxpr: Any) -> Counter[Product]:
    """Returns the matrix products of a traced function, and how often each is."""
    found: Counter[Product] = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            a, b = (x.aval for x in equation.invars)
            found[product_sizes(a, b, equation.params["dimension_numbers"])] += 1
        for inner in jaxprs_in_params(equation.params):
            found += products(inner)
    return found


def by_xla(product: Product, dtype: Any) -> float:
    many, rows, depth, columns = product
    rng = np.random.default_rng(0)
    lead = (many,) if many > 1 else ()
    a = jnp.asarray(rng.normal(size=(*lead, rows, depth)), dtype)
    b = jnp.asarray(rng.normal(size=(*lead, depth, columns)), dtype)
    run = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    return median(lambda: run(a, b))


def by_pytorch(product: Product, dtype: str) -> float:
    try:
        import torch
    except ImportError:
        return float("inf")
    many, rows, depth, columns = product
    a = torch.randn(many, rows, depth, dtype=getattr(torch, dtype))
    b = torch.randn(many, depth, columns, dtype=getattr(torch, dtype))
    a, b = (a[0], b[0]) if many == 1 else (a, b)
    return median(lambda: torch.matmul(a, b))


def memory_rate() -> float:
    """Returns bytes per second of reading two arrays and writing one."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=2**25), jnp.float32) for _ in range(2))
    add = jax.jit(lambda a, b: a + 2 * b, donate_argnums=0)  # in place of a
    carried = [a]

    def run() -> Any:
        carried[0] = add(carried[0], b)
        return carried[0]

    return 3 * b.nbytes / median(run)


def ceilings(kinds: Counter[Product]) -> list[dict[str, Any]]:
    """Times every product alone, and prints the rates of those that are most of it."""
    names = ["XLA float32", "XLA bfloat16", "oneDNN float32", "oneDNN bfloat16"]
    table = Table("product", "times", *names, title="products alone, GFLOP/s")
    found = []
    whole = sum(prod(product) * count for product, count in kinds.items())
    for product, count in sorted(kinds.items()):
        seconds = [
            by_xla(product, jnp.float32),
            by_xla(product, jnp.bfloat16),
            by_pytorch(product, "float32"),
            by_pytorch(product, "bfloat16"),
        ]
        rates = [2 * prod(product) / 1e9 / s for s in seconds]
        shape = " x ".join(map(str, product[1:]))
        shape = f"{product[0]} of {shape}" if product[0] > 1 else shape
        if prod(product) * count > whole / 200:
            table.add_row(shape, str(count), *(f"{rate:.0f}" for rate in rates))
        timed = dict(zip(names, seconds, strict=True))
        found.append({"product": product, "times": count, "seconds": timed})
    Console().print(table)
    return found


PRODUCTS, UNNAMED = "products", "nothing that has a name"
COPIES, CASTS = "transpositions and copies", "casts alone"
# What marks the name, the text or the operation of an instruction; the first counts.
KINDS = [
    (PRODUCTS, r" dot\("),
    ("Adam", r"/adam(_\d+)?/"),
    ("sums and maxima: softmax, norms, biases", r" reduce\("),
    (COPIES, r"^(transpose|copy|concatenate|bitcast_pad)"),
    ("GELU's tanh", r"tanh"),
    (CASTS, r"^(?!.* (add|subtract|multiply|divide|negate)\().*convert"),
    ("other elementwise work", r""),
]


def kinds_of(hlo: str) -> dict[str, str]:
    """Returns the kind of each instruction of a compiled program, by its name."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%(\S+) \(.*?\{$(.*?)^\}", hlo, re.M | re.S))
    found = {}
    for name, rest in re.findall(r"^ +(?:ROOT )?%(\S+) = (.*)$", hlo, re.M):
        if re.search(r"[)}\]] (while|call|conditional|parameter)\(", rest):
            continue  # their time is that of what they call
        called = re.search(r"calls=%([\w.-]+)", rest)
        text = f"{name} {rest} {bodies.get(called[1], '') if called else ''}"
        found[name] = next(kind for kind, x in KINDS if re.search(x, text, re.S))
    return found


def traced(run: Callable[[], Any], kinds: dict[str, str]) -> Counter[str]:
    """Returns seconds of each kind in a run; where several run, each has its share."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        changes = [
            (moment, change, kinds[event.name])
            for plane in planes
            for line in plane.lines
            for event in line.events
            if event.name in kinds
            for moment, change in ((event.start_ns, 1), (event.end_ns, -1))
        ]
    seconds: Counter[str] = Counter()
    active: Counter[str] = Counter()
    changes.sort(key=lambda x: x[:2])
    before = changes[0][0] if changes else 0
    for moment, change, kind in changes:
        running = active.total()
        for name, count in active.items():
            seconds[name] += (moment - before) / 1e9 * count / max(running, 1)
        seconds[UNNAMED] += (moment - before) / 1e9 * (running == 0)
        active[kind] += change
        before = moment
    return seconds


def drawn(geometry: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns batches of full rows for a call of the training program."""
    shape = geometry["steps"], geometry["batch"], geometry["length"]
    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 4000, shape).astype(np.int32)
    return {
        "token_ids": ids,
        "segment_ids": np.zeros_like(ids),
        "padding_mask": np.ones_like(ids),
        "labels": rng.integers(0, 2, shape[:2]),
    }


def training_profile(
    trainer: SequentialTrainer, state: TrainState, inputs: dict[str, Any]
) -> Counter[str]:
    """Returns the seconds of a step of the training program, by kind."""
    steps = len(inputs["labels"])
    numbers = np.float32(100), np.float32(1e6), np.float32(RATE)
    given = inputs, Clock(np.int32(steps), *numbers), Terms()
    program: Any = trainer.compiler.program(trainer.step.train_steps, state, *given)

    def run() -> None:
        nonlocal state
        state, loss = program(state, *given)
        jax.block_until_ready((state, loss))

    for _ in range(2):
        run()
    found = traced(run, kinds_of(program.as_text()))
    return Counter({name: s / steps for name, s in found.items()})


def print_profile(profile: Counter[str], ceiling: float) -> None:
    table = Table("what runs", "ms", "share", title="a step of the training program")
    for name, s in profile.most_common():
        table.add_row(name, f"{1e3 * s:.1f}", f"{s / profile.total():.0%}")
    Console().print(table)
    # What has no name may be products, too: those that Eigen does are not in a trace.
    longest = profile[PRODUCTS] + profile[UNNAMED]
    saved = longest - ceiling + profile[COPIES] + profile[CASTS]
    whole = profile.total()
    print(
        f"The products reach at least {ceiling / longest:.0%} of their ceiling. At it, "
        "from operands as they lie, which would need neither copies nor casts of their "
        f"own, the step would be at most {whole / (whole - saved):.2f} times as fast."
    )


def main() -> None:
    take_large_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    choices = [name for name, x in GEOMETRIES.items() if not x["dropout"]]
    parser.add_argument("--geometry", choices=choices, default="minilm")
    here = resolve_here("auto")
    parser.add_argument("--precision", choices=PRECISIONS, default=here)
    parser.add_argument("--out", type=Path, help="a file")
    given = parser.parse_args()
    geometry = GEOMETRIES[given.geometry]
    batches = drawn(geometry)
    trainer, first, call_inputs = job(geometry, batches, given.precision)
    encoder = trainer.encoder
    inputs = {name: x[0] for name, x in batches.items()}
    labels = inputs.pop("labels")
    rng = np.random.default_rng(0)
    weights = [
        jnp.array(w) for w in [*encoder.weights, *new_head(2, encoder.width, rng)]
    ]

    def loss(weights: list) -> Any:
        features, _ = encoder.features(weights[:-2], encoder.state, inputs, True)
        logits = features @ weights[-2] + weights[-1]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])

    gradient = jax.grad(loss)
    forward = jax.jit(in_precision(loss, given.precision))
    both = jax.jit(in_precision(gradient, given.precision))
    heads, multipliers = [weights[-2:]], dict.fromkeys(trainer.groups, 1.0)
    state = trainer.step.begin(weights[:-2], heads, encoder.state, multipliers)
    optimizer = trainer.step.optimizers.of(weights[:-2], heads)
    update = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
    gradients = both(weights)
    updated = [state.optimizer.variables, [jnp.array(w) for w in weights]]

    def adam() -> Any:
        updated[1], updated[0] = map(list, update(updated[0], gradients, updated[1]))
        return updated

    kinds = {
        "forward": products(jax.make_jaxpr(loss)(weights).jaxpr),
        "forward and backward": products(jax.make_jaxpr(gradient)(weights).jaxpr),
    }
    timed = ceilings(kinds["forward and backward"])
    allowed = PRECISIONS if given.precision == "bfloat16" else ("float32",)
    best = {
        x["product"]: min(s for n, s in x["seconds"].items() if n.endswith(allowed))
        for x in timed
    }
    rate = memory_rate()
    moved = 7 * sum(w.nbytes for w in weights)  # gradient, weight, two moments; back
    seconds = {
        "forward": median(lambda: forward(weights)),
        "forward and backward": median(lambda: both(weights)),
        "Adam, all rows": median(adam),
    }
    ideals = {n: sum(best[p] * c for p, c in k.items()) for n, k in kinds.items()}
    ideals["Adam, all rows"] = moved / rate
    work = {
        name: sum(2 * prod(p) * c for p, c in found.items()) / 1e9
        for name, found in kinds.items()
    }
    table = Table("part", "ms", "ms at the ceiling", "share", title="a step")
    for name, s in seconds.items():
        row = f"{1e3 * s:.0f}", f"{1e3 * ideals[name]:.0f}", f"{ideals[name] / s:.0%}"
        table.add_row(name, *row)
    Console().print(table)
    whole = work["forward and backward"]
    print(
        f"Products: {whole:.0f} GFLOP a step, "
        f"{whole / ideals['forward and backward']:.0f} GFLOP/s on average alone; "
        f"memory: {rate / 1e9:.1f} GB/s."
    )
    profile: Counter[str] = Counter()
    if jax.default_backend() == "cpu":  # elsewhere the names in a trace are others
        profile = training_profile(trainer, first, call_inputs)
    if profile:
        print_profile(profile, ideals["forward and backward"])
    result = {
        "geometry": geometry,
        "precision": given.precision,
        "products": timed,
        "gflop": work,
        "memory_bytes_per_second": rate,
        "seconds": seconds,
        "seconds_at_ceiling": ideals,
        "seconds_by_kind": profile,
    }
    name = f"roofline_{given.geometry}_{given.precision}.json"
    save(given.out or RESULTS / name, result, "torch")


if __name__ == "__main__":
    main()
