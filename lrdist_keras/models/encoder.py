"""Backbones from presets, and the linear heads on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras._storage import digest, sha256_of_file
from lrdist_keras.data.local_files import package_folder
from lrdist_keras.data.preset_files import WEIGHTS, PresetFiles, check_folder
from lrdist_keras.errors import InputError, MissingFile
from lrdist_keras.groups import Scheme, path_groups
from lrdist_keras.models.bert_stack import Stack, find_stack
from lrdist_keras.printable import listed
from lrdist_keras.settings import ModelSettings

_PACKAGE = "package://"
_CLASSIFIERS = ("Classification", "MultipleChoice", "QuestionAnswering", "Classifier")
_HEADS = ("classifier", "pre_classifier", "qa_outputs", "score")  # of Hugging Face


@dataclass(frozen=True)
class Encoder:
    """A pretrained transformer without what stands above its last layer.

    Args:
        model: Keras model from token ids to the last layer, [batch, length, width].
        family: Class name of the KerasHub backbone.
        weights: Pretrained values of the trainable variables, in host memory.
        state: Values of the other variables (seeds of dropout), in host memory.
        last_token: Whether the last token stands for the text (GPT-2), not the first.
        max_length: Positions that the model has, or None where there is no limit.
        precision: Precision of its matrix products in training and evaluation, see
            `lrdist_keras.models.precision.resolve`.
    """

    model: Any
    family: str
    weights: list[np.ndarray]
    state: list[np.ndarray]
    last_token: bool
    max_length: int | None
    precision: str = "float32"

    @cached_property
    def _stack(self) -> Stack | None:
        return find_stack(self.model, self.family)

    @property
    def token_embedding(self) -> int | None:
        """Position of the token embeddings among the weights.

        `features` then takes any number of rows of them while it trains, with ids that
        are numbered like that. None where it must have them all.
        """
        return 0 if self._stack is not None else None

    def rows(self, table: str) -> int | None:
        """Returns how many rows a table of embeddings has, such as that of `token`.

        None where there is no such table, or several.
        """
        ends = f"{table}_embedding/embeddings"
        paths = [v.path for v in self.model.trainable_variables]
        found = [i for i, path in enumerate(paths) if path.endswith(ends)]
        return len(self.weights[found[0]]) if len(found) == 1 else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pretrained model: its family, its weights, how it computes."""
        paths = [v.path for v in self.model.trainable_variables]
        dtypes = [layer.compute_dtype for layer in self.model.layers]
        return digest(self.family, self.precision, *dtypes, *paths, *self.weights)

    @property
    def width(self) -> int:
        """Width of the last layer."""
        return int(self.model.output.shape[-1])

    def features(
        self,
        weights: Sequence[Any],
        state: Sequence[Any],
        inputs: Mapping[str, Any],
        training: bool,
    ) -> tuple[Any, list[Any]]:
        """Returns each text's vector, float32, [batch, width], and the new state."""
        import jax
        import jax.numpy as jnp

        if self._stack is not None:
            key, new_state = None, list(state)
            if training and state:  # seeds of dropout; the first one is enough
                key = jax.random.wrap_key_data(state[0], impl="threefry2x32")
                new_state[0] = state[0] + np.array([0, 1], np.uint32)
            found = self._stack(weights, inputs, key)
            return found.astype(jnp.float32), new_state
        wanted = {tensor.name: inputs[tensor.name] for tensor in self.model.inputs}
        output, new_state = self.model.stateless_call(
            list(weights), list(state), wanted, training=training
        )
        if not self.last_token:
            return output[:, 0].astype(jnp.float32), new_state
        last = jnp.sum(inputs["padding_mask"], axis=1) - 1
        rows = jnp.arange(output.shape[0])
        return output[rows, last].astype(jnp.float32), new_state

    @property
    def unpooled(self) -> Encoder:
        """The encoder without a pooler."""
        return self

    def whole(self, weights: Sequence[Any]) -> Sequence[Any]:
        """Returns the weights of the pretrained model that these amount to: these."""
        return weights


def find_preset(settings: ModelSettings) -> str:
    """Returns the folder or KerasHub name of the preset, its weights checked.

    Raises:
        FileNotFoundError: If the package or folder is not there.
        ValueError: If the weights have another hash than the settings say, or what is
            named like a file of the folder is none.
    """
    preset = settings.preset
    if preset.startswith(_PACKAGE):
        module, _, inner = preset.removeprefix(_PACKAGE).partition("/")
        try:
            preset = str(package_folder(module) / inner)
        except FileNotFoundError as error:
            raise MissingFile(f"model.preset: {error}") from None
    folder = Path(os.path.expanduser(preset))
    looks_local = preset != settings.preset or preset.startswith(
        ("/", "./", "../", "~")
    )
    if looks_local and not folder.is_dir():
        raise MissingFile(
            f"model.preset: there is no folder '{preset}'. "
            f"Received: '{settings.preset}'"
        )
    if folder.is_dir():
        # KerasHub would take a bare name for one of its own.
        preset = str(folder.absolute())
        check_folder(folder)
    if settings.sha256 is not None:
        _check_weights(Path(preset), settings.sha256)
    return preset


def load_encoder(
    preset: str, dropout: float = 0.0, precision: str = "float32"
) -> Encoder:
    """Loads a pretrained backbone of KerasHub.

    Of a classifier only the encoder is taken, which a line on stderr says.

    Args:
        preset: A local folder, KerasHub's own or in Hugging Face form, or the name of
            a KerasHub preset.
        dropout: Dropout rate.
        precision: See `Encoder`.

    Raises:
        ValueError: If the preset cannot be had, is no text encoder, or holds weights
            that are not finite.
    """
    encoder = encoder_of(load_backbone(preset, dropout), preset, precision)
    tell_unused_head(preset)
    return encoder


def load_backbone(preset: str, dropout: float) -> Any:
    """Returns the Keras model that KerasHub makes of a preset, see `load_encoder`.

    Raises:
        ValueError: If it cannot be had.
    """
    files = PresetFiles(preset)
    if files.local:
        check_folder(Path(preset))
        files.json("config.json"), files.tensor_names()  # what is damaged shows at once
    try:
        return _tensorflow.keras_hub().models.Backbone.from_preset(
            preset, dropout=dropout, dtype="float32"
        )
    except Exception as error:  # hubs raise errors of their own, of many classes
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"model.preset: '{preset}' cannot be had: {reason[0].rstrip('.')}. A "
            "preset is a local folder, a package:// folder, or a KerasHub name, which "
            "needs the internet the first time."
        ) from error


def encoder_of(backbone: Any, preset: str, precision: str) -> Encoder:
    """Returns a backbone as an encoder.

    Args:
        backbone: What `load_backbone` returns.
        preset: Where it is from, for errors.
        precision: See `Encoder`.

    Raises:
        ValueError: If it is no text encoder, or holds weights that are not finite.
    """
    import keras

    output = backbone.output
    if isinstance(output, dict):
        output = output.get("sequence_output")
    inputs = [tensor.name for tensor in backbone.inputs]
    if output is None or not {"token_ids", "padding_mask"} <= set(inputs):
        raise InputError(
            f"model.preset: '{preset}' is a {type(backbone).__name__}, not a text "
            "encoder with token_ids, padding_mask and one output per token."
        )
    model = keras.Model(backbone.input, output)
    damaged = [
        v.path for v in model.variables if not np.isfinite(np.asarray(v.value)).all()
    ]
    if damaged:
        raise InputError(
            f"model.preset: '{preset}' holds weights that are not finite, so that it "
            f"cannot be trained; get it again. They are in: {listed(damaged)}"
        )
    return Encoder(
        model=model,
        family=type(backbone).__name__,
        weights=[np.asarray(v.value) for v in model.trainable_variables],
        state=[np.asarray(v.value) for v in model.non_trainable_variables],
        last_token=type(backbone).__name__.startswith("GPT2"),
        max_length=getattr(backbone, "max_sequence_length", None),
        precision=precision,
    )


def tell_unused_head(preset: str, pooled: bool = False) -> None:
    """Says on stderr, once, what of a classifier is not used.

    Args:
        preset: The preset.
        pooled: Whether its pooler is.
    """
    if note := _unused_head(PresetFiles(preset), pooled):
        _say_once(note)


def scheme_of(encoder: Encoder, settings: ModelSettings) -> Scheme:
    """Returns how a configuration divides the layers of its encoder into groups.

    Raises:
        ValueError: If it divides another number of layers than the encoder has.
    """
    paths = [v.path for v in encoder.model.trainable_variables]
    scheme, _ = path_groups(
        paths, settings.encoder_groups, settings.rounding, settings.layer_groups
    )
    return scheme


def new_head(classes: int, width: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draws a linear head: kernel N(0, 0.02^2) as in BERT, bias 0.

    Returns:
        Kernel, float32, shape [width, classes], and bias, float32, shape [classes].
    """
    kernel = rng.normal(0.0, 0.02, (width, classes)).astype(np.float32)
    return [kernel, np.zeros(classes, np.float32)]


def _unused_head(files: PresetFiles, pooled: bool) -> str:
    """Returns a line on what a classifier has above its encoder; empty for others."""
    kinds: Any = (files.json("config.json") or {}).get("architectures")
    tensors = []
    if files.local:  # a hub would be asked for each file
        kinds = kinds or [(files.json("task.json") or {}).get("class_name")]
        tensors = [name.split(".") for name in files.tensor_names()]
    names = [x for x in kinds if isinstance(x, str)] if isinstance(kinds, list) else []
    kind = next((x for x in names if x.endswith(_CLASSIFIERS)), None)
    heads = {name[0] for name in tensors if name[0] in _HEADS}
    if kind is None and not heads:
        return ""
    poolers = {".".join(x[: x.index("pooler") + 1]) for x in tensors if "pooler" in x}
    if pooled:
        poolers = set()
    parts = [f"`{name}.*`" for name in [*sorted(heads), *sorted(poolers)]]
    listed = ", ".join(parts)
    return (
        f"model.preset: '{files.preset}' is a classifier"
        f"{f' ({kind})' if kind else ''}. Its head {_unused(pooled)} not used"
        f"{f' ({listed})' if listed else ''}; each task gets a new head."
    )


def _unused(pooled: bool) -> str:
    return "is" if pooled else "and its pooler are"


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_weights(folder: Path, expected: str) -> None:
    path = next((folder / n for n in WEIGHTS if (folder / n).is_file()), None)
    if path is None:
        raise InputError(
            f"model.sha256 can be checked only where '{folder}' is a folder with one "
            f"of {', '.join(WEIGHTS)}."
        )
    found = sha256_of_file(path)
    if found != expected:
        raise InputError(
            f"The weights '{path}' have another SHA-256 than model.sha256 says; they "
            f"are not the ones that were meant. Expected: {expected}; found: {found}"
        )
