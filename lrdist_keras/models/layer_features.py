"""What an encoder makes of texts: one vector of each, of its last or of every layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lrdist_keras.data.batches import Encoded, evaluation_batches
from lrdist_keras.errors import InputError
from lrdist_keras.models.encoder import Encoder
from lrdist_keras.models.platforms import bounds
from lrdist_keras.models.precision import in_precision

_LAYER = re.compile(r"transformer_layer_\d+")
_LONG = 4096  # texts from which on progress is shown


class FeatureReader:
    """Reads the vectors of texts under any weights of an encoder.

    A program is compiled once per row length and serves all weights. The vector of a
    text is that of its first token, or of its last in GPT-2.

    Args:
        encoder: The encoder.
        max_length: Tokens per row at most, as in training.
        batch_size: Examples per batch.
    """

    def __init__(self, encoder: Encoder, max_length: int, batch_size: int = 64) -> None:
        import jax

        self.encoder = encoder
        self.batch_size = batch_size
        stacked, self._positions = _stacked_layers(encoder.unpooled)

        def last(weights: list, inputs: dict) -> Any:
            return encoder.features(weights, encoder.state, inputs, training=False)[0]

        def layers(weights: list, inputs: dict) -> Any:
            return stacked.features(weights, stacked.state, inputs, training=False)[0]

        self._bounds = bounds(max_length)
        self._last, self._layers = (
            jax.jit(in_precision(f, "float32")) for f in (last, layers)
        )

    def last(self, weights: Sequence[Any], data: Encoded) -> np.ndarray:
        """Returns the vectors that a head sees, float32, shape [examples, width]."""
        return self._read(self._last, weights, data)

    def layers(self, weights: Sequence[Any], data: Encoded) -> np.ndarray:
        """Returns the vectors after every transformer layer, lowest first.

        What follows the last layer, such as GPT-2's layer norm, is not applied.

        Returns:
            float32, shape [layers, examples, width].
        """
        chosen = [weights[i] for i in self._positions]
        return np.moveaxis(self._read(self._layers, chosen, data), -1, 0)

    def _read(self, program: Any, weights: Sequence[Any], data: Encoded) -> np.ndarray:
        import jax.numpy as jnp
        from rich.console import Console
        from rich.progress import track

        weights = [jnp.asarray(weight) for weight in weights]
        result: np.ndarray | None = None
        for batch in track(
            evaluation_batches(data, self._bounds, self.batch_size),
            "Reading features",
            total=-(-len(data) // self.batch_size),
            console=Console(stderr=True),
            transient=True,
            disable=len(data) < _LONG,
        ):
            inputs = data.arrays(batch.indices, batch.length)
            found = np.asarray(program(weights, inputs))
            if result is None:
                result = np.zeros((len(data), *found.shape[1:]), np.float32)
            real = batch.indices >= 0
            result[batch.indices[real]] = found[real]
        if result is None:
            raise InputError("Features can be read of at least one text. Received: 0")
        return result


def _stacked_layers(encoder: Encoder) -> tuple[Encoder, list[int]]:
    """Returns an encoder to the outputs of all layers side by side.

    Its output has shape [batch, length, width, layers]. The other result is the
    position of each of its weights among those of the encoder.
    """
    import keras

    layers = [x for x in encoder.model.layers if _LAYER.fullmatch(x.name)]
    layers.sort(key=lambda layer: int(layer.name.rpartition("_")[2]))
    if not layers:
        raise InputError(
            "The layers of an encoder can be told only where they are called "
            f"`transformer_layer_<i>`, as in KerasHub. Received: {encoder.family}"
        )
    outputs = [layer.output for layer in layers]
    model = keras.Model(encoder.model.input, keras.ops.stack(outputs, axis=-1))
    known = {id(v): i for i, v in enumerate(encoder.model.trainable_variables)}
    positions = [known[id(v)] for v in model.trainable_variables]
    state = [np.asarray(v.value) for v in model.non_trainable_variables]
    weights = [encoder.weights[i] for i in positions]
    return replace(encoder, model=model, weights=weights, state=state), positions
