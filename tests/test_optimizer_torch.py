"""Agreement with PyTorch's optimizers and their parameter groups."""

from optimizer_cases import ABC, small_data, small_model, values

# isort: split
import keras
import numpy as np
import pytest

from lrdist_keras.optimizer import LayerwiseOptimizer

torch = pytest.importorskip("torch", reason="needs the package torch")

RATES = {"a": 1e-3, "b": 3e-3, "c": 1e-2}
# Keras adds epsilon before the bias correction, PyTorch after it: made negligible.
ADAM = ({"epsilon": 1e-12}, {"eps": 1e-12})


@pytest.mark.parametrize(
    ("inner", "ours", "theirs"),
    [
        ("SGD", {"momentum": 0.9}, {"momentum": 0.9}),
        (
            "SGD",
            {"momentum": 0.9, "nesterov": True, "weight_decay": None},
            {"momentum": 0.9, "nesterov": True},
        ),
        ("Adam", *ADAM),
        ("AdamW", {**ADAM[0], "weight_decay": 0.1}, {**ADAM[1], "weight_decay": 0.1}),
    ],
)
def test_two_hundred_steps(inner, ours, theirs):
    """Weights differ by at most the rounding of 200 steps, added up one way.

    A float32 operation rounds by up to 2**-24. An update is a chain of two (momentum,
    weight) with SGD and of four (two moments, their quotient, weight) with Adam, so the
    bound is 2.4e-5 and 4.8e-5 of the largest weight. Seen: 1.2e-6 and 1.5e-5.
    """
    bound = 200 * (2 if inner == "SGD" else 4) * 2**-24
    x, y = small_data()
    model = small_model()
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5),
        torch.nn.Tanh(), torch.nn.Linear(5, 2),
    )  # fmt: skip
    linear = [network[0], network[2], network[4]]
    with torch.no_grad():
        for layer, name in zip(linear, ABC, strict=True):
            kernel, bias = values(model.get_layer(name).weights)
            layer.weight.copy_(torch.tensor(kernel.T))
            layer.bias.copy_(torch.tensor(bias))
    groups = [
        {"params": list(layer.parameters()), "lr": rate}
        for layer, rate in zip(linear, RATES.values(), strict=True)
    ]
    optimizer = getattr(torch.optim, inner)(groups, **theirs)
    multipliers = {name: rate / 1e-2 for name, rate in RATES.items()}
    model.compile(
        LayerwiseOptimizer(
            getattr(keras.optimizers, inner)(1e-2, **ours), ABC, multipliers
        ),
        "mse",
    )
    inputs, targets = torch.tensor(x), torch.tensor(y)
    for _ in range(200):
        model.train_on_batch(x, y)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(inputs), targets).backward()
        optimizer.step()
    for layer, name in zip(linear, ABC, strict=True):
        kernel, bias = values(model.get_layer(name).weights)
        for mine, their in ((kernel.T, layer.weight), (bias, layer.bias)):
            their = their.detach().cpu().numpy()
            assert np.abs(mine - their).max() <= bound * np.abs(their).max()
