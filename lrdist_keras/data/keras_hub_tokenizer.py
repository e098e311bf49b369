"""KerasHub's tokenizers, where the checkpoint's own cannot be made from its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrdist_keras import _tensorflow
from lrdist_keras.data.token_ids import Texts, Tokenizer, check_vocabulary
from lrdist_keras.errors import InputError


def keras_hub_tokenizer(preset: str, rows: int | None) -> Tokenizer:
    """Loads the tokenizer that KerasHub has for a preset, such as SentencePiece.

    Args:
        preset: A local folder or the name of a KerasHub preset.
        rows: Rows of the model's token embeddings.

    Raises:
        InputError: If KerasHub has none, or its vocabulary is larger than `rows`.
    """
    keras_hub = _tensorflow.keras_hub()
    try:
        tokenizer = keras_hub.models.Tokenizer.from_preset(preset)
    except Exception as error:  # hubs raise errors of their own, of many classes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"model.preset: KerasHub has no tokenizer for '{preset}': "
            f"{reason.rstrip('.')}. A tokenizer.json beside the weights would do."
        ) from error
    try:
        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(preset)
    except ValueError:  # GPT-2 has none: its texts carry no special tokens
        preprocessor = None
    pad_id, mask_id = tokenizer.pad_token_id, getattr(tokenizer, "mask_token_id", None)
    if pad_id is None or pad_id < 0 or (rows is not None and pad_id >= rows):
        pad_id = 0  # any row does, since padding is masked
    if mask_id is not None and rows is not None and mask_id >= rows:
        mask_id = None
    vocabulary = getattr(tokenizer, "vocabulary", None)
    if isinstance(vocabulary, Mapping):
        largest = max(vocabulary.values(), default=0)
    else:
        largest = tokenizer.vocabulary_size() - 1
    check_vocabulary(largest, {}, rows, preset, type(tokenizer).__name__)

    def packed(texts: Texts, max_length: int) -> list[tuple[Sequence[int], int]]:
        preprocessor.sequence_length = max_length
        columns = tuple(list(column) for column in texts)
        # Given alone, the second of two texts would be taken for the label.
        inputs, _ = preprocessor(
            columns if len(columns) == 2 else columns[0], y=np.zeros(len(columns[0]))
        )
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        sizes = arrays["padding_mask"].sum(axis=1)
        segments = arrays.get("segment_ids", np.zeros_like(arrays["token_ids"]))
        return [
            (ids[:size], int(np.argmax(types)) if types[:size].any() else int(size))
            for ids, types, size in zip(
                arrays["token_ids"], segments, sizes, strict=True
            )
        ]

    def plain(texts: Texts, max_length: int) -> list[tuple[Sequence[int], int]]:
        columns = [[list(map(int, ids)) for ids in tokenizer(list(c))] for c in texts]
        result: list[tuple[Sequence[int], int]] = []
        for parts in zip(*columns, strict=True):
            cut = [list(part) for part in parts]
            while sum(map(len, cut)) > max_length:
                max(cut, key=len).pop()
            ids = [i for part in cut for i in part] or [pad_id]
            result.append((ids, len(ids)))
        return result

    return Tokenizer(
        f"keras_hub {keras_hub.__version__}: {_state(tokenizer)}",
        pad_id,
        packed if preprocessor is not None else plain,
        mask_id,
        rows,
    )


def _state(tokenizer: Any) -> str:
    """Returns a hash of what KerasHub's tokenizer is made of, but for its name."""
    config = {k: v for k, v in tokenizer.get_config().items() if k != "name"}
    state: list[Any] = [config, list(tokenizer.get_vocabulary())]
    state += [getattr(tokenizer, name, None) for name in ("vocabulary", "merges")]
    # Of SentencePiece: scores and the normaliser too.
    state.append(hashlib.sha256(getattr(tokenizer, "proto", None) or b"").hexdigest())
    return hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()
