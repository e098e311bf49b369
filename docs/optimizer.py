"""The recipes of `LayerwiseOptimizer`; `python docs/render.py` makes the page."""

# %% [markdown]
# # Recipes for `LayerwiseOptimizer`
#
# Wrap any Keras optimizer and give each group of layers a multiple of its learning
# rate. This page is made from `docs/optimizer.py`, which the tests run.

# %%
import tempfile
import warnings

import jax
import keras
import keras_hub
import numpy as np

from lrdist_keras import (
    LayerwiseOptimizer,
    PatternScheme,
    Scheme,
    llrd,
    transformer_groups,
)
from lrdist_keras.optimizer import GradualUnfreezing

rng = np.random.default_rng(0)

# %% [markdown]
# ## A KerasHub classifier
#
# The groups of BERT, RoBERTa, DistilBERT and GPT-2 are known. A distribution gives each
# its absolute rate; here layer-wise decay, and `"kenneweg2022"` in its place would be
# the published one. With a schedule, its peak is the distribution's largest rate.

# %%
backbone = keras_hub.models.BertBackbone(
    vocabulary_size=50,
    num_layers=2,
    num_heads=2,
    hidden_dim=8,
    intermediate_dim=16,
    max_sequence_length=12,
)
classifier = keras_hub.models.BertTextClassifier(
    backbone, num_classes=2, preprocessor=None
)
optimizer = LayerwiseOptimizer.from_distribution(
    keras.optimizers.AdamW,
    llrd(2e-4, 0.9, Scheme(2)),
    classifier,
    schedule=lambda peak: keras.optimizers.schedules.CosineDecay(peak, 100),
    weight_decay=0.01,
)
classifier.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
tokens = {
    "token_ids": rng.integers(0, 50, (8, 12)),
    "segment_ids": np.zeros((8, 12), "int32"),
    "padding_mask": np.ones((8, 12), "int32"),
}
classifier.fit(tokens, rng.integers(0, 2, 8), verbose=0)
optimizer.summary()

# %% [markdown]
# The same without a distribution: a faster head in one line, and gradual unfreezing in
# one line, which opens one more group every 100 steps, the head first.

# %%
faster_head = LayerwiseOptimizer(
    keras.optimizers.AdamW(2e-5), classifier, {"head": 10.0}
)
unfreezing = LayerwiseOptimizer(
    keras.optimizers.AdamW(2e-5), classifier, GradualUnfreezing(100, [1, 1, 1, 1])
)

# %% [markdown]
# By default the transformer layers make eight groups, or one each where they are fewer.
# Others are given by how many layers each has, from the bottom: `[1, 2, 9]` divides 12
# layers in three; here both layers make one. `Scheme(2, layer_groups=[2])` is that of a
# distribution for them.

# %%
_, in_one = transformer_groups(classifier, layer_groups=[2])
slower_encoder = LayerwiseOptimizer(
    keras.optimizers.AdamW(2e-5), in_one, {"encoder_1": 0.5}
)

# %% [markdown]
# ## Your own functional model
#
# Groups are an ordered mapping from name to path pattern(s). Every trainable variable
# must be in exactly one; what is not is named in the error. Multipliers can be assigned
# at any time without a recompilation, 0 freezes.

# %%
inputs = keras.Input((4,))
x = keras.layers.Dense(8, "relu", name="low")(inputs)
x = keras.layers.Dense(8, "relu", name="high")(x)
model = keras.Model(inputs, keras.layers.Dense(1, name="head")(x))
optimizer = LayerwiseOptimizer(
    keras.optimizers.Adam(1e-2),
    groups={"body": ["low", "high"], "head": "head"},
    multipliers={"body": 0.1},
)
model.compile(optimizer, "mse")
data, target = rng.normal(size=(32, 4)), rng.normal(size=(32, 1))
model.fit(data, target, verbose=0)
optimizer.multipliers = {**optimizer.multipliers, "body": 0.0}
frozen = model.get_layer("low").kernel.numpy()
model.fit(data, target, verbose=0)
assert (model.get_layer("low").kernel.numpy() == frozen).all()

# %% [markdown]
# With the groups in order from input to output, layer-wise decay is one line too.

# %%
decaying = LayerwiseOptimizer.from_distribution(
    keras.optimizers.Adam, llrd(1e-2, 0.5, PatternScheme(optimizer.groups)), model
)
assert decaying.multipliers == {"body": 0.5, "head": 1.0}

# %% [markdown]
# ## A subclassed model
#
# A function from variable to group name needs no patterns.

# %%


class Regressor(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(8, "relu")
        self.final = keras.layers.Dense(1)

    def call(self, inputs):
        return self.final(self.hidden(inputs))


regressor = Regressor()
optimizer = LayerwiseOptimizer(
    keras.optimizers.SGD(0.1, momentum=0.9),
    groups=lambda variable: "biases" if "bias" in variable.path else "kernels",
    multipliers={"biases": 2.0},
)
regressor.compile(optimizer, "mse")
regressor.fit(data, target, verbose=0)
assert optimizer.multipliers == {"kernels": 1.0, "biases": 2.0}

# %% [markdown]
# ## A Vision Transformer
#
# Patterns match whole path segments, with wildcards: `transformer_block_1` is not
# `transformer_block_10`.

# %%
vit = keras_hub.models.ViTBackbone(
    image_shape=(8, 8, 3),
    patch_size=4,
    num_layers=4,
    num_heads=2,
    hidden_dim=8,
    mlp_dim=16,
)
vit_groups = {
    "embeddings": "*patching_and_embedding",
    "lower": "transformer_block_[1-2]",
    "upper": ["transformer_block_[3-4]", "vit_encoder/ln"],
}
optimizer = LayerwiseOptimizer(
    keras.optimizers.AdamW(1e-3), vit_groups, multipliers=[0.1, 0.3, 1.0]
)
vit.compile(optimizer, "mse")
images = rng.uniform(size=(2, 8, 8, 3))
vit.fit(images, np.zeros(vit(images).shape), verbose=0)

# %% [markdown]
# ## A custom JAX training loop
#
# The multipliers are the first of `optimizer.variables`, so one compiled step serves
# any of them, and `jax.vmap` a population.

# %%
optimizer = LayerwiseOptimizer(keras.optimizers.AdamW(1e-2), {"all": "*"})
optimizer.build(model.trainable_variables)


@jax.jit
def step(weights, state, x, y):
    def loss(weights):
        prediction, _ = model.stateless_call(weights, [], x)
        return keras.ops.mean((prediction - y) ** 2)

    value, gradients = jax.value_and_grad(loss)(weights)
    return value, *optimizer.stateless_apply(state, gradients, weights)


weights = [v.value for v in model.trainable_variables]
state = [v.value for v in optimizer.variables]
for multiplier in (1.0, 0.5, 0.1):
    state[0] = np.array([multiplier], "float32")
    value, weights, state = step(weights, state, data, target)
    state = list(state)

# %% [markdown]
# ## Mixed precision
#
# With `mixed_float16`, `compile` puts a `LossScaleOptimizer` around, which must be
# outermost; the multipliers are then those of `model.optimizer.inner_optimizer`.
# `mixed_bfloat16` needs none.

# %%
half = keras.Sequential([keras.layers.Dense(1, name="head", dtype="mixed_bfloat16")])
scaled = keras.optimizers.LossScaleOptimizer(
    LayerwiseOptimizer(keras.optimizers.Adam(1e-3), {"head": "head"})
)
half.compile(scaled, "mse")
half.fit(data, target, verbose=0)

# %% [markdown]
# ## Saving and resuming
#
# A `.keras` file holds everything once: groups, multipliers, the inner optimizer with
# its state and schedule. A new process loads it after `import lrdist_keras` alone.

# %%
with tempfile.TemporaryDirectory() as folder:
    model.compile(
        LayerwiseOptimizer(
            keras.optimizers.AdamW(1e-2), {"body": ["low", "high"], "head": "head"}
        ),
        "mse",
    )
    model.fit(data, target, verbose=0)
    model.save(f"{folder}/model.keras")
    resumed = keras.models.load_model(f"{folder}/model.keras")
resumed.fit(data, target, verbose=0)

# %% [markdown]
# State is loaded whole or not at all. A checkpoint of another optimizer, of other
# groups, of other frozen layers, of another inner optimizer or of other options of it
# is skipped with a warning that names the difference; the weights of the model are
# loaded in any case. An optimizer that is not built yet has no place for state, as
# everywhere in Keras: call `optimizer.build(model.trainable_variables)` before
# `load_weights`.
#
# Where a `LossScaleOptimizer` stands outermost, it loads what is inside by position,
# whatever its class, and ends in an error where shapes differ, as it does with Keras's
# own optimizers. Multipliers are loaded by the names of their groups even then.
#
# ### A KerasHub task compiles itself anew
#
# A KerasHub task compiles itself with its own Adam whenever it is made or loaded: by
# `keras.models.load_model`, with `compile=False` too, and by `from_preset`. The weights
# are those that were saved, the optimizer is not, whichever it was; Keras warns that
# it skips its state. To go on training, compile again, build, and load the state from
# the same file:

# %%
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the task's own Adam skips our state
    classifier.save(f"{folder}/classifier.keras")
    loaded = keras.models.load_model(f"{folder}/classifier.keras")
    assert type(loaded.optimizer) is not LayerwiseOptimizer
    loaded.compile(
        LayerwiseOptimizer.from_config(classifier.optimizer.get_config()),
        keras.losses.SparseCategoricalCrossentropy(True),
    )
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(f"{folder}/classifier.keras")
assert int(loaded.optimizer.iterations) == int(classifier.optimizer.iterations) == 1

# %% [markdown]
# Files that version 0.1 of this package saved load into a `LayerwiseOptimizer`. Any
# other optimizer with two variables, such as the task's own Adam, takes their state for
# its own and ends in an error, "A total of 1 objects could not be loaded". Make the
# task from its backbone, compile it with a `LayerwiseOptimizer`, build that, and call
# `load_weights` with the old `.keras` or `.weights.h5` file: weights and state are
# loaded.

# %% [markdown]
# ## What differs from the plain optimizer
#
# - A multiplier of 0 keeps the bits of a weight whatever momentum was gathered; a plain
#   optimizer at rate 0 would move on. What is no update goes on: averaging that
#   overwrites, constraints, variables that take their gradients (float8).
#   `Ftrl` divides by the rate and refuses 0.
# - An optimizer of your own is scaled through its `update_step`; one that replaces
#   `_backend_update_step` is refused. PyTorch's fused updates run once per group.
# - With TensorFlow, sparse gradients of an embedding update it sparsely as without, and
#   one pass over its rows is added, which keeps those of a frozen group.
# - With `gradient_accumulation_steps`, learning-rate schedules and multipliers that
#   follow the step count batches, not updates, as everywhere in Keras: with 4 steps a
#   schedule of 1,000 steps ends after 250 updates.
# - `to_multi_optimizer()` gives the equivalent `keras.optimizers.MultiOptimizer` for
#   the same model, and refuses global clipping and multipliers that follow the step.
# - Layers that are added, frozen or unfrozen after the optimizer was built need a new
#   optimizer, as everywhere in Keras; a multiplier of 0 does not. A group whose layers
#   are all frozen before that keeps its place and its multiplier, with a warning.
