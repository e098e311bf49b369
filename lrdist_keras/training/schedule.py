"""The learning rate over the steps of a task."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def schedule(step: Any, total: Any, warmup: float, kind: str) -> Any:
    """Returns the factor of the learning rate at a step, in [0, 1].

    With w = warmup * total: (step + 1) / w while step < w, then 1 for `constant` or
    (1 + cos(pi (step - w) / (total - w))) / 2 for `cosine` (arXiv 1608.03983,
    equation 5, without restarts).

    Args:
        step: Steps done, from 0.
        total: Steps in all.
        warmup: Share of the steps in which the rate rises.
        kind: `"cosine"` or `"constant"`.
    """
    rise = warmup * total
    fall = (step - rise) / jnp.maximum(total - rise, 1)
    after = 0.5 * (1 + jnp.cos(jnp.pi * fall)) if kind == "cosine" else 1.0
    return jnp.where(
        step < rise, jnp.minimum((step + 1) / jnp.maximum(rise, 1), 1), after
    )
