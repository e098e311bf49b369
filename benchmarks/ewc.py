"""Fisher and penalty against Avalanche's EWC plugin, on the same weights and data.

    pip install avalanche-lib torch && python benchmarks/ewc.py

With batch size 1 the plugin squares the gradients of single examples, as we do; its
penalty lacks the 1/2, so that our strength is twice its lambda.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import torch
from avalanche.training.plugins import EWCPlugin
from avalanche.training.utils import copy_params_dict

from lrdist_keras.training.penalties import QuadraticPenalty, squared_gradients

EXAMPLES, WIDTH, HIDDEN, CLASSES, LAMBDA = 50, 12, 16, 3, 0.4


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
    y = rng.integers(0, CLASSES, EXAMPLES)
    model = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, CLASSES),
    )
    weights = [p.detach().numpy().copy() for p in model.parameters()]

    tasks = torch.zeros(EXAMPLES, dtype=torch.long)
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y), tasks)
    plugin = EWCPlugin(LAMBDA)
    importances = plugin.compute_importances(
        model,
        torch.nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), 0.1),
        data,
        "cpu",
        batch_size=1,
    )
    theirs = [p.data.numpy() for p in importances.values()]

    def log_likelihood(weights: list, example: dict) -> jax.Array:
        w1, b1, w2, b2 = weights
        logits = w2 @ jnp.tanh(w1 @ example["x"] + b1) + b2
        return jax.nn.log_softmax(logits)[example["y"]]

    squares = squared_gradients(
        log_likelihood, weights, {"x": x, "y": y}, np.ones(EXAMPLES, np.float32)
    )
    ours = [s / EXAMPLES for s in squares]
    fisher = max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(ours, theirs, strict=True)
    )

    plugin.update_importances(importances, 0)
    plugin.saved_params[0] = copy_params_dict(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    strategy = SimpleNamespace(
        model=model,
        clock=SimpleNamespace(train_exp_counter=1),
        loss=torch.zeros(1),
        device="cpu",
    )
    plugin.before_backward(strategy)
    expected = float(strategy.loss)
    moved = [p.detach().numpy() for p in model.parameters()]
    found = float(QuadraticPenalty(ours, weights, 2 * LAMBDA)(moved))
    penalty = abs(found - expected) / expected
    print(json.dumps({"fisher": fisher, "penalty": penalty}))
    if max(fisher, penalty) > 1e-5:
        raise SystemExit("The relative difference is above 1e-5.")


if __name__ == "__main__":
    main()
