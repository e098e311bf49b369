"""What the wheel must do in an environment with Keras, NumPy and PyTorch alone."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np

from lrdist_keras import LayerwiseOptimizer

for package in ("jax", "tensorflow", "keras_hub", "pydantic", "typer"):
    assert find_spec(package) is None, f"{package} is there"
inputs = keras.Input((4,))
hidden = keras.layers.Dense(8, "tanh", name="body")(inputs)
model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden))
optimizer = LayerwiseOptimizer(
    keras.optimizers.Adam(1e-2), {"body": "body", "head": "head"}, {"body": 0.1}
)
model.compile(optimizer, "mse")
x = np.random.default_rng(0).normal(size=(64, 4))
losses = model.fit(x, x.sum(1, keepdims=True), epochs=5, verbose=0).history["loss"]
assert losses[-1] < losses[0], losses
command = Path(sys.executable).with_name("lrdist")
run = subprocess.run([command, "show", "x"], capture_output=True, text=True)
assert run.returncode and run.stderr.count("\n") == 1, run
assert "pip install 'lrdist-keras[lab]'" in run.stderr, run.stderr
print(f"The core trains on {keras.backend.backend()}; `lrdist` names the extra.")
