"""All strategies, found in the files of this folder."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from lrdist_keras.training.strategies.base import Strategy

# The order in which messages name them; those that are not here follow.
_ORDER = (
    "plain frozen seq_star lp_ft ewc ewc_online ewc_pretraining l2_sp recadam replay "
    "der++ lwf wise_ft sfa head_refit lora joint single"
).split()


def _found() -> dict[str, type[Strategy]]:
    """Returns every subclass of `Strategy` that has a name, by its name."""
    found: dict[str, type[Strategy]] = {}
    for file in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        if file.name == __name__:
            continue
        for value in vars(import_module(file.name)).values():
            is_strategy = isinstance(value, type) and issubclass(value, Strategy)
            if is_strategy and "strategy" in value.model_fields:
                found[value.model_fields["strategy"].default] = value
    names = [name for name in _ORDER if name in found]
    return {name: found[name] for name in [*names, *sorted(found.keys() - {*names})]}


STRATEGIES = _found()
if TYPE_CHECKING:
    AnyStrategy = Strategy
else:
    AnyStrategy = Annotated[
        Union[tuple(STRATEGIES.values())],  # noqa: UP007
        Field(discriminator="strategy"),
    ]
