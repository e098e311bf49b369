"""The rows of the token embeddings that a training can change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from lrdist_keras.data.batches import Encoded
from lrdist_keras.models.encoder import Encoder


@dataclass(frozen=True)
class UsedRows:
    """The part of the token embeddings that occurs in some examples.

    A token that does not occur has a gradient of exactly 0, and so, from moments of 0,
    Adam moves its embedding by exactly 0 (arXiv 1412.6980, algorithm 1). So does SGD:
    its momentum moves a row that has no gradient now, but only one that had some before
    in the same training, whose token occurs. A training may then hold these rows alone
    and give the same weights, bit for bit, for less: of BERT's 30,522 rows, a thousand
    texts use some thousands. It may not where anything else moves a row: decay, a
    penalty, or moments from before.

    Args:
        position: Index of the token embeddings among the weights.
        rows: Ids of tokens, ascending; then, up to a given number, the size of the
            vocabulary. int32, shape [rows]. None for the whole vocabulary, which leaves
            all as it is.
    """

    position: int
    rows: np.ndarray | None

    def narrowed(self, encoded: Encoded) -> Encoded:
        """Returns the same examples, with the number of its row for each token."""
        if self.rows is None:
            return encoded
        ids = np.searchsorted(self.rows, encoded.ids).astype(np.int32)
        pad_id = int(np.searchsorted(self.rows, encoded.pad_id))
        return replace(encoded, ids=ids, pad_id=pad_id)

    def take(self, weights: Sequence[Any]) -> list[Any]:
        """Returns the weights with these rows of the embeddings alone."""
        taken = list(weights)
        if self.rows is not None:
            table = taken[self.position]
            taken[self.position] = jnp.take(table, self.rows, axis=0, mode="clip")
        return taken

    def put(self, table: Any, weights: Sequence[Any]) -> list[Any]:
        """Returns the weights with all rows: these, and the others of the table."""
        put = list(weights)
        if self.rows is not None:
            held = put[self.position]
            put[self.position] = table.at[self.rows].set(held, mode="drop")
        return put


ALL_ROWS = UsedRows(0, None)


def used_tokens(encoded: Encoded) -> np.ndarray:
    """Returns the ids that occur, with 0, which may mean padding, and the pad id."""
    return np.unique(np.append(encoded.ids, [0, encoded.pad_id]))


def room(tokens: int, vocabulary: int) -> int | None:
    """Returns a number of rows that is enough for so many tokens.

    It is a power of two, so that few shapes need to be compiled, or None where
    the whole vocabulary is hardly more.

    Args:
        tokens: Number of tokens that occur.
        vocabulary: Rows of the embeddings.
    """
    rows = 1 << (tokens - 1).bit_length()
    return rows if 2 * rows <= vocabulary else None


def used_rows(encoded: Encoded, position: int, rows: int, vocabulary: int) -> UsedRows:
    """Returns the rows that these examples use, filled up to a number of rows."""
    tokens = used_tokens(encoded)
    filled = np.pad(tokens, (0, rows - len(tokens)), constant_values=vocabulary)
    return UsedRows(position, filled.astype(np.int32))


def room_of(encoder: Encoder, parts: Sequence[Encoded]) -> int | None:
    """Returns the rows that each of these sets of examples has room in; None for all.

    Args:
        encoder: What is trained.
        parts: Sets that are trained with one number of rows.
    """
    if (where := encoder.token_embedding) is None:
        return None
    tokens = np.unique(np.concatenate([used_tokens(part) for part in parts]))
    return room(len(tokens), len(encoder.weights[where]))


def held_rows(encoder: Encoder, examples: Encoded, rows: int | None) -> UsedRows:
    """Returns the rows that examples use, filled up to `rows`; None is for all."""
    where = encoder.token_embedding
    if where is None or rows is None:
        return ALL_ROWS
    return used_rows(examples, where, rows, len(encoder.weights[where]))
