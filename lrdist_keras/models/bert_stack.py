"""KerasHub's stack of encoder layers, computed for the one token that is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lrdist_keras.models.embeddings import rows_of

# Backbones that are the normalised sum of embeddings, and on it a stack of
# `TransformerEncoder` layers that all take the padding mask, with the path of the
# embeddings of tokens and positions.
_FAMILIES = {
    "BertBackbone": "",
    "DistilBertBackbone": "token_and_position_embedding/",
    "RobertaBackbone": "embeddings/",
    "XLMRobertaBackbone": "embeddings/",
}
_SEGMENTS = "segment_embedding/embeddings"
_EMBEDDINGS_NORM = "embeddings_layer_norm"
_EMBEDDINGS_DROPOUT = "embeddings_dropout"
_LAYER = (
    "self_attention_layer/query/kernel",
    "self_attention_layer/query/bias",
    "self_attention_layer/key/kernel",
    "self_attention_layer/key/bias",
    "self_attention_layer/value/kernel",
    "self_attention_layer/value/bias",
    "self_attention_layer/attention_output/kernel",
    "self_attention_layer/attention_output/bias",
    "self_attention_layer_norm/gamma",
    "self_attention_layer_norm/beta",
    "feedforward_layer_norm/gamma",
    "feedforward_layer_norm/beta",
    "feedforward_intermediate_dense/kernel",
    "feedforward_intermediate_dense/bias",
    "feedforward_output_dense/kernel",
    "feedforward_output_dense/bias",
)
_MASKED = -1e9  # added to a score, so that its weight in the softmax is exactly 0


@dataclass(frozen=True)
class Stack:
    """A stack of encoder layers whose last one is computed for the first token alone.

    The same function of the same weights as KerasHub's model up to rounding, and less
    work: above the keys and values of the last layer nothing but the first token
    matters; query, key and value are one product; all products are of two
    dimensions, with the tokens of a batch in one. Dropout falls where the model has
    it, from random numbers of its own.

    The embeddings of tokens may be those of a part of the vocabulary, if the ids are
    numbered like that.

    Args:
        segments: Whether there are embeddings of segments.
        layers: Number of layers.
        heads: Number of attention heads.
        activation: Activation of the feed-forward layers.
        embeddings_epsilon: Epsilon of the embeddings' layer norm.
        epsilon: Epsilon of the layers' layer norms.
        dropout: Its rate, the same everywhere.
    """

    segments: bool
    layers: int
    heads: int
    activation: Callable[[Any], Any]
    embeddings_epsilon: float
    epsilon: float
    dropout: float

    def __call__(
        self, weights: Sequence[Any], inputs: Mapping[str, Any], key: Any = None
    ) -> Any:
        """Returns the vectors of the first tokens, shape [batch, width].

        Args:
            weights: All of the model: embeddings of tokens, positions and segments,
                scale and offset of their norm, and those of the layers.
            inputs: `token_ids`, `padding_mask` and `segment_ids` where there are
                segments, each of shape [batch, length].
            key: Key of `jax.random` for dropout; None turns dropout off.
        """
        ids = inputs["token_ids"]
        (batch, length), width = ids.shape, weights[0].shape[1]
        embedded = rows_of(weights[0], ids) + weights[1][:length]
        first = 2
        if self.segments:
            embedded += rows_of(weights[2], inputs["segment_ids"])
            first = 3
        norm, rest = weights[first : first + 2], weights[first + 2 :]
        embedded = _norm(embedded, norm, self.embeddings_epsilon)
        tokens = embedded.reshape(batch * length, width)
        keys = _keys(key, 1 + self.layers)
        tokens = self.dropped(tokens, keys[-1])
        present = inputs["padding_mask"][:, None, None, :] != 0
        mask = jnp.where(present, 0.0, _MASKED).astype(jnp.float32)
        count = len(_LAYER)
        for i in range(self.layers):
            layer = rest[i * count : (i + 1) * count]
            tokens = _layer(self, layer, tokens, mask, keys[i], i == self.layers - 1)
        return tokens

    def dropped(self, x: Any, key: Any) -> Any:
        """Returns x with numbers dropped and the others scaled up (arXiv 1207.0580).

        A number is dropped by 8 random bits, a quarter of what
        `jax.random.bernoulli` draws: at t / 256, where t is 256 times the rate, rounded
        up or down by chance, so that the rate is met on the mean; up to 255 / 256.
        """
        if key is None:
            return x
        rounding, bits = jax.random.split(key)
        *outer, last = x.shape
        words = jax.random.bits(bits, (*outer, -(-last // 4)), jnp.uint32)
        drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*outer, -1)
        t = jnp.floor(256 * self.dropout + jax.random.uniform(rounding))
        t = jnp.minimum(t, 255).astype(jnp.uint8)
        scale = 256 / (256 - t.astype(jnp.float32))
        return jnp.where(drawn[..., :last] >= t, (x * scale).astype(x.dtype), 0)


def _keys(key: Any, count: int) -> list:
    return count * [None] if key is None else list(jax.random.split(key, count))


# Layers of one shape are traced once.
@partial(jax.jit, static_argnames=("stack", "first_only"))
def _layer(
    stack: Stack,
    weights: Sequence[Any],
    tokens: Any,
    mask: Any,
    dropout_key: Any,
    first_only: bool,
) -> Any:
    """One post-norm layer (arXiv 1706.03762, section 3.1) on [tokens, width]."""
    (batch, *_, length), width = mask.shape, tokens.shape[-1]
    query, query_bias, key, key_bias, value, value_bias = (
        w.reshape(*w.shape[: w.ndim - 2], width) for w in weights[:6]
    )
    output, output_bias = weights[6].reshape(width, width), weights[7]
    norm_1, norm_2 = weights[8:10], weights[10:12]
    inner, inner_bias, outer, outer_bias = weights[12:]
    of_weights, of_attention, of_feedforward = _keys(dropout_key, 3)

    def dense(x: Any, kernels: list, biases: list) -> Any:
        return x @ jnp.concatenate(kernels, axis=1) + jnp.concatenate(biases)

    def by_head(x: Any) -> list:
        # The gradient of `split` is one concatenation, of slices a sum of padded ones.
        parts = jnp.split(x, x.shape[-1] // width, axis=-1)
        split = (part.reshape(batch, -1, stack.heads, size) for part in parts)
        return [part.transpose(0, 2, 1, 3) for part in split]

    size = width // stack.heads
    if first_only:
        keys, values = by_head(dense(tokens, [key, value], [key_bias, value_bias]))
        tokens = tokens.reshape(batch, length, width)[:, 0]
        (queries,) = by_head(dense(tokens, [query], [query_bias]))
    else:
        kernels, biases = [query, key, value], [query_bias, key_bias, value_bias]
        queries, keys, values = by_head(dense(tokens, kernels, biases))
    scores = jnp.einsum("bnth,bnsh->bnts", queries * size**-0.5, keys)
    attention = jax.nn.softmax(scores + mask)
    attention = stack.dropped(attention, of_weights)
    mixed = jnp.einsum("bnts,bnsh->bnth", attention, values)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(-1, width)
    attended = dense(mixed, [output], [output_bias])
    tokens = tokens + stack.dropped(attended, of_attention)
    tokens = _norm(tokens, norm_1, stack.epsilon)
    hidden = stack.activation(dense(tokens, [inner], [inner_bias]))
    fed = dense(hidden, [outer], [outer_bias])
    tokens = tokens + stack.dropped(fed, of_feedforward)
    return _norm(tokens, norm_2, stack.epsilon)


def _norm(x: Any, weights: Sequence[Any], epsilon: float) -> Any:
    """Layer normalisation of the last axis (arXiv 1607.06450)."""
    gamma, beta = weights
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(variance + epsilon) * gamma
    return centred * scale + beta


def find_stack(model: Any, family: str) -> Stack | None:
    """Returns the stack of a model's layers, or None where it is not built like that.

    Args:
        model: Keras model from token ids to the output of the last layer.
        family: Class name of the KerasHub backbone.
    """
    layers = [x for x in model.layers if type(x).__name__ == "TransformerEncoder"]
    if family not in _FAMILIES or not layers or layers[-1].output is not model.output:
        return None
    paths = [v.path for v in model.trainable_variables]
    segments = _SEGMENTS in paths
    expected = [
        *(
            f"{_FAMILIES[family]}{x}_embedding/embeddings"
            for x in ("token", "position")
        ),
        *([_SEGMENTS] if segments else []),
        *(f"{_EMBEDDINGS_NORM}/{name}" for name in ("gamma", "beta")),
        *(f"{layer.path}/{name}" for layer in layers for name in _LAYER),
    ]
    if paths != expected or any(layer.normalize_first for layer in layers):
        return None
    dropout = model.get_layer(_EMBEDDINGS_DROPOUT).rate
    if any((x.dropout, x.compute_dtype) != (dropout, "float32") for x in layers):
        return None
    return Stack(
        segments=segments,
        layers=len(layers),
        heads=layers[0].num_heads,
        activation=layers[0].activation,
        embeddings_epsilon=model.get_layer(_EMBEDDINGS_NORM).epsilon,
        epsilon=layers[0].layer_norm_epsilon,
        dropout=dropout,
    )
