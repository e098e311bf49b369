"""The pooler of a classifier: a dense layer between an encoder and its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import (
    Encoder,
    encoder_of,
    load_backbone,
    tell_unused_head,
)
from lrdist_keras.models.lora import AdaptedEncoder, new_adapters, with_lora

NAME = "pooled_dense"  # what KerasHub calls it
# The activation of the pooler in KerasHub's text classifier of each family.
_ACTIVATIONS = {
    "BertBackbone": "tanh",
    "RobertaBackbone": "tanh",
    "XLMRobertaBackbone": "tanh",
    "DistilBertBackbone": "relu",
}


@dataclass(frozen=True)
class PooledEncoder(Encoder):
    """An encoder whose last two weights are kernel and bias of a pooler.

    Its `model` goes from token ids to the pooled vector, [batch, width]. The pooler is
    computed in float32, as the head is.

    Args:
        below: The encoder without it.
    """

    below: Encoder = field(kw_only=True)

    @property
    def token_embedding(self) -> int | None:
        """Position of the token embeddings among the weights, see `Encoder`."""
        return self.below.token_embedding

    def features(
        self,
        weights: Sequence[Any],
        state: Sequence[Any],
        inputs: Mapping[str, Any],
        training: bool,
    ) -> tuple[Any, list[Any]]:
        """Returns each text's pooled vector, float32, [batch, width], and the state."""
        import jax
        import jax.numpy as jnp

        *rest, kernel, bias = weights
        first, new_state = self.below.features(rest, state, inputs, training)
        pooled = jnp.matmul(first, kernel, precision="highest") + bias
        activation = jnp.tanh if activation_of(self.family) == "tanh" else jax.nn.relu
        return activation(pooled), new_state

    @property
    def unpooled(self) -> Encoder:
        """The encoder without the pooler."""
        return self.below

    def whole(self, weights: Sequence[Any]) -> list[Any]:
        """Returns the weights of the pretrained encoder, with those of the pooler."""
        return [*self.below.whole(weights[:-2]), *weights[-2:]]


def load_pooled(
    preset: str, dropout: float = 0.0, precision: str = "float32"
) -> PooledEncoder:
    """Loads a pretrained backbone with its pooler, see `load_encoder`.

    The pooler is the checkpoint's own where KerasHub's backbone has one, as of BERT;
    for other families it is new.

    Raises:
        ValueError: If the preset cannot be had, its family has no pooler, or it holds
            weights that are not finite.
    """
    backbone = load_backbone(preset, dropout)
    activation_of(type(backbone).__name__)
    encoder = encoder_of(backbone, preset, precision)
    own = [layer for layer in backbone.layers if layer.name == NAME]
    pretrained = [np.asarray(v.value) for v in own[0].weights] if own else None
    if pretrained and not all(np.isfinite(w).all() for w in pretrained):
        raise InputError(
            f"model.preset: '{preset}' has a pooler whose weights are not finite; get "
            "it again, or leave out model.pooler."
        )
    tell_unused_head(preset, pooled=True)
    return with_pooler(encoder, pretrained)


def activation_of(family: str) -> str:
    """Returns the activation of a family's pooler, `tanh` or `relu`.

    Raises:
        InputError: If KerasHub has no classifier with a pooler for the family.
    """
    if family not in _ACTIVATIONS:
        raise InputError(
            "model.pooler = true needs a backbone whose KerasHub classifier has a "
            f"pooler, one of {', '.join(_ACTIVATIONS)}; leave it out for this one. "
            f"Received: {family}"
        )
    return _ACTIVATIONS[family]


def with_pooler(
    encoder: Encoder, pretrained: Sequence[np.ndarray] | None = None
) -> PooledEncoder:
    """Returns the encoder with a pooler on its first token.

    Args:
        encoder: An encoder.
        pretrained: Kernel and bias of the checkpoint's own pooler. Without them the
            pooler is new: kernel N(0, 0.02^2), bias 0, the same in all runs.

    Raises:
        InputError: If the family's classifier in KerasHub has no pooler.
    """
    import keras

    width = encoder.width
    if pretrained is None:
        rng = np.random.default_rng(0)
        kernel = rng.normal(0.0, 0.02, (width, width)).astype(np.float32)
        pretrained = [kernel, np.zeros(width, np.float32)]
    activation = activation_of(encoder.family)
    layer = keras.layers.Dense(width, activation, dtype="float32", name=NAME)
    first = encoder.model.output[:, 0]
    model = keras.Model(encoder.model.input, layer(first))
    layer.set_weights(list(pretrained))
    kept = {f.name: getattr(encoder, f.name) for f in fields(Encoder)}
    new = {"model": model, "weights": [*encoder.weights, *pretrained]}
    return PooledEncoder(**{**kept, **new}, below=encoder)


def adapted(encoder: Encoder, rank: int) -> Encoder:
    """Returns the encoder with low-rank adapters; a pooler stays trainable as it is.

    See `lrdist_keras.models.lora.with_lora`.
    """
    if not isinstance(encoder, PooledEncoder):
        return with_lora(encoder, rank)
    return with_pooler(with_lora(encoder.below, rank), encoder.weights[-2:])


def drawn_adapters(encoder: Encoder, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the weights that an `adapted` encoder begins with."""
    if not isinstance(encoder, PooledEncoder):
        return new_adapters(encoder, rng)
    assert isinstance(encoder.below, AdaptedEncoder)
    return [*new_adapters(encoder.below, rng), *encoder.weights[-2:]]
