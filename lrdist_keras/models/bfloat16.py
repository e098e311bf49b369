"""Matrix products in bfloat16, and how a traced function gets them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun, primitives

# A tile of AMX holds 16 rows of 32 bfloat16 numbers (Intel's Architecture Instruction
# Set Extensions Programming Reference, section on palette 1). A product that does not
# fill one costs the casts and gains nothing.
_TILE_ROWS, _TILE_DEPTH = 16, 32
# Primitives that are rewritten inside, with the parameters that hold their functions.
_INNER = {
    primitives.jit_p: ("jaxpr",),
    primitives.closed_call_p: ("call_jaxpr",),
    primitives.remat_p: ("jaxpr",),
    primitives.custom_jvp_call_p: ("call_jaxpr",),
    primitives.custom_vjp_call_p: ("call_jaxpr",),
    primitives.scan_p: ("jaxpr",),
    primitives.while_p: ("cond_jaxpr", "body_jaxpr"),
    primitives.cond_p: ("branches",),
}


@dataclass(frozen=True)
class _Units:
    """What the units of a platform ask for.

    Args:
        row_major: Whether they are used only where both operands are row-major.
        others: Precision of the products that are not computed from bfloat16, where it
            has to be asked for to be float32.
    """

    row_major: bool
    others: jax.lax.Precision | None


def _units_here() -> _Units:
    if jax.default_backend() == "cpu":
        return _Units(row_major=True, others=None)
    return _Units(row_major=False, others=jax.lax.Precision.HIGHEST)


def bfloat16_products(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes its float32 matrix products from bfloat16.

    Operands are rounded to bfloat16, sums are float32: sum_k a_k b_k is wrong by
    at most about 2^-7 sum_k |a_k b_k|, 2^-8 for each operand. CPUs with AMX have units
    for it, which XLA uses where both operands are row-major; operands that are sharded
    over devices are gathered on each for that. GPUs and TPUs take them as they lie, and
    products that stay are told to be float32, which there they would not be.

    A product stays as it is if an operand or the result is not float32, if it asks for
    a precision of its own (`precision="highest"`), if it says how its result is
    sharded, or if it does not fill a tile: fewer than 16 rows or columns, or fewer
    than 32 numbers to sum over. Products are found in `jit`, `scan`, loops, `cond`,
    `checkpoint` and functions with derivatives of their own; in other primitives that
    hold functions they stay float32.

    Apply it after differentiation: it rewrites the products that are there, and those
    of a gradient taken later of a function with a derivative of its own are not.

    Args:
        function: What `jax.make_jaxpr` can trace. It is traced at every call, so call
            the result inside `jax.jit`.

    Example:
        >>> step = jax.jit(bfloat16_products(jax.value_and_grad(loss)))
    """

    @functools.wraps(function)
    def rewritten(*arguments: Any, **options: Any) -> Any:
        traced, result = jax.make_jaxpr(function, return_shape=True)(
            *arguments, **options
        )
        leaves = jax.tree.leaves((arguments, options))
        outputs = jaxpr_as_fun(_rewritten(traced, _units_here()))(*leaves)
        return jax.tree.unflatten(jax.tree.structure(result), outputs)

    return rewritten


def _rewritten(inner: Any, units: _Units) -> Any:
    """Returns a jaxpr, closed or not, or several, with other products."""
    if isinstance(inner, tuple):
        return tuple(_rewritten(part, units) for part in inner)
    # Since JAX 0.11 both are one class, whose `jaxpr` is itself.
    if ClosedJaxpr is not Jaxpr and isinstance(inner, ClosedJaxpr):
        return inner.replace(jaxpr=_rewritten(inner.jaxpr, units))
    equations = [_rewritten_equation(e, units) for e in _turned(inner)]
    return inner.replace(eqns=equations)


def _turned(jaxpr: Any) -> list[Any]:
    """Returns equations where b^T a^T stands for (a b)^T, if nothing else reads a b.

    JAX makes the gradient of a kernel as such a transpose. Of a product that is
    row-major, everything that reads the gradient would read it across its rows.
    """
    uses = Counter(id(x) for e in jaxpr.eqns for x in e.invars)
    uses.update(map(id, jaxpr.outvars))
    places: dict[int, int] = {}  # of the products, by their results
    equations: list[Any] = []
    for equation in jaxpr.eqns:
        if equation.primitive is primitives.transpose_p:
            (operand,) = equation.invars
            place = places.get(id(operand)) if uses[id(operand)] == 1 else None
            if place is not None and (
                turned := _turned_product(equations[place], equation)
            ):
                equations[place] = turned
                continue
        if _is_rewritten(equation):
            places[id(equation.outvars[0])] = len(equations)
        equations.append(equation)
    return equations


def _turned_product(product: Any, transpose: Any) -> Any:
    """Returns one product for a product and its transpose, or None if none does."""
    (sum_a, sum_b), _ = product.params["dimension_numbers"]
    a, b = product.invars
    rows, columns = a.aval.ndim - len(sum_a), b.aval.ndim - len(sum_b)
    # Longer than any permutation where there are several products.
    order = (*range(rows, rows + columns), *range(rows))
    if transpose.params["permutation"] != order:
        return None
    dimension_numbers = ((sum_b, sum_a), ((), ()))
    return product.replace(
        invars=[b, a],
        outvars=transpose.outvars,
        params=product.params | {"dimension_numbers": dimension_numbers},
    )


def _rewritten_equation(equation: Any, units: _Units) -> Any:
    if _is_rewritten(equation):
        return _rewritten_product(equation, units)
    names = _INNER.get(equation.primitive, ())
    changed = {name: _rewritten(equation.params[name], units) for name in names}
    is_product = equation.primitive is primitives.dot_general_p
    if is_product and units.others and equation.params["precision"] is None:
        changed = {"precision": (units.others, units.others)}
    return equation.replace(params=equation.params | changed)


def _is_rewritten(equation: Any) -> bool:
    """Whether an equation is a product that is computed from bfloat16."""
    if equation.primitive is not primitives.dot_general_p:
        return False
    a, b = (variable.aval for variable in equation.invars)
    (result,) = (variable.aval for variable in equation.outvars)
    _, rows, depth, columns = product_sizes(a, b, equation.params["dimension_numbers"])
    return (
        all(x.dtype == jnp.float32 for x in (a, b, result))
        and equation.params["precision"] is None
        and equation.params["out_sharding"] is None
        and min(rows, columns) >= _TILE_ROWS
        and depth >= _TILE_DEPTH
    )


def _rewritten_product(equation: Any, units: _Units) -> Any:
    a, b = (variable.aval for variable in equation.invars)
    dimension_numbers = equation.params["dimension_numbers"]
    product = _row_major_product if units.row_major else _product
    traced = jax.make_jaxpr(product, static_argnums=2)(a, b, dimension_numbers)
    (call,) = traced.jaxpr.eqns
    return equation.replace(primitive=call.primitive, params=call.params)


@functools.partial(jax.jit, static_argnums=2)
def _product(a: Any, b: Any, dimension_numbers: Any) -> Any:
    """Returns `lax.dot_general` from bfloat16."""
    return jax.lax.dot_general(
        a.astype(jnp.bfloat16),
        b.astype(jnp.bfloat16),
        dimension_numbers,
        preferred_element_type=jnp.float32,
    )


@functools.partial(jax.jit, static_argnums=2)
def _row_major_product(a: Any, b: Any, dimension_numbers: Any) -> Any:
    """Returns the same as one product of row-major operands."""
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    free_a, free_b = _free(a, sum_a, batch_a), _free(b, sum_b, batch_b)
    batch, rows, depth, columns = product_sizes(a, b, dimension_numbers)
    batches = (batch,) if batch_a else ()
    last = len(batches)

    def operand(x: Any, order: tuple[int, ...], *shape: int) -> Any:
        # Reshaped only once it lies as it is to, or the transposition moves into the
        # product, and that is then as slow as in float32.
        x = _row_major(jnp.transpose(x.astype(jnp.bfloat16), order))
        return _row_major(x.reshape(*batches, *shape))

    result = jax.lax.dot_general(
        operand(a, (*batch_a, *free_a, *sum_a), rows, depth),
        operand(b, (*batch_b, *sum_b, *free_b), depth, columns),
        (((last + 1,), (last,)), ((0,), (0,)) if batches else ((), ())),
        preferred_element_type=jnp.float32,
    )
    # Otherwise a later transposition moves into the product, and no kernel does that.
    result = _row_major(result)
    return result.reshape(
        *(a.shape[i] for i in (*batch_a, *free_a)), *(b.shape[i] for i in free_b)
    )


def _row_major(x: Any) -> Any:
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _free(x: Any, summed: Sequence[int], batch: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i in range(x.ndim) if i not in (*summed, *batch))


def product_sizes(a: Any, b: Any, dimension_numbers: Any) -> tuple[int, int, int, int]:
    """Returns how many products a `dot_general` is, and rows, depth, columns of each.

    Args:
        a: Left operand, or anything of its shape.
        b: Right operand.
        dimension_numbers: Those of `jax.lax.dot_general`.
    """
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    free_a, free_b = _free(a, sum_a, batch_a), _free(b, sum_b, batch_b)
    axes = ((a, batch_a), (a, free_a), (a, sum_a), (b, free_b))
    batch, rows, depth, columns = (prod(x.shape[i] for i in of) for x, of in axes)
    return batch, rows, depth, columns
