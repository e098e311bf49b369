"""Every compiled program lowers for GPU and TPU; and runs on several devices."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import jax
import numpy as np
import pytest
from jax import export
from training_cases import data, task

from lrdist_keras import masked_language, training
from lrdist_keras.config import ArmSettings, TrainingSettings
from lrdist_keras.distribution import flat
from lrdist_keras.features import FeatureReader
from lrdist_keras.masked_language import pretraining_fisher
from lrdist_keras.models import load_encoder
from lrdist_keras.programs import Programs
from lrdist_keras.training import SequentialTrainer

SETTINGS = TrainingSettings(
    batch_size=8, max_length=16, steps_per_call=2, evaluation_batch_size=8
)
STRATEGIES = get_args(ArmSettings.model_fields["strategy"].annotation)
KINDS = {"plain", "probe", "ewc", "l2_sp", "recadam", "mixed", "lwf"}
KINDS |= {"evaluate", "fisher"}


def lower(function, *arguments):
    """Lowers a jitted function for GPU and TPU."""
    for platform in ("cuda", "tpu"):
        exported = export.export(function, platforms=(platform,))(*arguments)
        assert exported.platforms == (platform,)
        assert "stablehlo" in exported.mlir_module()


class Lowering(Programs):
    """Programs that are lowered for GPU and TPU and leave all as it is."""

    lowered: set = set()

    def _program(self, kind, classes, inputs, arguments):
        # The first of a kind stands for its buckets and heads.
        key = (kind, len(self.encoder.weights))
        if key not in self.lowered:
            shape = inputs["token_ids"].shape
            lower(self.jitted(kind, classes, shape), *arguments)
            self.lowered.add(key)
        if kind == "evaluate":
            rows = len(inputs["labels"])
            return lambda *arguments: np.zeros((rows, *classes), np.float32)
        if kind == "fisher":
            return lambda *arguments: arguments[0]
        return lambda *arguments: (*arguments[:3], np.float32(0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_programs_of_every_strategy(tiny_preset, monkeypatch, precision):
    # As on a GPU, where bfloat16 is a dtype policy.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(training, "Programs", Lowering)
    monkeypatch.setattr(Lowering, "lowered", set())
    trainer = SequentialTrainer(
        load_encoder(str(tiny_preset), 0.1, precision), SETTINGS
    )
    tasks = [task(name, i, epochs=1) for i, name in enumerate("ab")]
    for strategy in STRATEGIES:
        given = {"raw_text": "given"} if strategy == "ewc_pretraining" else {}
        arm = ArmSettings(name=strategy, rate=1e-4, strategy=strategy, **given)
        ones = [np.ones_like(w) for w in trainer.encoder.weights] if given else None
        rates = flat(1e-4, trainer.scheme)
        trainer.run(tasks, rates, arm, 0, pretraining_fisher=ones, budget=0.2)
    whole = len(trainer.encoder.weights)
    of_model = {kind for kind, weights in Lowering.lowered if weights == whole}
    with_adapters = {kind for kind, weights in Lowering.lowered if weights != whole}
    assert of_model == KINDS
    assert with_adapters == {"plain", "evaluate"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_masked_language_and_features(tiny_preset, monkeypatch, precision):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    encoder = load_encoder(str(tiny_preset), precision=precision)
    lowered = set()

    def lowering_jit(function, **options):
        jitted = jax.jit(function, **options)

        def call(*arguments):
            if function.__name__ not in lowered:
                lower(jitted, *arguments)
                lowered.add(function.__name__)
            return jitted(*arguments)

        return call

    replaced = SimpleNamespace(**{**vars(jax), "jit": lowering_jit})
    monkeypatch.setattr(masked_language, "jax", replaced)
    monkeypatch.setattr(masked_language, "_EPOCHS", 1)
    found = pretraining_fisher(encoder, data(0, 12, longest=14), 4, 16, 2)
    assert all(np.isfinite(f).all() for f in found.fisher)
    assert lowered == {"_hidden", "step", "_squares"}
    reader = FeatureReader(encoder, 16)
    inputs = data(0, 12, longest=14).arrays(np.arange(4), 16)
    lower(reader._last, encoder.weights, inputs)
    lower(reader._layers, [encoder.weights[i] for i in reader._positions], inputs)


# Trains the same on one device and on two; prints the largest difference.
ON_TWO_DEVICES = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, keras, numpy as np
from training_cases import task, trained
from lrdist_keras.config import ArmSettings, TrainingSettings
from lrdist_keras.distribution import flat
from lrdist_keras.models import load_encoder
from lrdist_keras.training import SequentialTrainer

preset = sys.argv[1]
settings = TrainingSettings(batch_size=8, max_length=32, steps_per_call=2)
tasks = [task(name, i, epochs=1) for i, name in enumerate("ab")]
arm = ArmSettings(name="ewc", rate=1e-3, strategy="ewc", strength=10.0)

def run(distribution):
    keras.distribution.set_distribution(distribution)
    trainer = SequentialTrainer(load_encoder(preset), settings)
    weights = trained(trainer, tasks, flat(1e-3, trainer.scheme), arm)[-1]
    paths = [v.path for v in trainer.encoder.model.trainable_variables]
    return weights, paths + 4 * ["head"], trainer.programs._compiled

one, paths, _ = run(None)
two, _, programs = run(keras.distribution.DataParallel())
for (kind, *_), program in programs.items():
    inputs = {"evaluate": 2, "fisher": 2}.get(kind, 3)
    sharding = program.input_shardings[0][inputs]["token_ids"]
    assert len(sharding.device_set) == 2 and not sharding.is_fully_replicated, kind
    outputs = jax.tree.leaves(program.output_shardings)
    assert all(s.is_fully_replicated for s in outputs), kind
assert {kind for kind, *_ in programs} == {"plain", "ewc", "fisher", "evaluate"}
# The gradient of a key's bias is zero but for rounding, which Adam scales up.
print(max(
    np.abs(a - b).max() for a, b, path in zip(one, two, paths, strict=True)
    if not path.endswith("key/bias")
))
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(
        layout_map=keras.distribution.LayoutMap(
            keras.distribution.DeviceMesh((2,), ("batch",), jax.devices())
        )
    )
)
try:
    SequentialTrainer(load_encoder(preset), settings).run(
        tasks, flat(1e-3, SequentialTrainer(load_encoder(preset), settings).scheme),
        arm, 0,
    )
except ValueError as error:
    print(error)
"""


def test_two_devices_train_as_one(tiny_preset):
    result = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES, str(tiny_preset)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    difference, error = result.stdout.strip().splitlines()[-2:]
    assert float(difference) < 1e-5
    assert "DataParallel" in error and "Received: ModelParallel" in error
