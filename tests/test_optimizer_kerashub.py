"""KerasHub's tasks, trained with `LayerwiseOptimizer`, load again in every way."""

import optimizer_cases  # noqa: F401  # first, because it chooses Keras's backend

# isort: split
import inspect
from contextlib import nullcontext

import keras
import numpy as np
import pytest

from lrdist_keras.groups import transformer_groups
from lrdist_keras.optimizer import LayerwiseOptimizer

keras_hub = pytest.importorskip("keras_hub", reason="needs KerasHub")

TRANSFORMER = dict(
    vocabulary_size=20, num_layers=2, hidden_dim=4, intermediate_dim=8,
    max_sequence_length=6,
)  # fmt: skip
BACKBONES = {
    "BertBackbone": {**TRANSFORMER, "num_heads": 2},
    "RobertaBackbone": {**TRANSFORMER, "num_heads": 2},
    "DistilBertBackbone": {**TRANSFORMER, "num_heads": 2},
    "GPT2Backbone": {**TRANSFORMER, "num_heads": 2},
    "FNetBackbone": TRANSFORMER,
    "ViTBackbone": dict(
        image_shape=(8, 8, 3), patch_size=4, num_layers=2, num_heads=2, hidden_dim=4,
        mlp_dim=8,
    ),
}  # fmt: skip
TASKS = {
    value.__name__: value
    for value in vars(keras_hub.models).values()
    if inspect.isclass(value)
    and issubclass(value, keras_hub.models.Task)
    and getattr(value.backbone_cls, "__name__", None) in BACKBONES
}
INNER = ["Adam", "AdamW", "SGD", "Lion", "Muon"]


def make(name):
    """A small model of a task, with random weights."""
    keras.utils.set_random_seed(0)
    kind = TASKS[name]
    backbone = kind.backbone_cls(**BACKBONES[kind.backbone_cls.__name__])
    classes = {"num_classes": 3} if "Classifier" in name else {}
    return kind(backbone, preprocessor=None, **classes)


def inputs(model):
    rng = np.random.default_rng(0)
    return {
        tensor.name.split(":")[0]: rng.uniform(size=(2, *tensor.shape[1:]))
        if len(tensor.shape) > 2
        else {
            "padding_mask": np.ones((2, 6), "int32"),
            "segment_ids": np.zeros((2, 6), "int32"),
            "mask_positions": np.array([[1, 2], [0, 3]]),
        }.get(tensor.name, rng.integers(0, 20, (2, 6)))
        for tensor in model.inputs
    }


def predict(model):
    x = inputs(model)
    return keras.ops.convert_to_numpy(
        model(x if len(x) > 1 else next(iter(x.values())))
    )


def compile_layerwise(model, inner):
    """Compiles with groups of the model's layers, or of its halves where unknown."""
    try:
        groups, multipliers = transformer_groups(model)[1], {"encoder_1": 0.3}
    except ValueError:
        groups = lambda v: "kernels" if "kernel" in v.path else "others"  # noqa: E731
        multipliers = {"kernels": 0.3}
    inner = getattr(keras.optimizers, inner)(1e-2)
    model.compile(LayerwiseOptimizer(inner, groups, multipliers))
    return model


def step(model):
    """One step of the optimizer along random gradients."""
    rng = np.random.default_rng(1)
    variables = model.trainable_variables
    gradients = [
        keras.ops.convert_to_tensor(rng.normal(size=v.shape), v.dtype)
        for v in variables
    ]
    model.optimizer.apply(gradients, variables)


def skipping():
    """The task's own Adam leaves out what another optimizer saved."""
    return pytest.warns(UserWarning, match="Skipping variable loading for optimizer")


def test_every_task_is_there():
    assert len(TASKS) == 11
    assert len(TASKS) * len(INNER) == 55


# Every task and every optimizer in the suite; the other pairs by `make test-slow`.
PAIRS = [
    pytest.param(
        name,
        inner,
        marks=[] if inner == INNER[i % len(INNER)] else [pytest.mark.slow],
    )
    for i, name in enumerate(TASKS)
    for inner in INNER
]


@pytest.mark.filterwarnings("ignore:.*compile.*was not called as part of:UserWarning")
@pytest.mark.parametrize(("name", "inner"), PAIRS)
def test_a_trained_task_loads_again(tmp_path, name, inner):
    """11 tasks x 5 optimizers, each loaded in 4 ways on each backend."""
    model = compile_layerwise(make(name), inner)
    before = predict(model)
    step(model)
    expected = predict(model)
    assert np.abs(expected - before).max() > 1e-4
    file, weights, preset = (
        str(tmp_path / end) for end in ("m.keras", "m.weights.h5", "preset")
    )
    model.save(file)
    model.save_weights(weights)
    model.save_to_preset(preset)
    loaded = {}
    with skipping():
        loaded["load_model"] = keras.models.load_model(file)
    with skipping():
        loaded["compile=False"] = keras.models.load_model(file, compile=False)
    with skipping():
        loaded["load_weights"] = make(name)
        loaded["load_weights"].load_weights(weights)
    with skipping() if model.has_task_weights() else nullcontext():
        loaded["preset"] = TASKS[name].from_preset(preset)
    for way, other in loaded.items():
        np.testing.assert_array_equal(predict(other), expected, err_msg=way)
    resumed = compile_layerwise(loaded["load_weights"], inner)
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.load_weights(file)
    for each in (model, resumed):
        step(each)
    np.testing.assert_allclose(predict(resumed), predict(model), rtol=1e-6, atol=1e-7)
