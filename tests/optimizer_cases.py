"""What the tests of the optimizer share: optimizers, variables, runs."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import inspect

import keras
import numpy as np

from lrdist_keras.optimizer import LayerwiseOptimizer

BACKEND = keras.backend.backend()


def without_tensorflow(code):
    """Returns a script that does not import it, which takes seconds, where it can."""
    hidden = "import sys\nsys.modules['tensorflow'] = None\n"
    return (hidden if BACKEND == "jax" else "") + inspect.cleandoc(code)


# Exported by Keras, but no optimizers that could stand inside.
NOT_INNER = {
    "Optimizer": "abstract, has no update",
    "LossScaleOptimizer": "a wrapper that goes outermost",
    "MultiOptimizer": "a wrapper with optimizers of its own",
}
INNER = [
    value
    for name, value in sorted(vars(keras.optimizers).items())
    if inspect.isclass(value)
    and issubclass(value, keras.optimizers.Optimizer)
    and name not in NOT_INNER
]
SHAPES = {
    "embeddings/table": (6, 3),
    "body/kernel": (3, 4),
    "body/bias": (4,),
    "head/kernel": (4, 2),
    "head/bias": (2,),
}
GROUPS = {"embeddings": "embeddings", "body": "body", "head": "head"}


_STEPS = {}


def make_variables(seed=0, shapes=None):
    """Variables with the given paths, normally distributed."""
    rng = np.random.default_rng(seed)
    variables = []
    for path, shape in (shapes or SHAPES).items():
        *scopes, name = path.split("/")
        value = rng.normal(size=shape).astype("float32")
        with keras.name_scope(scopes[0]):
            variables.append(keras.Variable(value, name=name))
    return variables


def make_gradients(steps, seed=1, shapes=None):
    """One list of arrays for each step."""
    rng = np.random.default_rng(seed)
    shapes = list((shapes or SHAPES).values())
    return [
        [rng.normal(size=shape).astype("float32") for shape in shapes]
        for _ in range(steps)
    ]


def train(optimizer, gradients, variables=None, shapes=None):
    """Applies the gradients in turn; returns the final values."""
    variables = variables or make_variables(shapes=shapes)
    if BACKEND == "jax":
        return _train_jitted(optimizer, gradients, variables)
    for step in gradients:
        tensors = [keras.ops.convert_to_tensor(g) for g in step]
        optimizer.apply_gradients(list(zip(tensors, variables, strict=True)))
    return values(variables)


def _train_jitted(optimizer, gradients, variables):
    import jax

    optimizer.build(variables)
    state = [v.value for v in variables], [v.value for v in optimizer.variables]
    if optimizer not in _STEPS:  # one compilation serves all rates
        _STEPS[optimizer] = jax.jit(
            lambda state, grads: optimizer.stateless_apply(state[1], grads, state[0])
        )
    for tensors in gradients:
        state = _STEPS[optimizer](state, tensors)
    set_values(variables, state[0])
    set_values(optimizer.variables, state[1])
    return values(variables)


def set_values(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]


def by_hand(make, rate, multipliers):
    """A `MultiOptimizer` with one optimizer of `rate * multiplier` per group."""
    optimizers = {
        f"{group}/.*": make(learning_rate=rate * multiplier)
        for group, multiplier in zip(GROUPS, multipliers, strict=True)
    }
    first = next(iter(optimizers.values()))
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(first, optimizers)
    )


def one_group(inner, multiplier=1.0, **arguments):
    """An optimizer whose only group holds every variable."""
    return LayerwiseOptimizer(inner, lambda variable: "all", [multiplier], **arguments)


def small_model(seed=0, names=("a", "b", "c"), **dense):
    """Three dense layers on inputs of width 4, outputs of width 2."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((4,))
    for name, width in zip(names, (6, 5, 2), strict=True):
        activation = "tanh" if width > 2 else None
        x = keras.layers.Dense(width, activation, name=name, **dense)(x)
    return keras.Model(inputs, x)


def small_data(rows=16):
    rng = np.random.default_rng(3)
    return (
        rng.normal(size=(rows, 4)).astype("float32"),
        rng.normal(size=(rows, 2)).astype("float32"),
    )


ABC = {"a": "a", "b": "b", "c": "c"}
