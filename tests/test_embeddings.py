"""Rows of an embedding table, and their gradient as a matrix product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdist_keras.models.embeddings import rows_of, summed

WIDTH = 24


def drawn(rows):
    """Numbers of very different frequency, and values of very different size."""
    rng = np.random.default_rng(rows)
    ids = (rng.zipf(1.5, (8, 16)) - 1).clip(0, rows - 1).astype(np.int32)
    sizes = np.exp(3 * rng.normal(size=(8, 16, 1)))
    return ids, (rng.normal(size=(8, 16, WIDTH)) * sizes).astype(np.float32)


def by_hand(ids, values, rows):
    """The same in float64."""
    total = np.zeros((rows, WIDTH))
    np.add.at(total, ids.ravel(), values.reshape(-1, WIDTH).astype(np.float64))
    return total


@pytest.mark.parametrize("rows", [2, 128, 500])  # fewer, as many, more than places
def test_sums_are_as_exact_as_in_float32(rows):
    ids, values = drawn(rows)
    expected, scale = (by_hand(ids, v, rows) for v in (values, np.abs(values)))
    found = np.asarray(jax.jit(summed, static_argnums=2)(ids, values, rows))
    assert not found[scale[:, 0] == 0].any()
    once = np.bincount(ids.ravel(), minlength=rows) == 1
    np.testing.assert_array_equal(found[once], expected[once])
    assert (np.abs(found - expected) <= 1e-6 * scale).all()


def test_the_gradient_on_a_gpu_is_the_same_function(monkeypatch):
    ids, values = drawn(500)
    table = np.random.default_rng(0).normal(size=(500, WIDTH)).astype(np.float32)

    def loss(table):
        return jnp.sum(rows_of(table, ids) * values)

    on_a_cpu = jax.jit(jax.value_and_grad(loss))(table)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_a_gpu = jax.jit(jax.value_and_grad(lambda t: loss(t)))(table)
    np.testing.assert_array_equal(on_a_gpu[0], on_a_cpu[0])
    np.testing.assert_allclose(on_a_gpu[1], on_a_cpu[1], rtol=1e-5, atol=1e-4)
    text = jax.jit(jax.grad(lambda t: loss(t))).lower(table).as_text()
    assert "unique_indices = true" in text
    assert text.count("reduce_precision") == 3  # casts might be taken for nothing
    many = jax.jit(jax.grad(lambda t: rows_of(t, jnp.zeros(8193, int)).sum()))
    assert "unique_indices = true" not in many.lower(table).as_text()
    # Several runs in one program, as of `jax.vmap`.
    tables = np.stack([table, -table])
    both = jax.vmap(jax.grad(lambda t: loss(t)))(tables)
    np.testing.assert_allclose(both[0], on_a_cpu[1], rtol=1e-5, atol=1e-4)
