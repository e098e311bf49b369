"""`LayerwiseOptimizer`: any Keras optimizer with a learning rate for each group."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from glob import escape
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from lrdist_keras.distribution import PRESETS, Distribution
from lrdist_keras.groups import (
    Groups,
    Scheme,
    normalize,
    partition,
    transformer_groups,
)

Multipliers = Mapping[str, float] | Sequence[float]
Schedule = Callable[[Any], Any]

_LARGEST = float(np.finfo(np.float32).max)
_BY_PATTERN = (
    "make a distribution for your groups: `Distribution(PatternScheme(groups), rates)` "
    "with a rate for each, or `llrd(rate, decay, PatternScheme(groups))`."
)
# An array, because TensorFlow takes the number for the 0.0 that it has cached.
_NEGATIVE_ZERO = np.array(-0.0, "float32")


def _delegated(name: str) -> property:
    """An option of the inner optimizer, to be read and assigned on the outer one."""

    def get(self: LayerwiseOptimizer) -> Any:
        return getattr(self.inner_optimizer, name) if self._delegates else None

    def assign(self: LayerwiseOptimizer, value: Any) -> None:
        if self._delegates:
            setattr(self.inner_optimizer, name, value)

    return property(get, assign)


@keras.saving.register_keras_serializable(package="lrdist_keras")
class LayerwiseOptimizer(keras.optimizers.Optimizer):
    """Gives each group of variables its own multiple of the learning rate.

    One inner optimizer does the work, so that clipping, schedules, averaging and
    accumulation stay whole; its update and its decoupled weight decay see
    `learning_rate * multiplier` for each variable. The multipliers are state, one
    float32 vector of shape [groups], the first of `variables`: assigning others
    recompiles nothing. A multiplier of 0 freezes its group: its weights keep every
    bit, whatever momentum and decay say, while the optimizer's own state goes on.

    The options of the inner optimizer (`clipnorm`, `weight_decay`, `use_ema` and so on)
    can be read and assigned here as there.

    Args:
        inner_optimizer: A Keras optimizer that is not built yet. Options such as
            `weight_decay`, `global_clipnorm` or `use_ema` are given to it.
        groups: An ordered mapping from group name to path pattern(s), see
            `lrdist_keras.groups.PatternScheme`; or a model that holds one KerasHub
            transformer, see `lrdist_keras.transformer_groups`; or a function from
            variable to group name, whose groups are ordered as their first variables.
            Every trainable variable must be in exactly one group.
        multipliers: Multiple of the learning rate per group, at least 0: a mapping from
            group name to number, where groups left out have 1; or a sequence in group
            order; or a function from step (int tensor, shape []) to a vector of shape
            [groups], see `GradualUnfreezing`. Defaults to 1 for all.
        name: Name of the optimizer.

    Raises:
        ValueError: If the inner optimizer is built, is itself a wrapper or cannot be
            scaled, or groups or multipliers are malformed; in `build`, if a variable is
            in no group or in several.

    Example:
    >>> body = keras.layers.Dense(3, name="body")
    >>> head = keras.layers.Dense(2, name="head")
    >>> model = keras.Sequential([keras.Input((4,)), body, head])
    >>> optimizer = LayerwiseOptimizer(
    ...     keras.optimizers.Adam(1e-3),
    ...     groups={"body": "body", "head": "head"},
    ...     multipliers={"body": 0.1, "head": 1.0},
    ... )
    >>> model.compile(optimizer, loss="mse")
    """

    _delegates = False  # so that the base class finds nothing to do

    weight_decay = _delegated("weight_decay")
    clipnorm = _delegated("clipnorm")
    global_clipnorm = _delegated("global_clipnorm")
    clipvalue = _delegated("clipvalue")
    use_ema = _delegated("use_ema")
    ema_momentum = _delegated("ema_momentum")
    ema_overwrite_frequency = _delegated("ema_overwrite_frequency")
    gradient_accumulation_steps = _delegated("gradient_accumulation_steps")
    # `LossScaleOptimizer` sets it to None on what it wraps.
    loss_scale_factor = _delegated("loss_scale_factor")

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        groups: Groups | keras.Model | Callable[[Any], str],
        multipliers: Multipliers | Schedule | None = None,
        name: str | None = None,
    ) -> None:
        _check_inner(inner_optimizer)
        # A function, because a number would become one more variable of ours.
        super().__init__(learning_rate=lambda: inner_optimizer.learning_rate, name=name)
        self.inner_optimizer = inner_optimizer
        self._delegates = True
        self._group_function: Callable[[Any], str] | None = None
        # The group of each variable by its position, where it was built before.
        self._saved_indices: list[int] | None = None
        # What `summary` looks at before the optimizer is built. A function, since Keras
        # would save a model that it finds among the attributes.
        self._model_variables: Callable[[], list[Any]] | None = None
        if isinstance(groups, keras.Model):
            self.groups = transformer_groups(groups)[1]
            self._model_variables = _trainable_variables_of(groups)
        elif isinstance(groups, keras.Layer):
            raise ValueError(
                "`groups` must be a mapping, a function or a model with a KerasHub "
                f"transformer. Received: a layer, {groups.name}"
            )
        elif callable(groups) and not isinstance(groups, Mapping):
            self.groups, self._group_function = {}, groups
        else:
            self.groups = normalize(groups)
        self._schedule: Schedule | None = None
        self._given: dict[str, float] | list[float] | None = None
        if callable(multipliers):
            self._schedule = multipliers
        else:
            self._given = _numbers(multipliers)
        if self.groups:
            self._initial_multipliers = self._initial_values(list(self.groups))
        self._older_layout: _Layout | None = None
        self.group_state = _GroupState(self._save_state, self._load_state)
        self._hook()

    def _hook(self) -> None:
        """Puts the multipliers into the inner optimizer; all use of Keras internals."""
        inner = self.inner_optimizer
        apply_weight_decay = inner._apply_weight_decay
        current_learning_rate = inner._get_current_learning_rate
        torch_groups = hasattr(inner, "_parallel_update_step")

        def by_group(variables: Sequence[Any]) -> dict[int, list[int]]:
            positions: dict[int, list[int]] = {}
            for position, variable in enumerate(variables):
                group = self._group_of[inner._var_key(variable)]
                positions.setdefault(group, []).append(position)
            return positions

        def scaled(learning_rate: Any, group: int) -> Any:
            multiplier = self._multipliers[group]
            rate = ops.multiply(learning_rate, multiplier)
            # Decay at -0.0 leaves every weight as it is, -0.0 too; at 0.0 it would not.
            return ops.where(ops.greater(multiplier, 0), rate, _NEGATIVE_ZERO)

        @contextmanager
        def at(rate: Any) -> Iterator[None]:
            """Lets the inner optimizer find this learning rate wherever it reads it."""
            inner._get_current_learning_rate = lambda: rate
            try:
                yield
            finally:
                inner._get_current_learning_rate = current_learning_rate

        def scaled_weight_decay(variables: Sequence[Any]) -> None:
            learning_rate = current_learning_rate()
            for group, positions in by_group(variables).items():
                members = [variables[i] for i in positions]
                if torch_groups:  # its fused kernels refuse an empty list
                    members = [v for v in members if inner._use_weight_decay(v)]
                if members:
                    with at(scaled(learning_rate, group)):
                        apply_weight_decay(members)

        inner._apply_weight_decay = scaled_weight_decay

        if torch_groups:
            # Torch's own optimizers update lists of variables and skip `update_step`.
            parallel_update_step = inner._parallel_update_step

            def scaled_parallel_update_step(
                gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any
            ) -> None:
                # Nadam advances this once per call; every group starts from the same.
                product = getattr(inner, "_u_product", None)
                start = None if product is None else ops.copy(product)
                for group, positions in by_group(variables).items():
                    if product is not None:
                        product.assign(start)
                    members = [variables[i] for i in positions]
                    is_frozen = not float(self._multipliers[group]) > 0
                    kept = [ops.copy(v) for v in members if is_frozen]
                    rate = scaled(learning_rate, group)
                    with at(rate):
                        parallel_update_step(
                            [gradients[i] for i in positions], members, rate
                        )
                    for variable, value in zip(members, kept, strict=False):
                        variable.assign(value)

            inner._parallel_update_step = scaled_parallel_update_step

        update_step = inner.update_step

        def scaled_update_step(
            gradient: Any, variable: Any, learning_rate: Any
        ) -> None:
            group = self._group_of[inner._var_key(variable)]
            kept = ops.copy(ops.convert_to_tensor(variable))
            rate = scaled(learning_rate, group)
            with at(rate):
                update_step(gradient, variable, rate)
            # Momentum that was gathered before would still carry a frozen weight.
            learns = ops.greater(self._multipliers[group], 0)
            moved = ops.convert_to_tensor(variable)
            inner.assign(variable, ops.where(learns, moved, kept))

        inner.update_step = scaled_update_step

        self._step = lambda: inner._iterations
        self._key = inner._var_key
        self._built_variables = lambda: list(self._trainable_variables)

        def decays(variable: Any) -> bool:
            is_keras = isinstance(variable, keras.Variable)
            if is_keras and keras.backend.backend() == "tensorflow":
                variable = variable.value
            return inner._use_weight_decay(variable)

        self._decays = decays

        def decay_of(variable: Any) -> float:
            decay = inner.weight_decay
            if isinstance(inner, keras.optimizers.Muon) and (
                inner._should_use_adamw(variable)
            ):
                decay = inner.adam_weight_decay
            return float(decay or 0.0) if decays(variable) else 0.0

        self._decay_of = decay_of

        # The number's variable, the schedule or the function, as it was given.
        self._given_rate = lambda: inner._learning_rate

        def share_averages() -> None:
            # `SwapEMAWeights` unwraps one optimizer only, and `LossScaleOptimizer` may
            # stand outside of this one.
            if inner.use_ema:
                averages = inner._model_variables_moving_average
                object.__setattr__(self, "_model_variables_moving_average", averages)

        self._share_averages = share_averages

        # `group_state` holds them, lest a `LossScaleOptimizer` around an optimizer of
        # another class, which calls it `inner_optimizer` too, takes them for its own.
        inner.save_own_variables = lambda store: None
        inner.load_own_variables = self._load_older_state

        def slots() -> list[str]:
            """What each variable of the inner optimizer is, whatever the layers' names.

            Keras names a momentum after its variable, `dense_kernel_momentum`.
            """
            paths = {_path(v).replace("/", "_") for v in self._built_variables()}
            lengths = sorted({len(path) for path in paths}, reverse=True)
            return [_slot(v.name, paths, lengths) for v in inner.variables]

        self._slots = slots

    @classmethod
    def from_distribution(
        cls,
        optimizer: Callable[..., keras.optimizers.Optimizer],
        distribution: Distribution | str,
        model: keras.Model,
        schedule: Callable[[float], Any] | None = None,
        **options: Any,
    ) -> LayerwiseOptimizer:
        """Gives every group of a model its absolute rate from a distribution.

        Args:
            optimizer: Class of the inner optimizer, such as `keras.optimizers.AdamW`.
            distribution: The rates, whose scheme must be that of the model; or the name
                of a published one, such as "kenneweg2022", which is resampled to it.
            model: The model to train; for groups by pattern only `summary` looks at it.
            schedule: Makes a learning-rate schedule from its peak, which is the
                distribution's reference rate, its largest. Defaults to that rate
                throughout.
            **options: Further arguments of the inner optimizer's class, its `name`
                among them.

        Raises:
            ValueError: If the distribution is of another scheme than the model, or an
                argument is of the wrong kind.

        Example:
        >>> optimizer = LayerwiseOptimizer.from_distribution(
        ...     keras.optimizers.AdamW,
        ...     distribution,
        ...     model,
        ...     schedule=lambda rate: schedules.CosineDecay(rate, decay_steps=1000),
        ...     weight_decay=0.01,
        ... )
        """
        if not isinstance(optimizer, type) or "learning_rate" in options:
            raise ValueError(
                "`optimizer` must be the class of an optimizer, such as "
                "`keras.optimizers.AdamW`, whose learning rate the distribution gives. "
                f"Received: {optimizer!r} with {', '.join(options) or 'no options'}"
            )
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            raise ValueError(
                "`schedule` must be a function from peak to schedule, such as "
                "`lambda rate: CosineDecay(rate, 1000)`. Received: "
                f"{type(schedule).__name__}"
            )
        if "groups" in options:
            raise ValueError(
                "`groups` belong to the distribution and cannot be given beside it; "
                f"{_BY_PATTERN} Received: groups={options['groups']!r}"
            )
        if isinstance(distribution, str):
            distribution = _preset(distribution).resample(_layers_of(model)[0])
        elif not isinstance(distribution, Distribution):
            raise ValueError(
                "`distribution` must be a `Distribution`, such as "
                "`Distribution.load('mine.json')`, or the name of a published one: "
                f"{', '.join(PRESETS)}. For rates of your own, {_BY_PATTERN} "
                f"Received: {distribution!r}"
            )
        scheme, groups = distribution.scheme, None
        if isinstance(scheme, Scheme):
            found, groups = _layers_of(model, scheme.encoder_groups, scheme.rounding)
            if found != scheme:
                raise ValueError(
                    f"The distribution is made for the scheme {scheme}, the model has "
                    f"{found}; use `distribution.resample(Scheme.parse('{found}'))`."
                )
        else:
            groups = normalize(scheme.patterns)
        rate = distribution.reference_rate
        inner = optimizer(
            learning_rate=rate if schedule is None else schedule(rate), **options
        )
        multipliers = {name: distribution.multipliers[name] for name in groups}
        layerwise = cls(inner, groups, multipliers)
        if isinstance(model, keras.Model):
            layerwise._model_variables = _trainable_variables_of(model)
        return layerwise

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the state for these variables and finds the group of each.

        Raises:
            ValueError: If a variable is in no group or in several, or the optimizer was
                built for other variables. A group without a variable is a warning.
        """
        if self.built:
            self._check_known(variables, complete=True)
            return
        if self._group_function is None:
            self._indices = self._partition([_path(v) for v in variables])
        else:
            names = [self._group_function(v) for v in variables]
            groups = _exact_patterns(names, [_path(v) for v in variables])
            self._initial_multipliers = self._initial_values(list(groups))
            self.groups = groups
            self._indices = [list(groups).index(name) for name in names]
        self._group_of = {
            self._key(v): i for v, i in zip(variables, self._indices, strict=True)
        }
        self._multipliers = self.add_variable(
            shape=(len(self.groups),),
            # Not an assignment, which a `tf.function` would repeat at every step.
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(
                np.array(self._initial_multipliers, "float32")
            ),
            dtype="float32",
            name="multipliers",
        )
        self._multipliers.assign = self._if_of_its_shape(self._multipliers.assign)
        self.inner_optimizer.build(variables)
        self._delegates = False  # or the base class would make averages of its own
        super().build(variables)
        self._delegates = True
        self._share_averages()

    def _if_of_its_shape(self, assign: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Lets a `LossScaleOptimizer` load a checkpoint of other groups.

        It assigns all variables by their position, and would end in an error here.
        """

        def assign_if_of_its_shape(value: Any) -> Any:
            if tuple(np.shape(value)) == (len(self.groups),):
                return assign(value)
            warnings.warn(
                f"`multipliers` of '{self.name}' stay as they were: there are "
                f"{len(self.groups)} groups. Received: shape {np.shape(value)}",
                stacklevel=2,
            )
            return self._multipliers.value

        return assign_if_of_its_shape

    def _partition(self, paths: list[str]) -> list[int]:
        """Returns the group of each path.

        A subclassed model that is loaded has other paths than when it was saved. Where
        layers are frozen a group may hold nothing; it keeps its place.
        """
        try:
            return partition(paths, self.groups)
        except ValueError:
            if self._saved_indices and len(paths) == len(self._saved_indices):
                return self._saved_indices
            indices = partition(paths, self.groups, allow_empty=True)
        empty = {
            name: ", ".join(patterns)
            for index, (name, patterns) in enumerate(self.groups.items())
            if index not in indices
        }
        found = "; ".join(f"'{name}' ({patterns})" for name, patterns in empty.items())
        warnings.warn(
            "A group matches no trainable variable: its layers are frozen, or its "
            f"pattern is wrong. It has nothing to train. Found: {found}",
            stacklevel=3,
        )
        return indices

    @property
    def multipliers(self) -> Mapping[str, float]:
        """Multiple of the learning rate per group, a mapping that cannot be changed.

        Readable and assignable at any time outside of compiled code. Assign a mapping
        of all groups or a sequence in group order, for example
        `{**optimizer.multipliers, "head": 2.0}`. With a function of the step they are
        those of the last step, and assigning raises a `TypeError`.
        """
        if self.built:
            values = ops.convert_to_numpy(self._multipliers.value).tolist()
        elif self.groups:
            values = self._initial_multipliers
        else:
            raise AttributeError(
                "Groups by a function are known once the optimizer is built; call "
                "`optimizer.build(model.trainable_variables)` first."
            )
        return MappingProxyType(dict(zip(self.groups, values, strict=True)))

    @multipliers.setter
    def multipliers(self, multipliers: Multipliers) -> None:
        if self._schedule is not None:
            raise TypeError(
                "The multipliers follow a function of the step and cannot be assigned; "
                "give the constructor numbers to be able to."
            )
        names, given = list(self.groups), _numbers(multipliers)
        if names:
            if isinstance(given, Mapping) and (missing := set(names) - {*given}):
                raise ValueError(
                    "Assigned multipliers must name every group; start from "
                    f"`{{**optimizer.multipliers, ...}}`. Missing: {sorted(missing)}"
                )
            values = _multiplier_values(given, names, self.inner_optimizer)
            self._initial_multipliers = values
            if self.built:
                self._multipliers.assign(values)
        self._given = given

    def _initial_values(self, names: list[str]) -> list[float]:
        given = self._given
        if self._schedule is not None:
            given = ops.convert_to_numpy(self._schedule(ops.convert_to_tensor(0)))
            if given.shape != (len(names),):
                raise ValueError(
                    "`multipliers` as a function of the step must return a vector with "
                    f"one value for each of the {len(names)} groups "
                    f"({', '.join(names)}). Received: shape {given.shape}"
                )
            given = given.tolist()
        return _multiplier_values(given, names, self.inner_optimizer)

    @property
    def variables(self) -> list[keras.Variable]:
        """The vector of multipliers, then the variables of the inner optimizer."""
        # Without the step counter of the base class, which stands still.
        own = [self._multipliers] if self.built else []
        return own + self.inner_optimizer.variables

    def apply(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None
    ) -> None:
        """Updates the variables by their gradients, as every Keras optimizer does.

        Raises:
            ValueError: If the variables are others than the optimizer was built for.
        """
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                self.build(trainable_variables)
            self._check_known(trainable_variables)
        if self._schedule is not None and self.built:
            # The step of learning-rate schedules: accumulation steps count singly.
            vector = self._schedule(ops.convert_to_tensor(self._step()))
            self._multipliers.assign(ops.cast(vector, "float32"))
        self.inner_optimizer.apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable with its share of the learning rate."""
        self.inner_optimizer.update_step(gradient, variable, learning_rate)

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        """Like `apply`, for pairs of gradient and variable; returns the step."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return self._step()

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Any],
        grads: Sequence[Any],
        trainable_variables: Sequence[Any],
    ) -> tuple[list[Any], list[Any]]:
        """Returns the new trainable and optimizer variables, changing nothing.

        Raises:
            ValueError: If the optimizer is not built or the numbers do not fit.
        """
        expected = len(self._built_variables())
        if self.built and len(trainable_variables) != expected:
            raise ValueError(
                f"The optimizer was built for {expected} variables and got "
                f"{len(trainable_variables)}; when layers are added, frozen or "
                "unfrozen, compile again with a new optimizer."
            )
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    def _check_known(self, variables: Sequence[Any], complete: bool = False) -> None:
        keys = {self._key(v) for v in variables}
        changed = [_path(v) for v in variables if self._key(v) not in self._group_of]
        if complete:
            missing = [v for v in self._built_variables() if self._key(v) not in keys]
            changed += [_path(v) for v in missing]
        if changed:
            raise ValueError(
                "The variables are not those that the optimizer was built for; when "
                "layers are added, frozen or unfrozen, compile again with a new "
                f"optimizer. Changed: {', '.join(changed)}"
            )

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[Any] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Delegated: excludes variables from the inner optimizer's weight decay."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer: that of multiplier 1."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> Any:
        """The number of steps that the inner optimizer has taken."""
        return self.inner_optimizer.iterations

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts averaged weights in place at the end of training, if there are any."""
        self.inner_optimizer.finalize_variable_values(var_list)
        if self.use_ema:
            # Weights and averages share buffers now, which JAX's next `fit` refuses.
            for variable in var_list:
                variable.assign(ops.copy(ops.convert_to_tensor(variable)))

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns all variables, those of the inner optimizer included.

        Raises:
            ValueError: If the optimizer is not built or the number of weights differs.
        """
        if not self.built:
            raise ValueError(
                "You are calling `set_weights` on an optimizer that is not built; call "
                "`optimizer.build(model.trainable_variables)` first."
            )
        if len(weights) != len(self.variables):
            raise ValueError(
                "`set_weights` needs one array for each of the "
                f"{len(self.variables)} `optimizer.variables`, such as those of an "
                f"optimizer of the same kind. Received: {len(weights)} arrays"
            )
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)
        self._initial_multipliers = np.asarray(weights[0]).tolist()

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing here: `group_state` holds all state, in a place of its own.

        Whatever stood here, another optimizer with as many variables would load it as
        its own: Keras compares no more than their numbers. Keras's loader skips a place
        without entries, with a warning.
        """

    def load_own_variables(self, store: Any) -> None:
        """Begins to load a checkpoint, whose other parts Keras brings next."""
        # Version 0.1 saved groups and multipliers here, the rest as `inner_optimizer`.
        self._older_layout = _Layout.read(store)

    def _save_state(self, store: Any) -> None:
        multipliers = list(self.multipliers.values()) if self.groups else []
        layout = {
            "groups": list(self.groups),
            "inner_optimizer": _class_name(self.inner_optimizer),
            "slots": self._slots(),
        }
        store["multipliers"] = np.array(multipliers, "float32")
        store["layout"] = np.frombuffer(json.dumps(layout).encode(), np.uint8)
        for i, variable in enumerate(self.inner_optimizer.variables):
            store[str(i)] = variable.numpy()

    def _load_state(self, store: Any) -> None:
        layout = _Layout.read(store)
        if layout is not None:
            self._load_if_it_fits(layout, store)
        elif self._older_layout is None:
            self._skip("it was saved with another optimizer, or without one.")

    def _load_older_state(self, store: Any) -> None:
        if self._older_layout is not None:
            layout, self._older_layout = self._older_layout, None
            self._load_if_it_fits(layout, store)

    def _load_if_it_fits(self, layout: _Layout, store: Any) -> None:
        """Loads all state, or none of it with a warning that says why.

        Args:
            layout: What the checkpoint says of itself.
            store: The variables of the inner optimizer, by "0", "1", …
        """
        variables = self.inner_optimizer.variables
        if reason := self._misfit(layout, store):
            if self.built and [*self.multipliers.values()] == layout.multipliers:
                # A `LossScaleOptimizer` outside loads all variables by their position.
                self._multipliers.assign(self._initial_multipliers)
            self._skip(reason)
            return
        if self.groups:
            self._initial_multipliers = layout.multipliers
        elif layout.groups:
            self._given = dict(zip(layout.groups, layout.multipliers, strict=True))
        if self.built:
            self._multipliers.assign(layout.multipliers)
        for i, variable in enumerate(variables):
            variable.assign(store[str(i)])

    def _skip(self, reason: str) -> None:
        warnings.warn(
            f"Skipping the saved state of optimizer '{self.name}', because {reason} "
            "The weights of layers are loaded all the same.",
            stacklevel=2,
        )

    def _misfit(self, layout: _Layout, store: Any) -> str | None:
        """Why a checkpoint cannot be loaded; None if it can."""
        variables = self.inner_optimizer.variables
        saved = sum(key.isdecimal() for key in store.keys())
        names, inner = list(self.groups), _class_name(self.inner_optimizer)
        if saved != len(variables):
            unbuilt = (
                " It is not built yet; call "
                "`optimizer.build(model.trainable_variables)` before loading."
            )
            return (
                f"the inner optimizer has {len(variables)} variables whereas the saved "
                f"one has {saved}.{'' if self.built else unbuilt}"
            )
        if names and layout.groups != names:
            return (
                f"its groups are {names} whereas the saved ones are {layout.groups}, "
                "in this order; make the optimizer with those to load it."
            )
        if layout.inner_optimizer not in (inner, None):
            return (
                f"its inner optimizer is {inner} whereas the saved one is "
                f"{layout.inner_optimizer}."
            )
        slots = self._slots()
        if layout.slots not in (slots, None):
            return (
                f"its inner optimizer keeps {', '.join(sorted({*slots}))} whereas the "
                f"saved one kept {', '.join(sorted({*layout.slots}))}; give it the "
                "options of that one."
            )
        for i, variable in enumerate(variables):
            shape = tuple(np.shape(store[str(i)]))
            if shape != tuple(variable.shape):
                return (
                    f"its variable {_path(variable)} has shape {tuple(variable.shape)} "
                    f"whereas the saved one has {shape}."
                )
        return None

    def get_config(self) -> dict[str, Any]:
        """The configuration, from which `from_config` makes the same optimizer.

        Groups by a function are those found for the variables once it is built.
        """
        serialize = keras.saving.serialize_keras_object
        groups = {name: list(patterns) for name, patterns in self.groups.items()}
        multipliers = self._given
        if self._schedule is not None:
            multipliers = None
        elif self.groups:
            multipliers = dict(self.multipliers)
        function = None if self.groups else self._group_function
        return {
            "inner_optimizer": serialize(self.inner_optimizer),
            "groups": groups or None,
            "indices": self._indices if self.built else self._saved_indices,
            "group_function": function and serialize(function),
            "multipliers": multipliers,
            "multiplier_schedule": self._schedule and serialize(self._schedule),
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> LayerwiseOptimizer:
        """Makes an optimizer from its configuration."""

        def read(key: str) -> Any:
            return keras.saving.deserialize_keras_object(config[key], custom_objects)

        optimizer = cls(
            read("inner_optimizer"),
            config["groups"] or read("group_function"),
            config["multipliers"] or read("multiplier_schedule"),
            config["name"],
        )
        optimizer._saved_indices = config["indices"]
        return optimizer

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Prints group, variables, parameters, learning rate and weight decay.

        The decay is the fraction by which a weight shrinks in one step, rate times the
        inner optimizer's `weight_decay` (the larger of the two of `Muon`), with the
        number of variables that it reaches.

        Raises:
            ValueError: If the optimizer is not built and was not given the model.
        """
        if self._model_variables is None:
            self._require_built("summary")
        learning_rate = float(ops.convert_to_tensor(self.learning_rate))
        rows = [["group", "variables", "parameters", "rate", "decay"]]
        for (group, multiplier), members in zip(
            self.multipliers.items(), self._members(), strict=True
        ):
            rate = learning_rate * multiplier
            decays = [decay for v in members if (decay := self._decay_of(v))]
            decayed = "-"
            if decays:
                decayed = f"{rate * max(decays):.3e} ({len(decays)}/{len(members)})"
            parameters = sum(math.prod(v.shape) for v in members)
            rows.append(
                [group, f"{len(members)}", f"{parameters:,}", f"{rate:.3e}", decayed]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
            print_fn("  ".join(cells))

    def to_multi_optimizer(self) -> keras.optimizers.MultiOptimizer:
        """Makes the `keras.optimizers.MultiOptimizer` that does the same, from step 0.

        Raises:
            ValueError: If the optimizer is not built, or `MultiOptimizer` would do
                something else: it clips the global norm of each group by itself, and
                its rates cannot follow a function of the step per group.
        """
        self._require_built("to_multi_optimizer")
        inner = self.inner_optimizer
        if inner.global_clipnorm is not None:
            raise ValueError(
                "`MultiOptimizer` clips the global norm of each group by itself; use "
                "`clipnorm` or stay with `LayerwiseOptimizer`."
            )
        if self._schedule is not None:
            raise ValueError(
                "`MultiOptimizer` has no multipliers that follow a function of the "
                "step; stay with `LayerwiseOptimizer` or give it numbers."
            )
        optimizers, by_path = [], {}
        for multiplier, members in zip(
            self.multipliers.values(), self._members(), strict=True
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of functions, which are not saved
                config = inner.get_config()
            config["learning_rate"] = self._scaled_rate(
                config["learning_rate"], multiplier
            )
            optimizer = type(inner).from_config(config)
            optimizer.exclude_from_weight_decay(
                var_list=[v for v in members if not self._decays(v)]
            )
            optimizers.append(optimizer)
            by_path.update({_path(v): optimizer for v in members})
        if len(by_path) < len(self._group_of):
            raise ValueError(
                "`MultiOptimizer` tells variables apart by their paths, and some share "
                "one; give the layers other names."
            )
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(optimizers[0], by_path),
            loss_scale_factor=inner.loss_scale_factor,
        )

    def _scaled_rate(self, rate: Any, multiplier: float) -> Any:
        """The learning-rate entry of the inner configuration, times a multiplier."""
        if not isinstance(rate, dict):
            return rate * multiplier
        schedule = self._given_rate()
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            return _ScaledSchedule(schedule, multiplier)
        return lambda: schedule() * multiplier

    def _members(self) -> list[list[Any]]:
        if self.built:
            variables = self._built_variables()
            indices = [self._group_of[self._key(v)] for v in variables]
        else:
            assert self._model_variables is not None
            variables = self._model_variables()
            indices = self._partition([_path(v) for v in variables])
        members: list[list[Any]] = [[] for _ in self.groups]
        for index, variable in zip(indices, variables, strict=True):
            members[index].append(variable)
        return members

    def _require_built(self, method: str) -> None:
        if not self.built:
            raise ValueError(
                f"`{method}` needs the model's variables; call "
                "`optimizer.build(model.trainable_variables)` first."
            )


@keras.saving.register_keras_serializable(package="lrdist_keras")
class GradualUnfreezing:
    """Multipliers that unfreeze group after group, the last first.

    Of n groups, group i (from 0) has its multiplier from step `(n - 1 - i) * steps` on
    and 0 before (arXiv 1801.06146, section 3.3).

    Args:
        steps: Number of steps between one group and the next, at least 1.
        multipliers: The multipliers in group order once all groups learn.

    Raises:
        ValueError: If `steps` is no integer or below 1, there is no multiplier, or one
            is negative or not finite.

    Example:
    >>> optimizer = LayerwiseOptimizer(
    ...     keras.optimizers.Adam(1e-3), groups, GradualUnfreezing(100, [0.1, 0.3, 1.0])
    ... )
    """

    def __init__(self, steps: int, multipliers: Sequence[float]) -> None:
        if not isinstance(steps, int) or steps < 1 or len(multipliers) == 0:
            raise ValueError(
                "`steps` must be an integer of at least 1 and `multipliers` hold one "
                f"number for each group. Received: steps={steps!r}, "
                f"multipliers={multipliers}"
            )
        self.steps = steps
        names = [str(i) for i in range(len(multipliers))]
        self.multipliers = _multiplier_values(_numbers(multipliers), names, None)

    def __call__(self, step: Any) -> Any:
        """Returns the multipliers at a step, float32, shape [groups]."""
        starts = np.arange(len(self.multipliers))[::-1] * self.steps
        learns = ops.greater_equal(ops.cast(step, "int32"), starts.astype("int32"))
        return ops.where(learns, np.array(self.multipliers, "float32"), 0.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"steps": self.steps, "multipliers": self.multipliers}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GradualUnfreezing:
        """Makes the same function again."""
        return cls(**config)


@keras.saving.register_keras_serializable(package="lrdist_keras")
class _ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule: Any, factor: float) -> None:
        self.schedule = schedule
        self.factor = factor

    def __call__(self, step: Any) -> Any:
        return ops.multiply(self.schedule(step), self.factor)

    def get_config(self) -> dict[str, Any]:
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "factor": self.factor}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _ScaledSchedule:
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["factor"])


class _GroupState(keras.Layer):
    """The place of a `LayerwiseOptimizer` in a file.

    A layer, because Keras saves and loads the layers that it finds among attributes.
    """

    def __init__(
        self, save: Callable[[Any], None], load: Callable[[Any], None]
    ) -> None:
        super().__init__(name="group_state")
        self._save = save
        self._load = load

    def save_own_variables(self, store: Any) -> None:
        self._save(store)

    def load_own_variables(self, store: Any) -> None:
        self._load(store)


@dataclass(frozen=True)
class _Layout:
    """What a checkpoint says of itself.

    Args:
        groups: Names in order; none if they were not known yet.
        inner_optimizer: Registered name of its class; None in files of version 0.1.
        slots: What each of its variables is, such as `momentum`; None likewise.
        multipliers: One per group.
    """

    groups: list[str]
    inner_optimizer: str | None = None
    slots: list[str] | None = None
    multipliers: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, store: Any) -> _Layout | None:
        """Reads it from a place in a file; None if this holds something else."""
        keys = set(store.keys())

        def text(key: str) -> Any:
            return json.loads(np.asarray(store[key]).astype(np.uint8).tobytes())

        if "layout" in keys:
            content = text("layout")
        elif keys == {"multipliers", "group_names"}:
            content = {"groups": text("group_names")}
        else:
            return None
        return cls(**content, multipliers=np.asarray(store["multipliers"]).tolist())


def _class_name(inner: keras.optimizers.Optimizer) -> str:
    return str(keras.saving.get_registered_name(type(inner)))


def _slot(name: str, paths: set[str], lengths: list[int]) -> str:
    for length in lengths:
        if name[length : length + 1] == "_" and name[:length] in paths:
            return name[length + 1 :]
    return name


def _trainable_variables_of(model: keras.Model) -> Callable[[], list[Any]]:
    return lambda: model.trainable_variables


def _layers_of(model: Any, *scheme: Any) -> tuple[Scheme, dict[str, tuple[str, ...]]]:
    """The scheme and groups of a model that a distribution over layers is made for."""
    try:
        return transformer_groups(model, *scheme)
    except (ValueError, AttributeError) as error:
        reason = str(error).split("; give")[0]
        raise ValueError(
            "The distribution is made for the layers of a KerasHub transformer. "
            f"{reason} For a model of another kind, {_BY_PATTERN}"
        ) from error


def _preset(name: str) -> Distribution:
    if name not in PRESETS:
        raise ValueError(
            f"A distribution by name is one of {', '.join(PRESETS)}; read a file with "
            f"`Distribution.load`. Received: {name!r}"
        )
    return PRESETS[name]()


def _path(variable: Any) -> str:
    return getattr(variable, "path", variable.name)


def _exact_patterns(
    names: Sequence[Any], paths: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    patterns: dict[str, tuple[str, ...]] = {}
    for name, path in zip(names, paths, strict=True):
        if not isinstance(name, str) or not name:
            raise ValueError(
                "`groups` as a function must return the name of a group for each "
                f"variable. Received: {name!r} for '{path}'"
            )
        # With the leading slash it holds this variable and none that ends alike.
        patterns[name] = (*patterns.get(name, ()), f"/{escape(path)}")
    return patterns


def _check_inner(inner: Any) -> None:
    if not isinstance(inner, keras.optimizers.Optimizer):
        raise ValueError(
            "`inner_optimizer` must be a Keras optimizer, such as "
            f"`keras.optimizers.AdamW(2e-5)`. Received: inner_optimizer={inner!r}"
        )
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "`LossScaleOptimizer` goes outermost: wrap the `LayerwiseOptimizer` in it, "
            "and give the `LayerwiseOptimizer` the plain optimizer."
        )
    if isinstance(inner, keras.optimizers.MultiOptimizer | LayerwiseOptimizer):
        raise ValueError(
            "`inner_optimizer` must be a plain optimizer; give it one group of its own "
            f"for each rate. Received: {type(inner).__name__}"
        )
    if inner.built:
        raise ValueError(
            "`inner_optimizer` must not be built yet; make a new one, for example with "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )
    if "update_step" in vars(inner):
        raise ValueError(
            "`inner_optimizer` is already inside another `LayerwiseOptimizer`; make a "
            "new one for each, for example with "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )
    owner = next(c for c in type(inner).__mro__ if "_backend_update_step" in vars(c))
    if owner.__module__.split(".")[0] != "keras":
        raise ValueError(
            "The rate of each group goes into the `update_step` of an optimizer, which "
            "one that replaces `_backend_update_step` may skip; override `update_step` "
            f"instead. Received: {type(inner).__name__}"
        )


def _numbers(multipliers: Any) -> dict[str, float] | list[float] | None:
    """Multipliers as plain numbers, whatever they were given as."""
    try:
        if multipliers is None:
            return None
        if isinstance(multipliers, Mapping):
            return {name: _number(m) for name, m in multipliers.items()}
        if not isinstance(multipliers, str):
            return [_number(m) for m in multipliers]
    except (TypeError, ValueError):
        pass
    raise ValueError(
        "`multipliers` must be a mapping from group name to number, a sequence of "
        "numbers in group order, or a function from step to vector. Received: "
        f"{multipliers!r}"
    )


def _number(value: Any) -> float:
    if isinstance(value, str) or np.ndim(value):
        raise TypeError
    return float(value)


def _multiplier_values(
    multipliers: dict[str, float] | list[float] | None, names: list[str], inner: Any
) -> list[float]:
    if multipliers is None:
        return [1.0] * len(names)
    if isinstance(multipliers, Mapping):
        if unknown := [name for name in multipliers if name not in names]:
            raise ValueError(
                f"`multipliers` must name groups: {', '.join(names)}. "
                f"Unknown: {unknown}"
            )
        multipliers = [multipliers.get(name, 1.0) for name in names]
    values = multipliers
    if len(values) != len(names):
        raise ValueError(
            f"`multipliers` must have one value for each of the {len(names)} groups "
            f"({', '.join(names)}). Received: {len(values)} values"
        )
    for name, value in zip(names, values, strict=True):
        if not 0 <= value <= _LARGEST:
            raise ValueError(
                f"The multiplier of group '{name}' must be finite and at least 0; use "
                f"0 to freeze the group. Received: {value}"
            )
        if value == 0 and isinstance(inner, keras.optimizers.Ftrl):
            raise ValueError(
                f"The multiplier of group '{name}' must be positive, because `Ftrl` "
                "divides by the learning rate; freeze the layers with "
                "`trainable = False`."
            )
    return values
