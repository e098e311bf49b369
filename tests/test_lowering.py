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
from trainer_cases import data, task

from lrdist_keras.config import ArmSettings, TrainingSettings
from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.models.layer_features import FeatureReader
from lrdist_keras.training import mlm_fisher
from lrdist_keras.training import trainer as module
from lrdist_keras.training.mlm_fisher import pretraining_fisher
from lrdist_keras.training.programs import Programs
from lrdist_keras.training.trainer import SequentialTrainer

SETTINGS = TrainingSettings(
    batch_size=8, max_length=16, steps_per_call=2, evaluation_batch_size=8
)
STRATEGIES = get_args(ArmSettings.model_fields["strategy"].annotation)
KINDS = {"plain", "probe", "ewc", "l2_sp", "recadam", "mixed", "lwf"}
KINDS |= {"evaluate", "fisher"}


def short(seed):
    return data(seed, shortest=4, longest=14)


def lower(function, *arguments):
    """Lowers a jitted function for GPU and TPU."""
    for platform in ("cuda", "tpu"):
        exported = export.export(function, platforms=(platform,))(*arguments)
        assert exported.platforms == (platform,)
        assert "stablehlo" in exported.mlir_module()


class Lowering(Programs):
    """Programs that are lowered for GPU and TPU and leave all as it is."""

    lowered: set = set()

    def begin(self, *program):
        pass

    def _program(self, kind, classes, rows, arguments):
        # The first of a kind stands for its buckets and heads.
        key = (kind, len(self.encoder.weights))
        if key not in self.lowered:
            shape = self._key(kind, classes, rows, arguments)[-1]
            lower(self.jitted(kind, classes, shape, rows), *arguments)
            self.lowered.add(key)
        if kind == "evaluate":
            examples = len(arguments[2]["labels"])
            features = np.zeros((examples, self.encoder.width), np.float32)
            logits = np.zeros((examples, *classes), np.float32)
            return lambda *arguments: (logits, features)
        if kind == "fisher":
            return lambda *arguments: arguments[0]
        return lambda *arguments: (*arguments[:3], np.float32(0))


@pytest.mark.parametrize(
    "precision, strategies, kinds",
    [
        ("bfloat16", STRATEGIES, KINDS),
        ("float32", ("ewc", "lora"), {"plain", "ewc", "evaluate", "fisher"}),
    ],
)
def test_the_programs_of_every_strategy(
    tiny_preset, monkeypatch, precision, strategies, kinds
):
    # As on a GPU, where bfloat16 is a dtype policy.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(module, "Programs", Lowering)
    monkeypatch.setattr(Lowering, "lowered", set())
    encoder = load_encoder(str(tiny_preset), 0.1, precision)
    trainer = SequentialTrainer(encoder, SETTINGS)
    few = {"train": short(0), "validation": short(1)}
    tasks = [task(name, i, epochs=1, **few) for i, name in enumerate("ab")]
    rates = flat(1e-4, trainer.scheme)
    ones = [np.ones_like(w) for w in encoder.weights]
    for strategy in strategies:
        of_pretraining = strategy == "ewc_pretraining"
        given = {"raw_text": "given"} if of_pretraining else {}
        arm = ArmSettings(name=strategy, rate=1e-4, strategy=strategy, **given)
        fisher = ones if of_pretraining else None
        trainer.run(tasks, rates, arm, 0, budget=0.2, pretraining_fisher=fisher)
    whole = len(encoder.weights)
    of_model = {kind for kind, weights in Lowering.lowered if weights == whole}
    with_adapters = {kind for kind, weights in Lowering.lowered if weights != whole}
    assert of_model == kinds
    assert with_adapters == {"plain", "evaluate"}


def test_masked_language_and_features(tiny_preset, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    encoder = load_encoder(str(tiny_preset), precision="bfloat16")
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
    monkeypatch.setattr(mlm_fisher, "jax", replaced)
    monkeypatch.setattr(mlm_fisher, "_EPOCHS", 1)
    found = pretraining_fisher(encoder, data(0, 12, shortest=4, longest=14), 4, 16, 2)
    assert all(np.isfinite(f).all() for f in found.fisher)
    assert lowered == {"_hidden", "step", "_squares"}
    reader = FeatureReader(encoder, 16)
    inputs = data(0, 12, shortest=4, longest=14).arrays(np.arange(4), 16)
    lower(reader._last, encoder.weights, inputs)
    lower(reader._layers, [encoder.weights[i] for i in reader._positions], inputs)


# Trains the same on one device and on two; prints the largest difference.
ON_TWO_DEVICES = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, keras, numpy as np
from trainer_cases import data, task, trained
from lrdist_keras.config import ArmSettings, TrainingSettings
from lrdist_keras.distribution import flat
from lrdist_keras.models import load_encoder
from lrdist_keras.programs import placement
from lrdist_keras.training import SequentialTrainer

preset = sys.argv[1]
settings = TrainingSettings(
    batch_size=8, max_length=16, steps_per_call=2, evaluation_batch_size=8
)
train, validation = data(0, shortest=4, longest=14), data(1, 16, shortest=4, longest=14)
tasks = [task("a", 0, epochs=1, train=train, validation=validation)]
arm = ArmSettings(name="plain", rate=1e-3)

def run(distribution):
    keras.distribution.set_distribution(distribution)
    trainer = SequentialTrainer(load_encoder(preset, dropout=0.1), settings)
    weights = trained(trainer, tasks, flat(1e-3, trainer.scheme), arm)[-1]
    fisher = trainer.fisher(train, weights[:-2], weights[-2:])
    paths = [v.path for v in trainer.encoder.model.trainable_variables]
    kept = [not path.endswith("key/bias") for path in paths]
    return weights, list(map(np.asarray, fisher)), kept, trainer.programs._compiled

one, fisher, kept, _ = run(None)
two, shared_fisher, _, programs = run(keras.distribution.DataParallel())
for (kind, *_), program in programs.items():
    inputs = 3 if kind == "plain" else 2
    sharding = program.input_shardings[0][inputs]["token_ids"]
    assert len(sharding.device_set) == 2 and not sharding.is_fully_replicated, kind
    outputs = jax.tree.leaves(program.output_shardings)
    assert all(s.is_fully_replicated for s in outputs), kind
assert {kind for kind, *_ in programs} == {"plain", "fisher", "evaluate"}
# The gradient of a key's bias is zero but for rounding, which Adam scales up.
print(max(np.abs(a - b).max() for a, b, k in zip(one, two, [*kept, True, True]) if k))
print(max(
    np.abs(a - b).max() / a.max()
    for a, b, k in zip(fisher, shared_fisher, kept) if k and a.any()
))
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(
        layout_map=keras.distribution.LayoutMap(
            keras.distribution.DeviceMesh((2,), ("batch",), jax.devices())
        )
    )
)
try:
    placement((8, 16))
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
    weights, fisher, error = result.stdout.strip().splitlines()[-3:]
    assert float(weights) < 1e-5
    assert float(fisher) < 1e-4
    assert "DataParallel" in error and "Received: ModelParallel" in error
