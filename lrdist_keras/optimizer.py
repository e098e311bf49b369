"""`LayerwiseOptimizer`: any Keras optimizer with a learning rate for each group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from lrdist_keras._keras_private import (
    ScaledUpdates,
    batches_so_far,
    built_variables,
    check_inner,
    variable_key,
)
from lrdist_keras.checkpoint import (
    GroupState,
    holds_version_0_1,
    leave_loading_to_us,
    load_state,
    load_version_0_1,
    save_state,
    skip,
)
from lrdist_keras.distribution import Distribution
from lrdist_keras.fitting import (
    check_recipe,
    exact_patterns,
    fitted,
    partition_trainable,
)
from lrdist_keras.groups import Groups, normalize, transformer_groups
from lrdist_keras.multi_optimizer import multi_optimizer
from lrdist_keras.multipliers import (
    GradualUnfreezing,
    Multipliers,
    Schedule,
    as_numbers,
    first_multipliers,
    multiplier_values,
)
from lrdist_keras.summary import print_summary
from lrdist_keras.wrapper import OptimizerWrapper

__all__ = ["GradualUnfreezing", "LayerwiseOptimizer"]


@keras.saving.register_keras_serializable(package="lrdist_keras")
class LayerwiseOptimizer(OptimizerWrapper):
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

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        groups: Groups | keras.Model | Callable[[Any], str],
        multipliers: Multipliers | Schedule | None = None,
        name: str | None = None,
    ) -> None:
        wrappers = (keras.optimizers.MultiOptimizer, LayerwiseOptimizer)
        check_inner(inner_optimizer, wrappers)
        super().__init__(inner_optimizer, name)
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
            self._given = as_numbers(multipliers)
        if self.groups:
            self._initial_multipliers = self._initial_values(list(self.groups))
        self._updates = ScaledUpdates(
            inner_optimizer,
            group_of=lambda variable: self._group_of[variable_key(self, variable)],
            multiplier=lambda group: self._multipliers[group],
        )
        self._older_place: Any = None
        self.group_state = GroupState(
            lambda store: save_state(self, store), self._load_state
        )
        # `group_state` holds them, lest a `LossScaleOptimizer` around an optimizer of
        # another class, which calls it `inner_optimizer` too, takes them for its own.
        self.save_inner = inner_optimizer.save_own_variables
        self.load_inner = inner_optimizer.load_own_variables
        inner_optimizer.save_own_variables = lambda store: None
        inner_optimizer.load_own_variables = self._load_older_state

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
        check_recipe(optimizer, schedule, options)
        distribution, groups = fitted(distribution, model, options.get("groups"))
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
            self._indices = partition_trainable(
                [_path(v) for v in variables], self.groups, self._saved_indices
            )
        else:
            names = [self._group_function(v) for v in variables]
            groups = exact_patterns(names, [_path(v) for v in variables])
            self._initial_multipliers = self._initial_values(list(groups))
            self.groups = groups
            self._indices = [list(groups).index(name) for name in names]
        self._group_of = {
            variable_key(self, v): i
            for v, i in zip(variables, self._indices, strict=True)
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
        leave_loading_to_us(self._multipliers)
        self._model_variables = None
        self.inner_optimizer.build(variables)
        self._build_alone(variables)
        self._updates.share_averages(self)

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
        names, given = list(self.groups), as_numbers(multipliers)
        if names:
            if isinstance(given, Mapping) and (missing := set(names) - {*given}):
                raise ValueError(
                    "Assigned multipliers must name every group; start from "
                    f"`{{**optimizer.multipliers, ...}}`. Missing: {sorted(missing)}"
                )
            values = multiplier_values(given, names, self.inner_optimizer)
            self._initial_multipliers = values
            if self.built:
                self._multipliers.assign(values)
        self._given = given

    def _initial_values(self, names: list[str]) -> list[float]:
        given = self._given
        if self._schedule is not None:
            given = first_multipliers(self._schedule, names)
        return multiplier_values(given, names, self.inner_optimizer)

    @property
    def variables(self) -> list[keras.Variable]:
        """The vector of multipliers, then the variables of the inner optimizer."""
        # Without the step counter of the base class, which stands still.
        own = [self._multipliers] if self.built else []
        return [*own, *self.inner_optimizer.variables]

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
            vector = self._schedule(
                ops.convert_to_tensor(batches_so_far(self.inner_optimizer))
            )
            self._multipliers.assign(ops.cast(vector, "float32"))
        self.inner_optimizer.apply(grads, trainable_variables)

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
        expected = len(built_variables(self))
        if self.built and len(trainable_variables) != expected:
            raise ValueError(
                f"The optimizer was built for {expected} variables and got "
                f"{len(trainable_variables)}; when layers are added, frozen or "
                "unfrozen, compile again with a new optimizer."
            )
        given = optimizer_variables, grads, trainable_variables
        weights, state = super().stateless_apply(*given)
        return weights, state

    def _check_known(self, variables: Sequence[Any], complete: bool = False) -> None:
        keys = {variable_key(self, v) for v in variables}
        changed = [
            _path(v) for v in variables if variable_key(self, v) not in self._group_of
        ]
        if complete:
            ours = built_variables(self)
            changed += [_path(v) for v in ours if variable_key(self, v) not in keys]
        if changed:
            raise ValueError(
                "The variables are not those that the optimizer was built for; when "
                "layers are added, frozen or unfrozen, compile again with a new "
                f"optimizer. Changed: {', '.join(changed)}"
            )

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns all variables, those of the inner optimizer included.

        Raises:
            ValueError: If the optimizer is not built or the number of weights differs.
        """
        fits = self.built and len(weights) == len(self.variables)
        if fits and np.shape(weights[0]) != (len(self.groups),):
            raise ValueError(
                f"The first array of `set_weights` is one multiplier for each of the "
                f"{len(self.groups)} groups. Received: shape {np.shape(weights[0])}"
            )
        super().set_weights(weights)

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing here: `group_state` holds all state, in a place of its own.

        Whatever stood here, another optimizer with as many variables would load it as
        its own: Keras compares no more than their numbers. Keras's loader skips a place
        without entries, with a warning.
        """

    def load_own_variables(self, store: Any) -> None:
        """Begins to load a checkpoint, whose other parts Keras brings next."""
        # Keras goes on with `group_state`, then with `inner_optimizer`, where version
        # 0.1 saved the rest.
        is_older = holds_version_0_1(store)
        self._older_place = {k: store[k] for k in store.keys()} if is_older else None

    def _load_state(self, store: Any) -> None:
        if store.keys():
            load_state(self, store)
        elif self._older_place is None:
            skip(self, "it was saved with another optimizer, or without one.")

    def _load_older_state(self, store: Any) -> None:
        if self._older_place is not None:
            groups, self._older_place = self._older_place, None
            load_version_0_1(self, groups, store)

    def take_multipliers(self, multipliers: list[float]) -> None:
        """Takes the multipliers of a checkpoint of the same groups."""
        if self.groups:
            self._initial_multipliers = multipliers
        if self.built:
            self._multipliers.assign(multipliers)

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
        if not (self._model_variables and self._model_variables()):
            self._require_built("summary")
        print_summary(
            float(ops.convert_to_tensor(self.learning_rate)),
            zip(self.multipliers.items(), self._members(), strict=True),
            self._updates.decay_of,
            print_fn,
        )

    def to_multi_optimizer(self) -> keras.optimizers.MultiOptimizer:
        """Makes the `keras.optimizers.MultiOptimizer` that does the same, from step 0.

        Raises:
            ValueError: If the optimizer is not built, or `MultiOptimizer` would do
                something else: it clips the global norm of each group by itself, and
                its rates cannot follow a function of the step per group.
        """
        self._require_built("to_multi_optimizer")
        if self._schedule is not None:
            raise ValueError(
                "`MultiOptimizer` has no multipliers that follow a function of the "
                "step; stay with `LayerwiseOptimizer` or give it numbers."
            )
        groups = zip(self.multipliers.values(), self._members(), strict=True)
        return multi_optimizer(
            self.inner_optimizer, self._updates.rate, [*groups], self._updates.decays
        )

    def _members(self) -> list[list[Any]]:
        if self.built:
            variables = built_variables(self)
            indices = [self._group_of[variable_key(self, v)] for v in variables]
        else:
            assert self._model_variables is not None
            variables = self._model_variables()
            paths = [_path(v) for v in variables]
            indices = partition_trainable(paths, self.groups, self._saved_indices)
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


def _trainable_variables_of(model: keras.Model) -> Callable[[], list[Any]]:
    return lambda: model.trainable_variables


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name))
