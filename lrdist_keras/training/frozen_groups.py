"""Groups that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenGroups:
    """Names of groups that are not trained; part of a program, not an argument of it.

    Args:
        names: The groups.
    """

    names: tuple[str, ...] = field(metadata={"static": True})

    def stopped(self, weights: Sequence[Any], groups: Sequence[str]) -> list[Any]:
        """Returns the weights, those of frozen groups without a gradient.

        Below the lowest weight that has one nothing is computed backwards.

        Args:
            weights: The encoder's.
            groups: The group of each.
        """
        return [
            jax.lax.stop_gradient(weight) if group in self.names else weight
            for weight, group in zip(weights, groups, strict=True)
        ]
