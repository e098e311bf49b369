"""What a file holds of a `LayerwiseOptimizer`, and which optimizer may load it.

Keras's loader compares no more than numbers of variables. So the state has a place of
its own in a file, which no other optimizer reads, and says of itself what it is.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from lrdist_keras._keras_private import built_variables

_FORMAT = 1
_INNER = "inner."  # begins the names of what the inner optimizer saves


class GroupState(keras.Layer):
    """The place of a `LayerwiseOptimizer` in a file.

    A layer, because Keras saves and loads the layers that it finds among attributes.

    Args:
        save: Writes the state into a store, a mapping from name to array.
        load: Reads it from one.
    """

    def __init__(
        self, save: Callable[[Any], None], load: Callable[[Any], None]
    ) -> None:
        super().__init__(name="group_state")
        self._save = save
        self._load = load

    def save_own_variables(self, store: Any) -> None:
        """Saves the state."""
        self._save(store)

    def load_own_variables(self, store: Any) -> None:
        """Loads the state."""
        self._load(store)


@dataclass(frozen=True)
class Layout:
    """What the state of an optimizer is like.

    Args:
        groups: Names in order; none if they are not known yet.
        inner_optimizer: Registered name of its class.
        variables: Paths of the variables that it is built for.
        slots: What each variable of the inner optimizer is, such as `momentum`.
        shapes: Their shapes.
    """

    groups: list[str]
    inner_optimizer: str
    variables: list[str]
    slots: list[str]
    shapes: list[list[int]]

    @classmethod
    def of(cls, optimizer: Any) -> Layout:
        """Describes the state of an optimizer."""
        inner = optimizer.inner_optimizer
        built = built_variables(optimizer) if optimizer.built else []
        paths = [getattr(v, "path", v.name) for v in built]
        return cls(
            list(optimizer.groups),
            str(keras.saving.get_registered_name(type(inner))),
            paths,
            _slots([v.name for v in inner.variables], paths),
            [list(v.shape) for v in inner.variables],
        )

    def misfit(self, saved: Layout, is_built: bool) -> str | None:
        """Returns why a saved state cannot take the place of this; None if it can."""
        if len(saved.shapes) != len(self.shapes):
            unbuilt = (
                " It is not built yet; call `optimizer.build("
                "model.trainable_variables)` before loading."
            )
            return (
                f"the inner optimizer has {len(self.shapes)} variables whereas the "
                f"saved one has {len(saved.shapes)}.{'' if is_built else unbuilt}"
            )
        if saved.groups != self.groups:
            return (
                f"its groups are {self.groups or 'not known before it is built'} "
                f"whereas the saved ones are {saved.groups}, in this order; make the "
                "optimizer with those to load it."
            )
        if saved.inner_optimizer != self.inner_optimizer:
            return (
                f"its inner optimizer is {self.inner_optimizer} whereas the saved one "
                f"is {saved.inner_optimizer}."
            )
        if saved.slots != self.slots:
            mine, other = (", ".join(sorted({*x.slots})) for x in (self, saved))
            return (
                f"its inner optimizer keeps {mine} whereas the saved one kept {other}; "
                "give it the options of that one."
            )
        paths, saved_paths = map(_without_model, (self.variables, saved.variables))
        # A subclassed model that is loaded may have other paths throughout.
        if paths != saved_paths and {*paths} & {*saved_paths}:
            pairs = zip(paths, saved_paths, strict=True)
            mine, other = next((a, b) for a, b in pairs if a != b)
            return (
                f"it trains '{mine}' where the saved one trained '{other}'; freeze the "
                "same layers, and name them alike, to load it."
            )
        if saved.shapes != self.shapes:
            both = zip(self.slots, self.shapes, saved.shapes, strict=True)
            slot, mine_, other_ = next((s, a, b) for s, a, b in both if a != b)
            return f"a {slot} has shape {mine_} whereas the saved one has {other_}."
        return None


def save_state(optimizer: Any, store: Any) -> None:
    """Writes layout, multipliers and what the inner optimizer saves of itself."""
    multipliers = list(optimizer.multipliers.values()) if optimizer.groups else []
    content = {"format": _FORMAT, **asdict(Layout.of(optimizer))}
    store["multipliers"] = np.array(multipliers, "float32")
    store["layout"] = np.frombuffer(json.dumps(content).encode(), np.uint8)
    own: dict[str, Any] = {}
    optimizer.save_inner(own)
    for name, value in own.items():
        store[_INNER + name] = value


def load_state(optimizer: Any, store: Any) -> None:
    """Loads all state, or none of it with a warning that says why."""
    try:
        content = _text(store["layout"])
        if content.pop("format") != _FORMAT:
            raise ValueError
        saved = Layout(**content)
    except (AttributeError, KeyError, TypeError, ValueError):
        skip(optimizer, "another version of this package saved it.")
        return
    if reason := Layout.of(optimizer).misfit(saved, optimizer.built):
        skip(optimizer, reason)
        return
    optimizer.take_multipliers(np.asarray(store["multipliers"]).tolist())
    optimizer.load_inner(_Inner(store))


def holds_version_0_1(store: Any) -> bool:
    """Whether a place holds groups and multipliers as version 0.1 saved them."""
    return set(store.keys()) == {"multipliers", "group_names"}


def load_version_0_1(optimizer: Any, groups: Any, inner: Any) -> None:
    """Loads what version 0.1 saved in two places, or none of it with a warning.

    Such files do not name the class of the inner optimizer.

    Args:
        optimizer: The optimizer.
        groups: The place of names and multipliers.
        inner: The place of the inner optimizer's variables, by "0", "1", …
    """
    mine = Layout.of(optimizer)
    shapes = [list(np.shape(inner[str(i)])) for i in range(len(inner.keys()))]
    saved = Layout(
        _text(groups["group_names"]),
        mine.inner_optimizer,
        mine.variables,
        mine.slots,
        shapes,
    )
    if reason := mine.misfit(saved, optimizer.built):
        skip(optimizer, reason)
        return
    optimizer.take_multipliers(np.asarray(groups["multipliers"]).tolist())
    optimizer.load_inner(inner)


def skip(optimizer: Any, reason: str) -> None:
    """Warns that a checkpoint is not loaded into the optimizer, as Keras does."""
    warnings.warn(
        f"Skipping the saved state of optimizer '{optimizer.name}', because {reason} "
        "All else is loaded.",
        stacklevel=2,
    )


def leave_loading_to_us(multipliers: keras.Variable) -> None:
    """Keeps a `LossScaleOptimizer` outside from loading multipliers by position.

    It loads all variables of what is inside so, also those of other groups, or as many
    as do not fit. `load_state` comes after it and compares the groups.
    """
    assign = multipliers.assign

    def assign_unless_loaded_by_position(value: Any) -> Any:
        if isinstance(value, np.ndarray):  # as from a file, never in compiled code
            caller = sys._getframe(1).f_code.co_name
            if caller == keras.optimizers.Optimizer.load_own_variables.__name__:
                return multipliers.value
        return assign(value)

    multipliers.assign = assign_unless_loaded_by_position


class _Inner(Mapping[str, Any]):
    """What the inner optimizer saved, by its own names; read when asked for."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def __getitem__(self, name: str) -> Any:
        return self.store[_INNER + name]

    def __iter__(self) -> Iterator[str]:
        for name in self.store.keys():
            if name.startswith(_INNER):
                yield name.removeprefix(_INNER)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _text(array: Any) -> Any:
    return json.loads(np.asarray(array).astype(np.uint8).tobytes())


def _without_model(paths: Sequence[str]) -> list[str]:
    """Paths without the model's name, with which those of some models begin."""
    first = {path.partition("/")[0] for path in paths if "/" in path}
    if len(first) != 1 or not all("/" in path for path in paths):
        return list(paths)
    return [path.partition("/")[2] for path in paths]


def _slots(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """What each variable of an inner optimizer is, whatever the layers' names.

    Keras names a momentum after its variable, `dense_kernel_momentum`, and numbers
    variables without a name, `variable_7`.
    """
    prefixes = {path.replace("/", "_") for path in paths}
    lengths = sorted({len(prefix) for prefix in prefixes}, reverse=True)

    def slot(name: str) -> str:
        for length in lengths:
            if name[length : length + 1] == "_" and name[:length] in prefixes:
                return name[length + 1 :]
        return re.sub(r"_\d+$", "", name)

    return [slot(name) for name in names]
