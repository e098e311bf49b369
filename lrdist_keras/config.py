"""What a configuration file may say."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from lrdist_keras.errors import InputError
from lrdist_keras.settings import (
    FAULTS,
    LARGEST_RATE,
    DataSettings,
    Fault,
    ModelSettings,
    Name,
    Rate,
    Section,
    SequenceSettings,
    TaskSettings,
    TrainingSettings,
    UserPath,
    check_faults,
    nearest,
    unique,
    without_unset,
)
from lrdist_keras.training.strategies.base import Strategy
from lrdist_keras.training.strategies.every import STRATEGIES, AnyStrategy

_TAG = "strategy"
_MOST_PROBLEMS = 20  # told of a file at once
# Keys of arms that came later stand in files of results only where they are set.
_LATER = ("rates_from", "head_rate", "fast_head", "frozen")
# Keys of strategies that stand in every arm in files of results, null with the others.
# Keys that came later stand only where they are set: older files stay what they are.
_IN_EVERY_ARM = (
    "strength head_strength fisher_decay raw_text fisher_examples midpoint steepness "
    "probe_rate examples_per_class temperature alpha period rank"
).split()


def _homes(key: str) -> list[str]:
    """Returns the names of the strategies that take a key."""
    return [n for n, s in STRATEGIES.items() if key in s.model_fields and key != _TAG]


_KEYS = _IN_EVERY_ARM + sorted(
    {key for s in STRATEGIES.values() for key in s.model_fields}
    - {*_IN_EVERY_ARM, _TAG}
)


def _of_one_strategy(given: Any) -> Any:
    """Refuses an unknown name, and keys that go with other strategies."""
    if not isinstance(given, dict):
        return given
    name = given[_TAG]
    if not isinstance(name, str) or name not in STRATEGIES:
        *most, last = [f"'{known}'" for known in STRATEGIES]
        expected = f"{', '.join(most)} or {last}"
        raise PydanticKnownError("literal_error", {"expected": expected})
    for key in sorted(given.keys() - STRATEGIES[name].model_fields.keys()):
        homes = _homes(key)
        _check_value(homes, key, given[key])
        raise InputError(
            f"`{key}` goes with the strategies {', '.join(homes)}, not with '{name}'"
        )
    return given


def _check_value(homes: Sequence[str], key: str, value: Any) -> None:
    """Refuses what none of the strategies that have the key would take."""
    refusals: list[tuple[str, list[Any]]] = []
    for home in homes:
        try:
            STRATEGIES[home].model_validate({key: value})
            return
        except ValidationError as error:
            wrong = [e for e in error.errors() if e["loc"][:1] == (key,)]
            if not wrong:  # but something else
                return
            refusals.append((error.title, wrong))
    title, first = refusals[0]
    raise ValidationError.from_exception_data(title, first)


class ArmSettings(Section):
    """One way of training that is compared with the others.

    In a file the keys of the strategy stand beside the others of the arm; each
    strategy's own are told with it, in `lrdist_keras.training.strategies`.

    Args:
        name: How the arm is called in reports.
        rate: One learning rate for all groups.
        decay: With `rate`, which is then the head's: layer-wise decay, see
            `lrdist_keras.distribution.llrd`.
        fast_head: With `rate`, which is then that of embeddings and encoder: how many
            times as fast the head learns, see `lrdist_keras.distribution.fast_head`.
        distribution: A distribution file, `kenneweg2022` or `kenneweg2022_rounded`; or
            a list of them, one for each task.
        resample: Whether a distribution of another scheme is fitted to the model's.
        rescale: Geometric mean over groups that the distribution is brought to; with
            `rates_from` that over the encoder's groups.
        rates_from: `fisher` or, as its control, `fisher_inverse`: where the rates of
            every task after the first come from, without a search, see
            `lrdist_keras.fisher.fisher_rates`. `rate` is that of the first task.
        head_rate: With `rates_from`, the learning rate of the head of a later task.
        strategy: What is done against forgetting beside the rates: `plain`, nothing;
            `frozen`, a linear probe; `seq_star`, the encoder frozen after the first
            task; `lp_ft`, a probe, then fine-tuning; `ewc` with the Fisher of each task
            so far, `ewc_online` with their running sum, `ewc_pretraining` with that of
            masked language modelling; `l2_sp`; `recadam`; `replay`; `der++`, replay
            that holds the old logits too; `lwf`, learning without forgetting; `wise_ft`
            and `sfa`, averages with the previous model after and during training;
            `head_refit`, old heads fitted anew at the end; `lora`; `joint`, all tasks
            at once; `single`, each task on its own.
    """

    name: Name
    rate: Rate | None = None
    decay: float | None = Field(default=None, gt=0, le=1)
    fast_head: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    distribution: UserPath | Annotated[list[UserPath], Field(min_length=1)] | None = (
        None
    )
    resample: bool = False
    rescale: Rate | None = None
    rates_from: Literal["fisher", "fisher_inverse"] | None = None
    head_rate: Rate | None = None
    strategy: Annotated[AnyStrategy, BeforeValidator(_of_one_strategy)]

    @property
    def is_flat(self) -> bool:
        """Whether all groups have one learning rate, `rate`."""
        others = (self.distribution, self.decay, self.fast_head, self.rates_from)
        return all(other is None for other in others)

    @model_validator(mode="before")
    @classmethod
    def _gather_the_strategy(cls, given: Any) -> Any:
        if not isinstance(given, dict) or isinstance(given.get(_TAG), Strategy):
            return given
        rest = {key: value for key, value in given.items() if key not in _KEYS}
        # A file of results has null for what goes with other strategies.
        own = {k: v for k, v in given.items() if k in _KEYS and v is not None}
        return {**rest, _TAG: {_TAG: given.get(_TAG, "plain"), **own}}

    @model_serializer(mode="wrap")
    def _flat(self, handler: Any, info: Any) -> dict[str, Any]:
        content = handler(self)
        own = {
            key: value
            for key, value in content.pop(_TAG).items()
            if value is not None or key in _IN_EVERY_ARM
        }
        content, own = (without_unset(part, _LATER) for part in (content, own))
        nothing = {} if info.exclude_none else dict.fromkeys(_IN_EVERY_ARM)
        return {**content, _TAG: self.strategy.name, **nothing, **own}
        return {**content, _TAG: self.strategy.name, **nothing, **own}

    @model_validator(mode="after")
    def _one_source_of_rates(self) -> Self:
        if (self.rate is None) == (self.distribution is None):
            raise InputError("an arm has either `rate` or `distribution`")
        if self.decay is not None and self.rate is None:
            raise InputError("`decay` goes with `rate`")
        if self.fast_head is not None:
            self._check_fast_head(self.fast_head)
        if self.distribution is None and (self.resample or self.rescale):
            if self.rates_from is None:
                raise InputError(
                    "`resample` and `rescale` go with `distribution`, and `rescale` "
                    "with `rates_from` too"
                )
            if self.resample:
                raise InputError("`resample` goes with `distribution`")
        return self

    def _check_fast_head(self, factor: float) -> None:
        if self.rate is None or self.decay is not None:
            raise InputError("`fast_head` goes with `rate`, and not with `decay`")
        if (head := self.rate * factor) > LARGEST_RATE:
            raise InputError(
                "`rate` times `fast_head`, the head's learning rate, must be at most "
                f"{LARGEST_RATE:g}; lower one of them. Received: {head:g}"
            )

    @model_validator(mode="after")
    def _rates_from_has_what_it_needs(self) -> Self:
        if self.rates_from is None:
            if self.head_rate is not None:
                raise InputError("`head_rate` goes with `rates_from`")
            return self
        if self.rate is None or self.decay or self.fast_head:
            raise InputError(
                "`rates_from` needs `rate`, that of all groups in the first task, with "
                "neither `distribution` nor `decay` nor `fast_head`"
            )
        needed = {"rescale": self.rescale, "head_rate": self.head_rate}
        if missing := [f"`{key}`" for key, value in needed.items() if value is None]:
            raise InputError(f"`rates_from` needs {' and '.join(missing)} too")
        if not self.strategy.trains_a_sequence:
            raise InputError(
                "`rates_from` follows from the tasks before, and a first task is "
                f"required: the strategy '{self.strategy.name}' trains none after "
                "another; take another strategy, or leave it out"
            )
        return self


class FirstSettings(Section):
    """How all arms train the first task of a sequence: plainly, and once a seed.

    Args:
        rate: One learning rate for all groups.
        distribution: A distribution, as of an arm.
        resample: Whether a distribution of another scheme is fitted to the model's.
        rescale: Geometric mean over groups that the distribution is brought to.
    """

    rate: Rate | None = None
    distribution: UserPath | None = None
    resample: bool = False
    rescale: Rate | None = None

    @model_validator(mode="after")
    def _one_source_of_rates(self) -> Self:
        if (self.rate is None) == (self.distribution is None):
            raise InputError("[first] has either `rate` or `distribution`")
        if self.distribution is None and (self.resample or self.rescale):
            raise InputError("`resample` and `rescale` go with `distribution`")
        return self


_Strength = Annotated[float, Field(gt=0, le=1e15, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class DecayPoint(Section):
    """Layer-wise decay as a point to try first.

    Args:
        rate: Learning rate of the head.
        decay: Factor from one layer to the one below.
    """

    rate: Rate
    decay: float = Field(gt=0, le=1)


class SearchSettings(Section):
    """How a distribution is searched.

    Args:
        sequence: Name of the sequence, `first -> second`, if there are several.
        sampler: `bayesian_hyperband`; or for comparison `hyperband` (random proposals),
            `gaussian_process`, `random`, `cmaes` or `tpe` (all runs of full length).
        model: What a proposal is made of, see
            `lrdist_keras.search.BayesianHyperbandOracle`.
        space: `groups`, a rate for each; or `flat`, one rate for all, which gives the
            baseline that was searched with the same budget on the same slice.
        budget: What the whole search may cost, in runs of full length.
        units: A full run is this many of the smallest rung's.
        factor: Reduction factor from one rung to the next.
        low: Smallest learning rate.
        high: Largest learning rate.
        start_points: What to try first: a flat rate, `{rate, decay}`, a distribution
            file or `kenneweg2022`; of another depth it is resampled, and rates are
            brought into the range. A flat space takes the flat rates among them.
        random_share: Share of proposals that are random.
        repeats: Full runs at the end that repeat the best with other seeds.
        arm: Name of the arm whose strategy all trials train with, plain training if
            not given. The rates are those of the trials, so that it has no
            `rates_from`.
        strength: Smallest and largest `strength` of that strategy, which is then
            searched with the rates, log-uniformly; what the arm has is tried first.
        slice_examples: Training examples at most that rewards are taken on; nothing is
            trained on them, and validation is for reports.
        retries: How often a failed trial is tried again.
        seed: What everything random follows from.
    """

    sequence: str | None = None
    sampler: Literal[
        "bayesian_hyperband", "hyperband", "gaussian_process", "random", "cmaes", "tpe"
    ] = "bayesian_hyperband"
    model: Literal["joint", "highest"] = "joint"
    space: Literal["groups", "flat"] = "groups"
    budget: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    units: int = Field(default=9, ge=1)
    factor: int = Field(default=3, ge=2)
    low: Rate = 1e-7
    high: Rate = 1e-3
    start_points: list[Rate | DecayPoint | UserPath] = [
        1e-5,
        2e-5,
        5e-5,
        DecayPoint(rate=5e-5, decay=0.9),
        "kenneweg2022",
    ]
    random_share: float = Field(default=0.1, ge=0, le=1)
    repeats: int = Field(default=4, ge=0)
    arm: Name | None = None
    strength: tuple[_Strength, _Strength] | None = None
    slice_examples: int = Field(default=2000, ge=1)
    retries: int = Field(default=1, ge=0)
    seed: Seed = 0

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if self.low >= self.high:
            raise InputError("`low` must be below `high`")
        if self.strength is not None and self.strength[0] >= self.strength[1]:
            raise InputError(
                "the first of the two numbers of `strength` must be below the second. "
                f"Received: {list(self.strength)}"
            )
        return self

    @model_validator(mode="after")
    def _strength_is_of_an_arm(self) -> Self:
        if self.strength is not None and self.arm is None:
            raise InputError("`strength` goes with `arm`, whose strategy it is of")
        return self

    @model_validator(mode="after")
    def _budget_holds_the_repeats(self) -> Self:
        if self.budget <= self.repeats:
            raise InputError(
                "`budget` must be above `repeats`, which are full runs that it pays "
                f"for. Received: budget = {self.budget:g}, repeats = {self.repeats}"
            )
        return self


class ReportSettings(Section):
    """What a comparison reports.

    Args:
        reference: Name of the arm that the others are compared with, the first one if
            not given. To name one asks for statistics, which need at least two seeds.
    """

    reference: Name | None = None


class MeasureSettings(Section):
    """What a comparison measures of its runs beside the accuracies, at some cost.

    Args:
        forward_transfer: Whether each task is evaluated before it is trained.
        probe: Whether heads of earlier tasks are refitted on frozen features.
        similarity: Whether the features of each layer are compared (linear CKA).
        drift: Whether the distance that the weights of each group went is taken.
        examples: Validation examples of a task at most for forward transfer and
            similarity, a stratified subset that is the same for all runs.
        probe_examples: Training examples of a task at most, of those that the run
            trains on, that a head is refitted on.
    """

    forward_transfer: bool = True
    probe: bool = True
    similarity: bool = True
    drift: bool = True
    examples: int = Field(default=128, ge=2)
    probe_examples: int = Field(default=256, ge=4)


class Configuration(Section):
    """What a file says: tasks, sequences of them, arms to compare, a search.

    Args:
        name: How it is called; results go to `runs/NAME`.
        seeds: Seeds of a comparison.
        compat: The faults of the authors' code that are to be reproduced, or `paper`
            for all; they are kept in one order.
            `softmax_before_loss`: the softmax is applied twice before the
            cross-entropy.
            `bytes_literal_texts`: texts are wrapped as `b'…'`.
            `no_shuffling`: every epoch has the examples in the order of the data.
            `carry_moments`: Adam's moments go on from task to task, see
            `lrdist_keras.training.carried_moments`; not with `sgd`.
            `report_on_tuning_split`: a search is rewarded on the validation examples,
            which reports are of too, and trains on all training examples.
            `random_length_halving`: the length shift is a random halving.
            `cluster_on_validation`: the clusters are fitted on validation examples.
            `early_stopping_first_task`: what stops trials of a search early has seen
            the first task only: below the full budget the reward is a1 / 2.
        model: The backbone.
        data: Where data lies.
        training: How each task is trained.
        tasks: The tasks that sequences name.
        sequences: What is trained one after the other.
        arms: What is compared.
        first: How all arms train the first task, if they share its training.
        search: How a distribution is searched.
        report: What a comparison reports.
    """

    name: Name
    seeds: list[Seed] = Field(default=[0], min_length=1)
    compat: list[Fault] = []
    model: ModelSettings
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    tasks: list[TaskSettings] = Field(min_length=1)
    sequences: list[SequenceSettings] = Field(min_length=1)
    arms: list[ArmSettings] = []
    first: FirstSettings | None = None
    search: SearchSettings = SearchSettings()
    measures: MeasureSettings = MeasureSettings()
    report: ReportSettings = ReportSettings()

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, handler: Any) -> dict[str, Any]:
        return without_unset(handler(self), ("first",))

    @field_validator("compat", mode="before")
    @classmethod
    def _all_faults_by_one_word(cls, compat: Any) -> Any:
        if compat == "paper":
            return list(FAULTS)
        if isinstance(compat, str):
            raise InputError(f"must be 'paper', or a list of some of {list(FAULTS)}")
        return compat

    @field_validator("compat")
    @classmethod
    def _faults_differ(cls, compat: list[Fault]) -> list[Fault]:
        return sorted(unique(compat, "fault"), key=FAULTS.index)

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        return unique(seeds, "seed")

    @field_validator("tasks", "arms", "sequences")
    @classmethod
    def _names_differ(cls, entries: list[Any]) -> list[Any]:
        unique([entry.name for entry in entries], "name")
        return entries

    @model_validator(mode="after")
    def _faults_are_of_the_optimizer(self) -> Self:
        check_faults(self.compat, self.training)
        return self

    @model_validator(mode="after")
    def _sequences_know_their_tasks(self) -> Self:
        names = [task.name for task in self.tasks]
        for sequence in self.sequences:
            for name in sequence.tasks:
                if name not in names:
                    raise InputError(
                        f"the sequence '{sequence.name}' has the task '{name}', which "
                        f"[[tasks]] does not define{nearest(name, names)}"
                    )
            unique(sequence.tasks, "task of a sequence")
        known = [sequence.name for sequence in self.sequences]
        if (wanted := self.search.sequence) is not None and wanted not in known:
            raise InputError(
                f"search.sequence is '{wanted}', which is none of the sequences"
                f"{nearest(wanted, known)}"
            )
        return self

    @model_validator(mode="after")
    def _first_task_can_be_begun(self) -> Self:
        trained = {task.name for task in self.tasks if task.trained is not None}
        for sequence in self.sequences:
            begun = [name for name in sequence.tasks if name in trained]
            if begun and (begun != sequence.tasks[:1] or sequence.parts < 2):
                raise InputError(
                    f"the sequence '{sequence.name}': only the first of several tasks "
                    f"may have `trained`. Received: {begun}"
                )
            if begun and (sequence.shift in ("length", "cluster") or self.first):
                raise InputError(
                    f"the sequence '{sequence.name}': `trained` goes neither with a "
                    "shift that divides the task nor with [first]"
                )
            if self.first is not None and sequence.parts < 2:
                raise InputError(
                    f"the sequence '{sequence.name}': [first] needs at least two tasks"
                )
        if self.first is not None and "carry_moments" in self.compat:
            raise InputError("[first] does not go with the fault 'carry_moments'")
        return self

    @model_validator(mode="after")
    def _rates_from_has_a_first_task(self) -> Self:
        arm = next((a for a in self.arms if a.rates_from is not None), None)
        for sequence in self.sequences:
            divided = sequence.shift in ("length", "cluster")
            if arm is not None and len(sequence.tasks) == 1 and not divided:
                raise InputError(
                    f"the arm '{arm.name}' has `rates_from`, which follows from the "
                    "tasks before, and a first task is required; leave the arm out, or "
                    f"add a task to the sequence. Received: '{sequence.name}', which "
                    "has one task"
                )
        return self

    @model_validator(mode="after")
    def _reference_can_be_compared_with(self) -> Self:
        reference = self.report.reference
        if reference is None:
            return self
        known = [arm.name for arm in self.arms]
        if reference not in known:
            raise InputError(
                f"report.reference is '{reference}', which is none of the arms"
                f"{nearest(reference, known)}"
            )
        if len(self.seeds) < 2:
            raise InputError(
                "report.reference asks for differences paired by seed, which need at "
                "least 2 seeds; add some to `seeds`, or leave report.reference out. "
                f"Received: seeds = {self.seeds}"
            )
        return self

    @model_validator(mode="after")
    def _search_fits_its_arm(self) -> Self:
        search = self.search
        known = [arm.name for arm in self.arms]
        if search.arm is not None and search.arm not in known:
            raise InputError(
                f"search.arm is '{search.arm}', which is none of the arms"
                f"{nearest(search.arm, known)}"
            )
        arm = self.search_arm
        if arm is not None and arm.rates_from is not None:
            raise InputError(
                "the rates of a search are those of its trials, so that search.arm "
                "must name an arm without `rates_from`. Received: "
                f"'{arm.name}' with rates_from = '{arm.rates_from}'"
            )
        if arm is None or search.strength is None:
            return self
        strategy, homes = arm.strategy, _homes("strength")
        if strategy.name not in homes:
            raise InputError(
                f"search.strength needs an arm with one of the strategies "
                f"{', '.join(homes)}. Received: '{arm.name}' of the strategy "
                f"{strategy.name}"
            )
        most, limit = (
            search.high * search.strength[1],
            strategy.largest_rate_times_strength,
        )
        if most > limit:
            raise InputError(
                f"search.high x the largest search.strength must be at most {limit:g}, "
                f"or the pull of {strategy.name} overshoots its anchor; lower one of "
                f"them. Received: {most:g}"
            )
        return self

    @property
    def search_arm(self) -> ArmSettings | None:
        """The arm whose strategy a search trains with; None for plain training."""
        wanted = self.search.arm
        return next((arm for arm in self.arms if arm.name == wanted), None)

    def task(self, name: str) -> TaskSettings:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Configuration:
    """Reads a configuration file.

    Args:
        path: A TOML file.
        overrides: `section.key=value` each, applied in order. The value is read as
            TOML, or as text where it is none. An entry of a list of tables is named by
            its `name` or its index: `tasks.topic.train_examples=100`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If something is wrong in it; the message names the file, the path
            of the key, the rule and the nearest valid key.
    """
    try:
        content = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    except RecursionError:
        raise InputError(
            f"{path} is not a configuration: it is nested too deeply."
        ) from None
    for override in overrides:
        _apply(content, override)
    try:
        return Configuration.model_validate(content)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()[:_MOST_PROBLEMS]]
        if error.error_count() > _MOST_PROBLEMS:
            problems.append(f"and {error.error_count() - _MOST_PROBLEMS} more")
        raise InputError(f"{path}: " + "; ".join(problems)) from None


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise InputError(
            "An override is written section.key=value, for example "
            f"training.epochs=2. Received: {override!r}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    *sections, last = parts
    target: Any = content
    for i, part in enumerate(sections):
        if isinstance(target, list):
            target = target[_index(target, part, ".".join(parts[: i + 1]))]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
    if isinstance(target, list):
        target[_index(target, last, key)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise InputError(
            f"The override {override!r} goes into '{'.'.join(sections)}', which is a "
            "single value and not a section."
        )


def _index(entries: list[Any], part: str, where: str) -> int:
    names = [e.get("name") for e in entries if isinstance(e, dict)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise InputError(
        f"The override names '{where}', which is neither the name nor the index of an "
        f"entry{nearest(part, [n for n in names if n])}. Names: {names}"
    )


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] != "literal_error" or location[-1] != _TAG:
        location = _in_the_file(location)
    where = ".".join(location) or "the configuration"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        hint = nearest(location[-1], known) or f"; known are {', '.join(known)}"
        return f"unknown key '{where}'{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"the key '{where}' is missing"
    received = problem["input"]
    if problem["type"] == "literal_error" and isinstance(received, dict):
        received = received.get(location[-1])
    if isinstance(received, dict | list):
        return f"'{where}': {message}"
    return f"'{where}': {message}. Received: {received!r}"


def _in_the_file(location: list[str]) -> list[str]:
    """Returns where a key stands in the file: a strategy's is one of its arm."""
    if location[:1] != ["arms"] or location[2:3] != [_TAG]:
        return location
    where, rest = location[:2], location[3:]
    if rest[:1] and rest[0] in STRATEGIES:
        rest = rest[1:]
    return [*where, *rest]


def _known_keys(location: list[str]) -> list[str]:
    section: type[BaseModel] = Configuration
    homes: dict[str, type[BaseModel]] = {
        "model": ModelSettings,
        "data": DataSettings,
        "training": TrainingSettings,
        "tasks": TaskSettings,
        "sequences": SequenceSettings,
        "arms": ArmSettings,
        "search": SearchSettings,
        "measures": MeasureSettings,
        "report": ReportSettings,
    }
    for part in location:
        section = homes.get(part, section)
    own = _KEYS if section is ArmSettings else []
    return [*section.model_fields, *own]
