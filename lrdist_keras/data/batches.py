"""Encoded examples, and the plan of batches in which they are trained or evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lrdist_keras._storage import digest

_SMALLEST_BUCKET = 8
_WORTH_A_PROGRAM = 3  # batches; a longer row costs less than compiling one more


@dataclass(frozen=True)
class Encoded:
    """Token ids and labels of a split.

    Args:
        ids: Ids of all examples, one after the other, int32, shape [tokens].
        offsets: Where each example begins in `ids`, int64, shape [examples + 1].
        second: Position in each example at which its second segment begins, int32,
            shape [examples].
        labels: Class numbers, int32, shape [examples].
        pad_id: Id that fills up a row.
    """

    ids: np.ndarray
    offsets: np.ndarray
    second: np.ndarray
    labels: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each example, int64, shape [examples]."""
        return np.diff(self.offsets)

    @property
    def digest(self) -> str:
        """SHA-256 of what a model is shown; labels are not part of it."""
        return digest(str(self.pad_id), self.ids, self.offsets, self.second)

    def arrays(self, indices: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """Returns the model's inputs for these examples, padded to one length.

        Args:
            indices: Examples, any shape; -1 stands for a row of padding.
            length: Tokens per row, at least the longest of the examples.

        Returns:
            `token_ids`, `segment_ids` and `padding_mask` of shape [*indices.shape,
            length], `labels` and `weights` (0 for rows of padding) of the shape of
            `indices`.
        """
        real = indices >= 0
        rows = np.where(real, indices, 0)
        position = np.arange(length)
        sizes = np.where(real, self.offsets[rows + 1] - self.offsets[rows], 0)
        mask = position < sizes[..., None]
        where = np.where(mask, self.offsets[rows][..., None] + position, 0)
        ids = np.where(mask, self.ids[where], self.pad_id)
        # Attention over no token at all is undefined: a row of padding shows one.
        visible = mask | ((position == 0) & ~real[..., None])
        return {
            "token_ids": ids.astype(np.int32),
            "segment_ids": (mask & (position >= self.second[rows][..., None])).astype(
                np.int32
            ),
            "padding_mask": visible.astype(np.int32),
            "labels": np.where(real, self.labels[rows], 0).astype(np.int32),
            "weights": real.astype(np.float32),
        }


@dataclass(frozen=True)
class Steps:
    """Batches of one length that run on the device in one call.

    Args:
        length: Tokens per row.
        indices: Examples of each batch, -1 for padding, shape [steps, batch].
    """

    length: int
    indices: np.ndarray


def take(encoded: Encoded, indices: np.ndarray) -> Encoded:
    """Returns the examples at these indices."""
    sizes = encoded.lengths[indices]
    starts = encoded.offsets[indices]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    where = np.repeat(starts - offsets[:-1], sizes) + np.arange(offsets[-1])
    return Encoded(
        np.asarray(encoded.ids[where]),
        offsets,
        encoded.second[indices],
        encoded.labels[indices],
        encoded.pad_id,
    )


def buckets(max_length: int, row_lengths: Sequence[int] | None = None) -> list[int]:
    """Returns the lengths of rows: 8, 16, 24, …, 64, 80, …, 128, 160, …, `max_length`.

    Steps of 8, and from 64 on quarters of the power of two below: with few shapes to
    compile, a row of more than 32 tokens is filled up by a fifth at most.

    Args:
        max_length: The longest.
        row_lengths: Those below it, ascending, instead.
    """
    if row_lengths is not None:
        return [*(length for length in row_lengths if length < max_length), max_length]
    lengths = [_SMALLEST_BUCKET]
    while lengths[-1] < max_length:
        quarter = 1 << lengths[-1].bit_length() - 3
        lengths.append(lengths[-1] + max(_SMALLEST_BUCKET, quarter))
    return [*lengths[:-1], max_length]


def training_steps(
    encoded: Encoded,
    bounds: Sequence[int],
    batch_size: int,
    steps_per_call: int,
    rng: np.random.Generator | None,
) -> list[Steps]:
    """Plans one epoch: every example once, in random batches of similar length.

    What does not fill a batch of its bucket, or a bucket with less than three batches,
    moves on to the next longer one, so that at most one batch of the epoch is filled up
    with padding. The number of batches depends on the lengths alone, not on the draw.

    Args:
        encoded: The examples.
        bounds: Lengths of rows, see `buckets`.
        batch_size: Examples per batch.
        steps_per_call: Batches per call at most.
        rng: Source of the order. None leaves the examples in their own: batches of
            consecutive rows, each of the length that its longest row needs.

    Returns:
        Calls of at most `steps_per_call` batches of one length, in random order.
    """
    if rng is None:
        return _steps_in_order(encoded.lengths, bounds, batch_size, steps_per_call)
    order = rng.permutation(len(encoded))
    plan = list(_calls(order, encoded.lengths, bounds, batch_size, steps_per_call))
    return [plan[i] for i in rng.permutation(len(plan))]


def _steps_in_order(
    lengths: np.ndarray, bounds: Sequence[int], batch_size: int, steps_per_call: int
) -> list[Steps]:
    rows = np.arange(-(-len(lengths) // batch_size) * batch_size)
    rows[len(lengths) :] = -1
    batches = rows.reshape(-1, batch_size)
    longest = [lengths[batch[batch >= 0]].max() for batch in batches]
    needed = np.asarray(bounds)[np.searchsorted(bounds, longest)]
    starts = [0, *(np.flatnonzero(np.diff(needed)) + 1), len(batches)]
    return [
        Steps(int(needed[start]), batches[i : min(i + steps_per_call, end)])
        for start, end in itertools.pairwise(starts)
        for i in range(start, end, steps_per_call)
    ]


def evaluation_batches(
    encoded: Encoded, bounds: Sequence[int], batch_size: int
) -> Iterator[Steps]:
    """Plans an evaluation: every example once, sorted by length, batch by batch."""
    for call in evaluation_steps(encoded, bounds, batch_size, 1):
        yield Steps(call.length, call.indices[0])


def evaluation_steps(
    encoded: Encoded, bounds: Sequence[int], batch_size: int, steps_per_call: int
) -> Iterator[Steps]:
    """Plans the same in calls of at most `steps_per_call` batches of one length."""
    order = np.argsort(encoded.lengths, kind="stable")
    return _calls(order, encoded.lengths, bounds, batch_size, steps_per_call)


def filled(batches: np.ndarray, count: int) -> np.ndarray:
    """Returns the batches of a call, and so many of padding that there are `count`."""
    missing = count - len(batches)
    return np.pad(batches, ((0, missing), (0, 0)), constant_values=-1)


def _calls(
    order: np.ndarray,
    lengths: np.ndarray,
    bounds: Sequence[int],
    batch_size: int,
    steps_per_call: int,
) -> Iterator[Steps]:
    for length, rows in _batches(order, lengths, bounds, batch_size):
        for i in range(0, len(rows), steps_per_call):
            yield Steps(length, rows[i : i + steps_per_call])


def _batches(
    order: np.ndarray, lengths: np.ndarray, bounds: Sequence[int], batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    bucket_of = np.searchsorted(bounds, lengths[order])
    waiting = order[:0]
    for bucket, length in enumerate(bounds):
        waiting = np.concatenate([waiting, order[bucket_of == bucket]])
        longest = bucket == len(bounds) - 1 or not (bucket_of > bucket).any()
        full = len(waiting) // batch_size * batch_size
        if full < _WORTH_A_PROGRAM * batch_size and not longest:
            continue
        rows, waiting = waiting[:full], waiting[full:]
        if longest and len(waiting):
            rows = np.concatenate(
                [rows, waiting, np.full(batch_size - len(waiting), -1)]
            )
            waiting = order[:0]
        if len(rows):
            yield length, rows.reshape(-1, batch_size)
