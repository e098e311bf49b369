"""Low-rank adapters: an encoder of which little is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import Encoder

# The projections that LoRA adapts: section 7.1 of arXiv 2106.09685. KerasHub's names.
_ADAPTED = ("query", "value", "query_dense", "value_dense")


@dataclass(frozen=True)
class AdaptedEncoder(Encoder):
    """An encoder whose weights are adapters of another one.

    Args:
        pretrained: The encoder that was adapted.
    """

    pretrained: Encoder = field(kw_only=True)

    def whole(self, weights: Sequence[Any]) -> list[Any]:
        """Returns the weights of the pretrained encoder that do what these do."""
        return merged(self.pretrained, self, weights)


def with_lora(encoder: Encoder, rank: int) -> AdaptedEncoder:
    """Returns a copy of the encoder of which only low-rank adapters are trained.

    The query and value projections W become W + A B by Keras's own `enable_lora`; all
    other weights are frozen (arXiv 2106.09685, equation 3, with alpha = rank). Keras
    takes the last axis of W for its columns: where that is the width of a head, every
    head has an A of `rank` columns and all share B. The adapters are the `weights` of
    what is returned, the pretrained weights are part of its `state`.

    Args:
        encoder: The pretrained encoder.
        rank: Rank of the adapters.

    Raises:
        ValueError: If the model has no such projections.
    """
    import keras

    model = keras.models.clone_model(encoder.model)
    _assign(model, encoder)
    found = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if layer.name in _ADAPTED and hasattr(layer, "enable_lora")
    ]
    if not found:
        raise InputError(
            "The strategy lora needs layers called `query` and `value` that have "
            "Keras's `enable_lora` (Dense, EinsumDense), as KerasHub's encoders do; "
            f"choose another strategy for this one. Received: {encoder.family}"
        )
    for layer in found:
        layer.enable_lora(rank)
    for variable in model.variables:
        variable.trainable = _is_adapter(variable.path)
    kept = {f.name: getattr(encoder, f.name) for f in fields(Encoder)}
    new = {
        "model": model,
        "weights": [np.asarray(v.value) for v in model.trainable_variables],
        "state": [np.asarray(v.value) for v in model.non_trainable_variables],
    }
    return AdaptedEncoder(**{**kept, **new}, pretrained=encoder)


def new_adapters(encoder: Encoder, rng: np.random.Generator) -> list[np.ndarray]:
    """Draws adapters: A uniform within sqrt(1 / inputs), as LoRA's authors do, B zero.

    So the model begins as the pretrained one.
    """
    return [
        rng.uniform(-1, 1, w.shape).astype(np.float32) / np.float32(np.sqrt(w.shape[0]))
        if v.path.endswith("lora_kernel_a")
        else np.zeros_like(w)
        for v, w in zip(encoder.model.trainable_variables, encoder.weights, strict=True)
    ]


def merged(
    encoder: Encoder, adapted: Encoder, adapters: Sequence[Any]
) -> list[np.ndarray]:
    """Returns the weights of `encoder` that do what `adapted` does with its adapters.

    Args:
        encoder: The pretrained encoder.
        adapted: What `with_lora` made of it.
        adapters: Values in the order of its weights.
    """
    paths = [v.path for v in adapted.model.trainable_variables]
    low_rank = dict(zip(paths, map(np.asarray, adapters), strict=True))
    result = []
    for variable, value in zip(
        encoder.model.trainable_variables, encoder.weights, strict=True
    ):
        layer = variable.path.removesuffix("/kernel")
        a = low_rank.get(f"{layer}/lora_kernel_a")
        if a is not None and layer != variable.path:
            value = value + a @ low_rank[f"{layer}/lora_kernel_b"]
        result.append(value)
    return result


def _is_adapter(path: str) -> bool:
    return path.endswith(("lora_kernel_a", "lora_kernel_b"))


def _assign(model: Any, encoder: Encoder) -> None:
    """Gives a copy of the encoder's model the pretrained values."""
    values = dict(
        zip(
            [v.path for v in encoder.model.trainable_variables],
            encoder.weights,
            strict=True,
        )
    )
    for variable in model.trainable_variables:
        variable.assign(values[variable.path])
