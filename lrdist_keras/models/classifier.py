"""An encoder with the head of one task as a Keras model, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import Encoder, load_backbone
from lrdist_keras.models.pooler import NAME as POOLER
from lrdist_keras.models.pooler import PooledEncoder
from lrdist_keras.printable import listed, printable

HEAD = "logits"  # KerasHub's name of the layer


def keras_classifier(
    encoder: Encoder, weights: Sequence[Any], head: Sequence[Any]
) -> Any:
    """Returns a Keras model from token ids to logits, float32, [batch, classes].

    It computes what a head was trained on: one linear layer on the first token, in
    GPT-2 on the last, or on the pooled first token. Its weights are copies.

    Args:
        encoder: The encoder, in float32.
        weights: In the order of `encoder.weights`.
        head: Kernel, shape [width, classes], and bias, shape [classes].
    """
    import keras

    copy = keras.models.clone_model(encoder.model)
    copy.set_weights(_all_values(copy, weights, encoder))
    vector = copy.output
    if not isinstance(encoder, PooledEncoder):
        vector = _token(copy, encoder.last_token)
    kernel, bias = (np.asarray(array) for array in head)
    dense = keras.layers.Dense(len(bias), dtype="float32", name=HEAD)
    model = keras.Model(copy.input, dense(vector))
    dense.set_weights([kernel, bias])
    return model


def _all_values(
    model: Any, weights: Sequence[Any], encoder: Encoder
) -> list[np.ndarray]:
    """Returns values for `set_weights` of a clone of the encoder's model."""
    originals = encoder.model.weights
    trained = {
        id(v): np.asarray(w)
        for v, w in zip(encoder.model.trainable_variables, weights, strict=True)
    }
    return [trained.get(id(v), np.asarray(v.value)) for v in originals]


def _token(model: Any, last: bool) -> Any:
    """Returns the vector of the first token, or of the last one that is no padding."""
    import keras

    if not last:
        return model.output[:, 0]
    inputs = {tensor.name: tensor for tensor in model.inputs}
    lengths = keras.ops.sum(keras.ops.cast(inputs["padding_mask"], "int32"), axis=1)
    where = keras.ops.reshape(lengths - 1, (-1, 1, 1))
    return keras.ops.take_along_axis(model.output, where, axis=1)[:, 0]


def hub_classifier(
    preset: str,
    encoder: PooledEncoder,
    weights: Sequence[Any],
    head: Sequence[Any],
    preprocessor: Any = None,
) -> Any:
    """Returns the same as a text classifier of KerasHub, which has a pooler.

    `fit` trains in it what the laboratory trains: the classifier has no dropout of its
    own, and the backbone that of the encoder's preset.

    Args:
        preset: Preset of the backbone.
        encoder: The encoder, in float32.
        weights: In the order of `encoder.weights`.
        head: Kernel and bias.
        preprocessor: A preprocessor of KerasHub; None for token ids.
    """
    hub = _tensorflow.keras_hub()
    backbone = load_backbone(preset, 0.0)
    kind = getattr(hub.models, encoder.family.replace("Backbone", "TextClassifier"))
    kernel, bias = (np.asarray(array) for array in head)
    task = kind(backbone, len(bias), preprocessor=preprocessor, dropout=0.0)
    paths = [v.path for v in encoder.model.trainable_variables]
    values = dict(zip(paths, map(np.asarray, weights), strict=True))
    values |= {f"{HEAD}/kernel": kernel, f"{HEAD}/bias": bias}
    for variable in task.trainable_variables:
        variable.assign(values[variable.path])
    return task


def taken_apart(
    model: Any, encoder: Encoder, what: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns weights, in the order of `encoder.weights`, and head of a classifier.

    Args:
        model: A Keras model from token ids to logits, such as KerasHub's classifiers.
        encoder: What its encoder must be like.
        what: Where the model is from, for errors.

    Raises:
        InputError: If it is of another backbone or vocabulary, or has no such head.
    """
    values = {v.path: np.asarray(v.value) for v in model.weights}
    wanted = {
        v.path: np.shape(w)
        for v, w in zip(encoder.model.trainable_variables, encoder.weights, strict=True)
    }
    check_same_model(wanted, {p: v.shape for p, v in values.items()}, what)
    head = [values.get(f"{HEAD}/{part}") for part in ("kernel", "bias")]
    if head[0] is None or head[1] is None or head[0].shape[0] != encoder.width:
        raise InputError(
            f"{what} must have a head, a dense layer called `{HEAD}` of "
            f"{encoder.width} inputs; it is a {type(model).__name__} with "
            f"{listed(sorted(set(values) - set(wanted))) or 'nothing'} beside its "
            "encoder."
        )
    return [values[path] for path in wanted], [head[0], head[1]]


def check_same_model(
    wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], what: str
) -> None:
    """Checks that weights are those of the encoder, by paths and shapes.

    Raises:
        InputError: If they are of another backbone or vocabulary, or have a pooler that
            is not trained, or lack one that is.
    """
    pooled = [any(POOLER in path for path in paths) for paths in (wanted, found)]
    if pooled == [True, False]:
        raise InputError(
            f"{what} has no pooler, so leave out model.pooler, which asks for one."
        )
    if pooled == [False, True]:
        raise InputError(
            f"{what} has a pooler between its encoder and its head; set "
            "model.pooler = true, which trains one too."
        )
    if lacking := [path for path in wanted if path not in found]:
        raise InputError(
            f"{what} is of another backbone than model.preset; take the preset that it "
            f"was trained from. It has no weights called: {listed(lacking)}"
        )
    for path, shape in wanted.items():
        if (other := found[path]) != shape:
            cause = "backbone"
            if path.endswith("token_embedding/embeddings") and other[1:] == shape[1:]:
                cause = f"vocabulary, of {other[0]:,} tokens and not {shape[0]:,},"
            raise InputError(
                f"{what} is of another {cause} than model.preset; take the preset that "
                f"it was trained from. '{printable(path)}' has the shape {other} in "
                f"it, {shape} in the preset."
            )


def load_model(path: Path, what: str) -> Any:
    """Loads a `.keras` file of a classifier, without its optimizer.

    Raises:
        InputError: If it cannot be loaded.
    """
    import keras

    _tensorflow.keras_hub()  # its layers are registered with Keras
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises errors of many classes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{what} must be a model that Keras can load. Received: {reason[0]}"
        ) from error
