"""What is left to the platform: sizes of programs, and how they are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lrdist_keras.data.batches import buckets
from lrdist_keras.settings import TrainingSettings

_SHORTEST_ROW = 32
_CHUNK_ON_A_CPU = 4
_LARGEST_CHUNK = 64
_BYTES_OF_A_CHUNK = 4 << 30


def settled(settings: TrainingSettings) -> TrainingSettings:
    """Returns settings with what is left open decided for this platform.

    A GPU or TPU compiles a program for many seconds and runs it in milliseconds: it
    gets few shapes, and many examples at a time. Nothing is measured, so that one
    platform always gives one result. Steps a call stay as they are, for batches are
    shuffled by calls.

    Args:
        settings: How each task is trained. What is given in them stays.
    """
    if jax.default_backend() == "cpu":
        return settings
    ours: dict[str, Any] = {
        "evaluation_batch_size": 256,
        "row_lengths": row_lengths(settings.max_length),
    }
    open_ones = {k: v for k, v in ours.items() if k not in settings.model_fields_set}
    return settings.model_copy(update=open_ones)


def row_lengths(max_length: int) -> tuple[int, ...] | None:
    """Returns the lengths of rows on this platform, see `batches.buckets`.

    Args:
        max_length: The longest.
    """
    if jax.default_backend() == "cpu":
        return None
    lengths = [_SHORTEST_ROW]
    while lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return tuple(lengths)


def bounds(max_length: int) -> list[int]:
    """Returns the same with the longest, in full, where no settings are at hand."""
    return buckets(max_length, row_lengths(max_length))


def fisher_chunk(weights: Sequence[np.ndarray]) -> int:
    """Returns how many examples have their gradients squared at a time.

    Each example's gradient is as large as the model. On a CPU there are few of them; on
    other platforms a power of two up to 64 that keeps all of them below 4 GiB; what is
    computed from them may take as much again.

    Args:
        weights: Those of the encoder.
    """
    if jax.default_backend() == "cpu":
        return _CHUNK_ON_A_CPU
    chunk, size = _LARGEST_CHUNK, sum(w.size for w in weights) * 4
    while chunk > 1 and chunk * size > _BYTES_OF_A_CHUNK:
        chunk //= 2
    return chunk


def compiler_options() -> dict[str, Any]:
    """Returns the options of XLA that programs are compiled with.

    On a GPU a scatter that meets a place twice adds up in an order that differs from
    run to run unless XLA is told otherwise. The gradients of embeddings are such
    scatters, but for the many of `embeddings.rows_of`.
    """
    if jax.default_backend() != "gpu":
        return {}
    return {"xla_gpu_enable_scatter_determinism_expander": True}


def calls_ahead() -> int:
    """Returns how many calls a device may be given before one is waited for.

    None on a CPU, which makes batches with the cores that train.
    """
    return 0 if jax.default_backend() == "cpu" else 2
