"""Rows of an embedding table, with a gradient that is the same every time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MOST_PLACES = 8192


def rows_of(table: Any, ids: Any) -> Any:
    """Returns the rows of a table with these numbers, shape [*ids.shape, width].

    The gradient of a row is the sum over all places that took it. On a GPU a
    scatter adds them in the order in which its threads happen to come, so that two
    runs differ in the last digits; there it is a matrix product instead. Where that
    would be of too many places, it is a scatter that XLA has been told to repeat, see
    `platforms.compiler_options`, which takes longer but not as the square of them.

    Args:
        table: Shape [rows, width].
        ids: Integers in [0, rows), any shape.
    """
    if jax.default_backend() != "gpu" or ids.size > _MOST_PLACES:
        return jnp.take(table, ids, axis=0)
    return _repeatable(table, ids)


@jax.custom_vjp
def _repeatable(table: Any, ids: Any) -> Any:
    return jnp.take(table, ids, axis=0)


def _forward(table: Any, ids: Any) -> tuple[Any, tuple]:
    return _repeatable(table, ids), (ids, table.shape[0])


def _backward(kept: tuple, gradient: Any) -> tuple[Any, Any]:
    ids, rows = kept
    return summed(ids, gradient, rows), np.zeros(ids.shape, jax.dtypes.float0)


_repeatable.defvjp(_forward, _backward)


def summed(ids: Any, values: Any, rows: int) -> Any:
    """Returns the sum of the values of each number, shape [rows, width].

    The matrix that says which places hold the same number, times the values, is at each
    place the sum that belongs to its number; the first place of each is kept. Ones and
    zeros are exact in bfloat16, and three numbers in bfloat16 hold the 24 bits of one
    in float32: the product is as exact as a sum in float32.

    Args:
        ids: Integers in [0, rows), any shape.
        values: float32, shape [*ids.shape, width].
        rows: How many numbers there are.
    """
    ids, width = ids.ravel(), values.shape[-1]
    values, places = values.reshape(-1, width), jnp.arange(ids.size)
    if rows <= ids.size:  # then it is less work, and nothing has to be placed
        return _exact_product(jnp.arange(rows)[:, None] == ids, values)
    same = ids[:, None] == ids
    is_first = jnp.argmax(same, axis=1) == places
    total = _exact_product(same, values)
    # What is dropped has numbers of its own, for none may stand there twice.
    where = jnp.where(is_first, ids, rows + places)
    table = jnp.zeros((rows, width), jnp.float32)
    return table.at[where].set(total, mode="drop", unique_indices=True)


def _exact_product(ones: Any, values: Any) -> Any:
    """Returns a matrix of truth values times one of float32, as exact as in float32."""
    ones = ones.astype(jnp.bfloat16)
    total: Any = 0
    for _ in range(3):
        # A cast and its reverse XLA may take for nothing at all, but not this.
        part = jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
        values = values - part
        total += jnp.matmul(
            ones, part.astype(jnp.bfloat16), preferred_element_type=jnp.float32
        )
    return total
