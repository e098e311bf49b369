"""The Fisher of masked language modelling: EWC with the pretrained weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from lrdist_keras._storage import digest
from lrdist_keras.array_cache import Arrays, cached_arrays
from lrdist_keras.data.batches import Encoded, evaluation_batches, take
from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.models.platforms import bounds, compiler_options
from lrdist_keras.models.precision import in_precision
from lrdist_keras.training.penalties import Weights, squared_gradients

_SHARE = 0.15  # of the tokens is predicted, as in BERT (arXiv 1810.04805)
_MASKED, _RANDOM = 0.8, 0.1  # of those; the rest stays as it is
_HELD_OUT = 0.1  # of the texts, for the accuracy of the head
_BATCH = 256  # predicted tokens per step in which the head is fitted
_EPOCHS = 10
_RATE = 1e-3
_CHUNK = 2  # per-example gradients are as large as the model, each
_FEATURES = 32  # texts per batch where only features are wanted
_FORMAT = "2"  # of the cache; part of its keys


@dataclass(frozen=True)
class PretrainingFisher:
    """Fisher of the pretrained weights, and how good the head was that it is of.

    Args:
        fisher: One array per weight of the encoder.
        accuracy: Share of masked tokens of held-out texts that the head finds.
        examples: Texts that the Fisher is the mean over.
    """

    fisher: Weights
    accuracy: float
    examples: int

    def __str__(self) -> str:
        text = (
            f"Masked-language Fisher of {self.examples} texts; its head finds "
            f"{self.accuracy:.1%} of the masked tokens."
        )
        if self.accuracy < 0.2:
            text += " Below 20 % this is not a pretraining Fisher."
        return text


def pretraining_fisher(
    encoder: Encoder,
    texts: Encoded,
    mask_id: int | None,
    max_length: int,
    examples: int,
    seed: int = 0,
) -> PretrainingFisher:
    """Estimates the diagonal Fisher of masked language modelling.

    Per text the squared gradient of the mean log-likelihood of its masked tokens, then
    the mean over texts; the tied embeddings are part of the gradient. The encoder comes
    without its head, so that one is fitted first, on the frozen encoder: a transform
    (dense, gelu, layer norm), the token embeddings as output kernel, and a bias, as in
    arXiv 1810.04805.

    Args:
        encoder: The pretrained encoder.
        texts: Raw texts; their labels do not count.
        mask_id: Id of the mask token.
        max_length: Tokens per text at most.
        examples: Texts that the Fisher is of, at most those there are.
        seed: What the masks, the head and the choice of texts follow.

    Raises:
        ValueError: If there are fewer than two texts, or the model is not one of masked
            language modelling.
    """
    pooled, encoder = encoder, encoder.unpooled
    paths = [v.path for v in encoder.model.trainable_variables]
    tied = [i for i, p in enumerate(paths) if p.endswith("token_embedding/embeddings")]
    if mask_id is None or len(tied) != 1 or encoder.last_token:
        raise InputError(
            "The strategy ewc_pretraining needs a model of masked language modelling, "
            "with a mask token and one token embedding; choose ewc for this one. "
            f"Received: {encoder.family}"
        )
    texts = take(texts, np.flatnonzero(texts.lengths > 2))
    if len(texts) < 2:
        raise InputError(
            "A Fisher of masked language modelling needs at least two texts, one of "
            f"them to check the head on. Received: {len(texts)}"
        )
    rng = np.random.default_rng(seed)
    model = _MaskedLanguage(encoder, tied[0], mask_id, rng)
    order = rng.permutation(len(texts))
    held_out = max(1, round(_HELD_OUT * len(texts)))
    head = model.fit(take(texts, order[held_out:]), max_length)
    accuracy = model.accuracy(head, take(texts, order[:held_out]), max_length)
    chosen = take(texts, order[held_out:][:examples])
    found = model.fisher(head, chosen, max_length)
    # A pooler stands above the states that masked tokens are told from.
    above = [jnp.zeros_like(w) for w in pooled.weights[len(found) :]]
    return PretrainingFisher([*found, *above], accuracy, len(chosen))


def cached_pretraining_fisher(
    encoder: Encoder,
    texts: Encoded,
    mask_id: int | None,
    max_length: int,
    examples: int,
    cache: str | os.PathLike[str],
) -> PretrainingFisher:
    """Estimates the Fisher of masked language modelling once for all runs.

    See `pretraining_fisher`. It is kept in a folder of the cache, as large as the
    weights, whose name is a hash of the encoder's weights, the ids of the texts and the
    numbers.

    Raises:
        ValueError: If there are fewer than two texts, or the model is not one of masked
            language modelling.
        InputError: If the cache cannot be read or written.
    """
    numbers = map(str, (mask_id, max_length, examples))
    key = digest(_FORMAT, encoder.digest, texts.digest, *numbers)
    names = [f"fisher_{i}" for i in range(len(encoder.weights))]

    def make() -> Arrays:
        found = pretraining_fisher(encoder, texts, mask_id, max_length, examples)
        arrays = dict(zip(names, map(np.asarray, found.fisher), strict=True))
        arrays["accuracy"] = np.asarray([found.accuracy])
        arrays["examples"] = np.asarray([found.examples])
        return arrays

    def fits(arrays: Arrays) -> bool:
        shapes = dict(zip(names, (w.shape for w in encoder.weights), strict=True))
        shapes |= {"accuracy": (1,), "examples": (1,)}
        return shapes == {name: array.shape for name, array in arrays.items()}

    kept = cached_arrays(Path(cache) / f"fisher-{key}", make, fits)
    return PretrainingFisher(
        [np.array(kept[name]) for name in names],
        float(kept["accuracy"][0]),
        int(kept["examples"][0]),
    )


def mask(
    inputs: dict[str, np.ndarray],
    mask_id: int,
    vocabulary: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Masks a batch as BERT does.

    15 % of the tokens of a text between its first and its last, at least one, are
    predicted: of these 80 % are masked, 10 % replaced by any token, 10 % kept.

    Args:
        inputs: A batch of `Encoded.arrays`.
        mask_id: Id of the mask token.
        vocabulary: Number of tokens.
        rng: What the draw follows.

    Returns:
        The batch with other `token_ids`, and with `positions`, `targets` and `counts`
        (1 for a prediction, 0 for padding) of shape [batch, predictions].
    """
    ids, lengths = inputs["token_ids"], inputs["padding_mask"].sum(axis=1)
    rows, length = ids.shape
    inner = np.arange(length) < lengths[:, None] - 1
    inner[:, 0] = False
    most = max(1, round(_SHARE * length))
    wanted = np.minimum(np.maximum(1, np.round(_SHARE * inner.sum(axis=1))), most)
    # Inner positions in random order, then the others.
    keys = np.where(inner, rng.random(ids.shape), 2.0)
    positions = np.argsort(keys, axis=1)[:, :most]
    counts = (np.arange(most) < wanted[:, None]) & np.take_along_axis(
        inner, positions, axis=1
    )
    targets = np.take_along_axis(ids, positions, axis=1)
    draw = rng.random(positions.shape)
    shown = np.where(
        draw < _MASKED,
        mask_id,
        np.where(
            draw < _MASKED + _RANDOM,
            rng.integers(0, vocabulary, positions.shape),
            targets,
        ),
    )
    new = ids.copy()
    np.put_along_axis(new, positions, np.where(counts, shown, targets), axis=1)
    return inputs | {
        "token_ids": new.astype(np.int32),
        "positions": positions.astype(np.int32),
        "targets": targets.astype(np.int32),
        "counts": (counts & (inputs["weights"][:, None] > 0)).astype(np.float32),
    }


class _MaskedLanguage:
    """An encoder with a head for masked tokens, which is a list of five arrays."""

    def __init__(
        self, encoder: Encoder, tied: int, mask_id: int, rng: np.random.Generator
    ) -> None:
        self.encoder = encoder
        self.tied = tied
        self.mask_id = mask_id
        self.rng = rng
        self.vocabulary = len(encoder.weights[tied])
        self._hidden_states = _jitted(self._hidden)
        self._logits = _jitted(self.logits)
        self._fisher_step = _jitted(self._squares, donate_argnums=0)

    def logits(self, head: Weights, hidden: Any, embeddings: Any) -> Any:
        """Returns the logits of tokens, [tokens, vocabulary]."""
        kernel, shift, gamma, beta, bias = head
        x = jax.nn.gelu(hidden @ kernel + shift, approximate=False)
        x = (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(
            x.var(axis=-1, keepdims=True) + 1e-12
        )
        return (x * gamma + beta) @ embeddings.T + bias

    def fit(self, texts: Encoded, max_length: int) -> Weights:
        """Fits the head with Adam on the frozen encoder's states of masked tokens."""
        hidden, targets = self._states(texts, max_length)
        width = self.encoder.width
        embeddings = jnp.asarray(self.encoder.weights[self.tied])
        head: Weights = [
            jnp.asarray(self.rng.normal(0, 0.02, (width, width)), jnp.float32),
            jnp.zeros(width),
            jnp.ones(width),
            jnp.zeros(width),
            jnp.zeros(self.vocabulary),
        ]
        optimizer = keras.optimizers.Adam(_RATE)
        optimizer.build([keras.Variable(w) for w in head])
        state = [v.value for v in optimizer.variables]

        def loss(head: Weights, hidden: Any, targets: Any) -> Any:
            scores = jax.nn.log_softmax(self.logits(head, hidden, embeddings))
            return -jnp.mean(jnp.take_along_axis(scores, targets[:, None], axis=1))

        @_jitted
        def step(head: Weights, state: list, hidden: Any, targets: Any) -> tuple:
            gradients = jax.grad(loss)(head, hidden, targets)
            return optimizer.stateless_apply(state, gradients, head)

        size = min(_BATCH, len(targets))
        for _ in _tracked(range(_EPOCHS), "Fitting a head of masked language"):
            order = self.rng.permutation(len(targets))
            for i in range(0, len(order) - size + 1, size):
                rows = order[i : i + size]
                head, state = step(head, state, hidden[rows], targets[rows])
        return list(head)

    def accuracy(self, head: Weights, texts: Encoded, max_length: int) -> float:
        """Returns the share of masked tokens that the head finds."""
        hidden, targets = self._states(texts, max_length)
        embeddings = jnp.asarray(self.encoder.weights[self.tied])
        found = [
            np.argmax(self._logits(head, hidden[i : i + _BATCH], embeddings), axis=1)
            for i in range(0, len(targets), _BATCH)
        ]
        return float(np.mean(np.concatenate(found) == targets))

    def fisher(self, head: Weights, texts: Encoded, max_length: int) -> Weights:
        """Returns the mean over texts of the squared gradients."""
        weights = [jnp.asarray(w) for w in self.encoder.weights]
        total = [jnp.zeros_like(w) for w in weights]
        batches = self._masked(texts, max_length, _CHUNK)
        for inputs in _tracked(batches, "Estimating its Fisher"):
            scale = np.float32(1 / len(texts))
            total = self._fisher_step(total, weights, head, inputs, scale)
        return total

    def _masked(
        self, texts: Encoded, max_length: int, size: int
    ) -> Sequence[dict[str, np.ndarray]]:
        return [
            mask(
                texts.arrays(batch.indices, batch.length),
                self.mask_id,
                self.vocabulary,
                self.rng,
            )
            for batch in evaluation_batches(texts, bounds(max_length), size)
        ]

    def _states(self, texts: Encoded, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the last layer at masked tokens, [tokens, width], and the tokens."""
        states, targets = [], []
        weights = [jnp.asarray(w) for w in self.encoder.weights]
        for inputs in self._masked(texts, max_length, _FEATURES):
            found = np.asarray(self._hidden_states(weights, inputs))
            real = inputs["counts"] > 0
            states.append(found[real])
            targets.append(inputs["targets"][real])
        return np.concatenate(states), np.concatenate(targets)

    def _hidden(self, weights: Weights, inputs: dict) -> Any:
        """Returns the last layer at the positions, [batch, predictions, width]."""
        model = self.encoder.model
        wanted = {tensor.name: inputs[tensor.name] for tensor in model.inputs}
        output, _ = model.stateless_call(
            weights, self.encoder.state, wanted, training=False
        )
        positions = inputs["positions"][..., None]
        return jnp.take_along_axis(output, positions, axis=1).astype(jnp.float32)

    def _squares(
        self, total: Weights, weights: Weights, head: Weights, inputs: dict, scale: Any
    ) -> Weights:
        def log_likelihood(weights: Weights, example: dict) -> Any:
            one = jax.tree.map(lambda x: x[None], example)
            hidden = self._hidden(weights, one)[0]
            scores = jax.nn.log_softmax(self.logits(head, hidden, weights[self.tied]))
            found = jnp.take_along_axis(scores, example["targets"][:, None], axis=1)
            counts = example["counts"]
            return jnp.sum(found[:, 0] * counts) / jnp.maximum(jnp.sum(counts), 1)

        squares = squared_gradients(log_likelihood, weights, inputs, inputs["weights"])
        return [t + scale * s for t, s in zip(total, squares, strict=True)]


def _jitted(function: Any, **options: Any) -> Any:
    given = options | {"compiler_options": compiler_options()}
    return jax.jit(in_precision(function, "float32"), **given)


def _tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Returns the items, and shows a bar with the time that is left."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, what, console=console, transient=True, disable=hidden)
