"""What a tokenizer is, and whether a model has rows for its ids."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrdist_keras.data.preset_files import WEIGHTS
from lrdist_keras.errors import InputError

Texts = tuple[Sequence[str], ...]


@dataclass(frozen=True)
class Tokenizer:
    """How a checkpoint turns texts into token ids.

    Args:
        identity: A hash of all that determines the ids.
        pad_id: Id that fills up a row.
        encode: From texts (one or two columns) and a maximal length to, for each
            example, its ids with special tokens and the position at which the second
            segment begins (the number of ids where there is none).
        mask_id: Id that stands for a masked token, None where there is none.
        rows: Rows of the model's token embeddings, beyond which an id has no meaning.
            None where they are not known.
        content: What `tokenizer.json` holds of it; None where it is KerasHub's.
    """

    identity: str
    pad_id: int
    encode: Callable[[Texts, int], list[tuple[Sequence[int], int]]]
    mask_id: int | None = None
    rows: int | None = None
    content: str | None = None


def check_vocabulary(
    largest: int,
    added: Mapping[str, int],
    rows: int | None,
    preset: str,
    source: str,
) -> None:
    """Compares the ids of a tokenizer with the rows of the model's token embeddings.

    Added tokens beyond the rows give a warning: most occur in no text.

    Args:
        largest: Largest id of the vocabulary.
        added: Ids of tokens that were added to the vocabulary.
        rows: Rows of the token embeddings; None checks nothing.
        preset: The preset of both, for the message.
        source: What the tokenizer is made of, for the message.

    Raises:
        InputError: If the vocabulary has ids beyond the rows.
    """
    if rows is None:
        return
    names = [name for name in WEIGHTS if (Path(preset) / name).is_file()]
    weights = names[0] if names else "its weights"

    def said(ids: int) -> str:
        return (
            f"model.preset: '{preset}': the tokenizer ({source}) has ids up to {ids}, "
            f"and the token embeddings ({weights}) have {rows} rows, for ids up to "
            f"{rows - 1}"
        )

    if largest >= rows:
        raise InputError(
            f"{said(largest)}. Take both from the same checkpoint, or weights whose "
            "embeddings were resized for this tokenizer."
        )
    beyond = sorted(token for token, i in added.items() if i >= rows)
    if beyond:
        more = ", …" if len(beyond) > 5 else ""
        print(
            f"lrdist: warning: {said(max(added.values()))}. A text that holds one of "
            f"the added tokens beyond is refused: {', '.join(beyond[:5])}{more}",
            file=sys.stderr,
            flush=True,
        )


def check_ids(ids: np.ndarray, rows: int | None, what: str) -> None:
    """Checks that every id is the number of a row of the token embeddings.

    Args:
        ids: Ids, any shape.
        rows: Rows of the token embeddings; None checks only that no id is negative.
        what: What the texts are called.

    Raises:
        InputError: If one is not.
    """
    if not len(ids):
        return
    least, largest = int(ids.min()), int(ids.max())
    if least < 0 or (rows is not None and largest >= rows):
        table = "no row" if rows is None else f"none of the {rows:,} rows"
        raise InputError(
            f"The tokenizer gives '{what}' an id that is {table} of the model's token "
            "embeddings; take tokenizer and weights from the same checkpoint. "
            f"Received: {least if least < 0 else largest}"
        )
