"""Every compiled program lowers for GPU and TPU; and runs on several devices."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from trainer_cases import data, task

from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.models.layer_features import FeatureReader
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training import compiler, mlm_fisher
from lrdist_keras.training.compiler import Compiler
from lrdist_keras.training.mlm_fisher import pretraining_fisher
from lrdist_keras.training.plan import Terms
from lrdist_keras.training.step import TrainState
from lrdist_keras.training.strategies.every import STRATEGIES
from lrdist_keras.training.trainer import SequentialTrainer

SETTINGS = TrainingSettings(
    batch_size=8, max_length=16, steps_per_call=2, evaluation_batch_size=8
)
KINDS = {
    "train_steps",
    "probe_steps",
    "train_steps penalty",
    "train_steps penalty of the head",
    "train_steps pull",
    "train_steps head",
    "train_steps dark_experience",
    "train_steps teacher distillation",
    "evaluate",
    "fisher",
}


def short(seed):
    return data(seed, shortest=4, longest=14)


def lower(function, *arguments):
    """Lowers a jitted function for GPU and TPU."""
    for platform in ("cuda", "tpu"):
        exported = export.export(function, platforms=(platform,))(*arguments)
        assert exported.platforms == (platform,)
        assert "stablehlo" in exported.mlir_module()


class Lowering(Compiler):
    """Lowers for GPU and TPU what would be called, and gives zeros for its results."""

    def __init__(self):
        super().__init__()
        self.lowered = set()  # of the functions, with the number of weights
        self._results = {}

    def prefetch(self, function, *arguments):
        pass

    def call(self, function, *arguments):
        # The first of its kind stands for other lengths and heads.
        if (kind := kind_of(function, arguments)) not in self.lowered:
            lower(compiler.jitted(function, *arguments), *arguments)
            self.lowered.add(kind)
        key = compiler._key(function, arguments)
        if key not in self._results:
            self._results[key] = jax.eval_shape(function, *arguments)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._results[key])


def kind_of(function, arguments):
    """The function, its terms and what is in a batch beside texts; and its `Step`."""
    parts, weights = [function.__name__], []
    for argument in arguments:
        if isinstance(argument, TrainState):
            weights = argument.weights
        elif isinstance(argument, Terms):
            named = argument._asdict().items()
            parts += [name for name, term in named if term is not None]
            penalty = argument.penalty
            if penalty is not None and len(penalty.anchor) > len(weights):
                parts.append("of the head")
        elif isinstance(argument, dict):
            parts += sorted({"head", "teacher"} & argument.keys())
    method = getattr(function, "__wrapped__", function)  # without its precision
    return " ".join(parts), method.__self__


@pytest.mark.parametrize(
    "precision, names, kinds",
    [
        ("bfloat16", STRATEGIES, KINDS),
        (
            "float32",
            ("ewc", "lora"),
            {"train_steps", "train_steps penalty", "evaluate", "fisher"},
        ),
    ],
)
def test_the_programs_of_every_strategy(
    tiny_preset, monkeypatch, precision, names, kinds
):
    # As on a GPU, where embeddings and products are others.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    encoder, lowering = load_encoder(str(tiny_preset), 0.1, precision), Lowering()
    trainer = SequentialTrainer(encoder, SETTINGS, compiler=lowering)
    few = {"train": short(0), "validation": short(1)}
    tasks = [task(name, i, epochs=1, **few) for i, name in enumerate("ab")]
    rates = flat(1e-4, trainer.scheme)
    ones = [np.ones_like(w) for w in encoder.weights]
    for name in names:
        given = {"raw_text": "given"} if name == "ewc_pretraining" else {}
        strategy = STRATEGIES[name](**given).prepared(lambda *_: ones)
        trainer.run(tasks, rates, strategy, 0, budget=0.2)
    of_model = {kind for kind, step in lowering.lowered if step is trainer.step}
    with_adapters = {kind for kind, step in lowering.lowered if step != trainer.step}
    assert of_model == kinds
    assert with_adapters == {"train_steps", "evaluate"}


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
    assert lowered == {"_hidden", "step", "logits", "_squares"}
    reader = FeatureReader(encoder, 16)
    inputs = data(0, 12, shortest=4, longest=14).arrays(np.arange(4), 16)
    lower(reader._last, encoder.weights, inputs)
    lower(reader._layers, [encoder.weights[i] for i in reader._positions], inputs)


# Trains the same on one device and on two; prints the largest difference.
ON_TWO_DEVICES = """
import os, sys
os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
import jax, keras, numpy as np
from trainer_cases import data, task, trained
from lrdist_keras.distribution import flat
from lrdist_keras.models.encoder import load_encoder
from lrdist_keras.settings import TrainingSettings
from lrdist_keras.training.compiler import placement
from lrdist_keras.training.strategies.plain import Plain
from lrdist_keras.training.trainer import SequentialTrainer

preset = sys.argv[1]
settings = TrainingSettings(
    batch_size=8, max_length=16, steps_per_call=2, evaluation_batch_size=8
)
train, validation = data(0, shortest=4, longest=14), data(1, 16, shortest=4, longest=14)
tasks = [task("a", 0, epochs=1, train=train, validation=validation)]

def run(distribution):
    keras.distribution.set_distribution(distribution)
    trainer = SequentialTrainer(load_encoder(preset, dropout=0.1), settings)
    weights = trained(trainer, tasks, flat(1e-3, trainer.scheme), Plain())[-1]
    fisher = trainer.fisher(train, weights[:-2], weights[-2:])
    paths = [v.path for v in trainer.encoder.model.trainable_variables]
    kept = [not path.endswith("key/bias") for path in paths]
    return weights, list(map(np.asarray, fisher)), kept, trainer.compiler._compiled

one, fisher, kept, _ = run(None)
two, shared_fisher, _, programs = run(keras.distribution.DataParallel())
for (function, *_), program in programs.items():
    kind, shardings = function.__name__, program.input_shardings[0]
    (sharding,) = (x["token_ids"] for x in shardings if isinstance(x, dict))
    assert len(sharding.device_set) == 2 and not sharding.is_fully_replicated, kind
    outputs = jax.tree.leaves(program.output_shardings)
    assert all(s.is_fully_replicated for s in outputs), kind
names = {function.__name__ for function, *_ in programs}
assert names == {"train_steps", "fisher", "evaluate"}
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
    placement((8,))
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
