"""The precisions of matrix products: which a machine has, and how functions get it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import jax

from lrdist_keras.errors import InputError
from lrdist_keras.machine import cpu_flags_here
from lrdist_keras.models.bfloat16 import bfloat16_products

# JAX's name of each that is one setting of all products. On GPUs and TPUs its default
# rounds operands: to 10 bits of mantissa (TF32) on NVIDIA's since Ampere.
_OF_JAX = {"float32": "highest", "tf32": "tensorfloat32"}


def resolve(precision: str, platform: str, cpu_flags: Collection[str]) -> str:
    """Returns what a setting means on a machine: `float32`, `tf32` or `bfloat16`.

    `auto` is bfloat16 on GPU, TPU, and CPUs with AMX, or with AVX512-BF16 by AMD: Zen 5
    was measured to be faster by it, a Xeon without AMX slower. Nothing is measured
    here, so that the same machine always gives the same numbers.

    Args:
        precision: `"auto"`, or one of the three, which mean themselves.
        platform: JAX's name of it, such as `"cpu"`.
        cpu_flags: What `cpu_flags` finds.

    Raises:
        ValueError: If it is `tf32`, and the platform is no GPU.
    """
    if precision == "tf32" and platform != "gpu":
        raise InputError(
            "model.precision: 'tf32' is a precision of GPUs; use 'float32', 'bfloat16' "
            f"or 'auto' here. Received: 'tf32' on the platform '{platform}'"
        )
    if precision != "auto":
        return precision
    has_units = platform in ("gpu", "tpu") or (
        platform == "cpu"
        and ("amx_bf16" in cpu_flags or {"AuthenticAMD", "avx512_bf16"} <= {*cpu_flags})
    )
    return "bfloat16" if has_units else "float32"


def resolve_here(precision: str) -> str:
    """Returns what a setting means on this machine, see `resolve`."""
    return resolve(precision, jax.default_backend(), cpu_flags_here())


def in_precision(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """Returns a function whose float32 matrix products have a precision, here.

    It means the same on every platform: `bfloat16` is what `bfloat16_products` does,
    and `float32` rounds nothing. What is no product is float32 in each.

    Args:
        function: What JAX can trace, after differentiation.
        precision: `float32`, `tf32` or `bfloat16`.
    """
    if precision == "bfloat16":
        return bfloat16_products(function)
    if jax.default_backend() == "cpu":
        return function

    @functools.wraps(function)
    def precise(*arguments: Any, **options: Any) -> Any:
        with jax.default_matmul_precision(_OF_JAX[precision]):
            return function(*arguments, **options)

    return precise
