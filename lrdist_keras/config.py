"""What a configuration file may say."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)


def _file_name(name: str) -> str:
    if name in (".", ".."):
        raise ValueError("a name must be one that a folder can have")
    return name


Name = Annotated[
    str, Field(pattern=r"^[^\s/][^/\n]*$", max_length=80), AfterValidator(_file_name)
]
# Above the limits float32 would overflow in training.
Rate = Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False)]
UserPath = Annotated[str, AfterValidator(os.path.expanduser)]

# What the authors' code does otherwise than arXiv 2404.01317 says. `Configuration` says
# what each means.
Fault = Literal[
    "softmax_before_loss",
    "bytes_literal_texts",
    "no_shuffling",
    "carry_moments",
    "report_on_tuning_split",
    "random_length_halving",
    "cluster_on_validation",
    "early_stopping_first_task",
]
FAULTS: tuple[Fault, ...] = get_args(Fault)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    """The pretrained backbone.

    Args:
        preset: A KerasHub preset name, a folder, or `package://module/folder` for a
            folder inside an installed package.
        sha256: SHA-256 of the folder's weights file, or of each of several by name;
            checked before loading where given.
        dropout: Dropout rate of the backbone.
        precision: Of the encoder's matrix products: `float32`, `bfloat16`, or `auto`,
            bfloat16 where the machine has units for it, see README.
            Weights and optimizer are float32 in any case.
        encoder_groups: Number of encoder groups of the scheme.
        rounding: `floor` or `ceil`, see `lrdist_keras.groups.Scheme`.
    """

    preset: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    encoder_groups: int = Field(default=8, ge=1)
    rounding: Literal["floor", "ceil"] = "floor"


class DataSettings(_Section):
    """Where data lies.

    Args:
        dir: Folder of prepared TFDS data; relative file names refer to it too.
        cache: Folder for encoded texts and compiled programs.
        download: Whether TFDS may download what is missing.
    """

    dir: UserPath = "data"
    cache: UserPath = Field(default="~/.cache/lrdist_keras", validate_default=True)
    download: bool = False


class TaskSettings(_Section):
    """One classification task.

    Args:
        name: How the task is called in sequences and reports.
        source: `glue/<task>`, `bbc/topic`, `bbc/headline` or `files`.
        train_examples: Number of training examples, a stratified subset drawn by the
            run's seed; all of them if not given. Where a shift divides the task, it
            is the number of each part.
        validation_examples: The same for validation, drawn once for all seeds, before
            a shift divides the task.
        epochs: Epochs of this task, if other than those of `training`.
        train: For `files`: the training file, CSV, TSV or JSON lines.
        validation: For `files`: the validation file; without it a stratified tenth of
            the training file, the same for all seeds, is held out.
        format: For `files`: `csv`, `tsv` or `jsonl`, if the file's ending does not say.
        text: For `files`: the column of the text, or of both texts of a pair.
        label: For `files`: the column of the label.
        class_names: For `files`: the names of the classes in the order of their
            numbers, if labels are names and their order matters, or for reports.
    """

    name: Name
    source: str
    train_examples: int | None = Field(default=None, ge=1)
    validation_examples: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    train: UserPath | None = None
    validation: UserPath | None = None
    format: Literal["csv", "tsv", "jsonl"] | None = None
    text: str | list[str] | None = None
    label: str | None = None
    class_names: list[str] | None = None

    @model_validator(mode="after")
    def _fields_fit_the_source(self) -> Self:
        of_files = ("train", "validation", "format", "text", "label", "class_names")
        given = [name for name in of_files if getattr(self, name) is not None]
        if self.source != "files" and given:
            raise ValueError(
                f"{', '.join(given)} may be given only with source = 'files', "
                f"not with '{self.source}'"
            )
        if self.source == "files" and not {"train", "text", "label"} <= set(given):
            raise ValueError("source = 'files' needs `train`, `text` and `label`")
        if self.class_names is not None:
            _unique(self.class_names, "class name")
        if isinstance(self.text, list) and len(self.text) not in (1, 2):
            raise ValueError("`text` must name one column, or the two of a pair")
        return self


class SequenceSettings(_Section):
    """What is trained one after the other: tasks, or parts of one task.

    Args:
        tasks: Names of the tasks; for `length` and `cluster` the one that is divided.
        shift: What changes from one to the next: `task`; `length`, the shorter half of
            a task's texts, then the longer; `cluster`, its clusters by what the
            pretrained model sees, largest first; `domain`, the source of the texts,
            while the classes stay.
        clusters: For `cluster`: how many, 2 if not given.
    """

    tasks: list[Name] = Field(min_length=1)
    shift: Literal["task", "length", "cluster", "domain"] = "task"
    clusters: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _tasks_fit_the_shift(self) -> Self:
        count = len(self.tasks)
        if self.shift in ("length", "cluster") and count != 1:
            raise ValueError(
                f"shift = '{self.shift}' divides one task, so `tasks` must name one. "
                f"Received: {count}"
            )
        if self.shift == "domain" and count < 2:
            raise ValueError(
                "shift = 'domain' goes from one task to another with the same classes, "
                f"so `tasks` must name at least two. Received: {count}"
            )
        if self.shift != "cluster" and self.clusters is not None:
            raise ValueError("`clusters` goes with shift = 'cluster'")
        return self

    @property
    def name(self) -> str:
        """The sequence in words."""
        tasks = " -> ".join(self.tasks)
        if self.shift == "cluster":
            return f"{tasks} ({self.clusters or 2} clusters)"
        return tasks if self.shift == "task" else f"{tasks} ({self.shift})"


# What each strategy takes beside the learning rates, with its defaults; None must be
# given. The sources of the numbers are named in `ArmSettings`.
_STRATEGIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen": {},
    "lp_ft": {"probe_rate": 1e-3},
    "ewc": {"strength": 400.0},
    "ewc_online": {"strength": 400.0, "fisher_decay": 0.95},
    "ewc_pretraining": {"strength": 2000.0, "raw_text": None, "fisher_examples": 1000},
    "l2_sp": {"strength": 0.1, "head_strength": 0.01},
    "recadam": {"strength": 5000.0, "midpoint": 0.25, "steepness": 20.0},
    "replay": {"examples_per_class": 10},
    "lwf": {"strength": 1.0, "temperature": 2.0},
    "wise_ft": {"alpha": 0.5},
    "sfa": {"alpha": 0.5, "period": 0.25},
    "lora": {"rank": 8},
    "joint": {},
    "single": {},
}
_OF_STRATEGIES = sorted({key for keys in _STRATEGIES.values() for key in keys})
_Share = Annotated[float, Field(ge=0, le=1)]
_Strength = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]


class ArmSettings(_Section):
    """One way of training that is compared with the others.

    Args:
        name: How the arm is called in reports.
        rate: One learning rate for all groups.
        decay: With `rate`, which is then the head's: layer-wise decay, see
            `lrdist_keras.distribution.llrd`.
        distribution: A distribution file, `kenneweg2022` or `kenneweg2022_rounded`.
        resample: Whether a distribution of another scheme is fitted to the model's.
        rescale: Geometric mean over groups that the distribution is brought to.
        strategy: What is done against forgetting beside the rates: `plain`, nothing;
            `frozen`, a linear probe; `lp_ft`, a probe, then fine-tuning; `ewc` with the
            Fisher of each task so far, `ewc_online` with their running sum,
            `ewc_pretraining` with that of masked language modelling; `l2_sp`;
            `recadam`; `replay`; `lwf`, learning without forgetting; `wise_ft` and
            `sfa`, averages with the previous model after and during training; `lora`;
            `joint`, all tasks at once; `single`, each task on its own.
        strength: Lambda of `ewc` (400 in its paper's table of Atari), `ewc_online` and
            `ewc_pretraining` (2000, what the method's authors used); alpha of `l2_sp`
            (0.1 in its paper); gamma of `recadam` (5000 in its paper); lambda_o of
            `lwf` (1 in its paper).
        head_strength: Beta of `l2_sp`, of the head's plain L2 (0.01 in its paper).
        fisher_decay: Gamma of `ewc_online`, the factor of the earlier Fisher.
        raw_text: For `ewc_pretraining`: a text file, one paragraph a line.
        fisher_examples: For `ewc_pretraining`: pieces of text that the Fisher is of.
        midpoint: For `recadam`: share of a task's steps at which the pull and the
            training weigh the same; the paper counts steps (250 of them, or others).
        steepness: For `recadam`: how fast the one gives way to the other, per task.
        probe_rate: For `lp_ft`: learning rate of the probe.
        examples_per_class: For `replay`: what is kept of each class of a task.
        temperature: For `lwf`: of both softmaxes of the distillation (2 in its paper).
        alpha: For `wise_ft` and `sfa`: share of the new weights in an average (0.5 is
            `wise_ft`'s where nothing is known); for `wise_ft` also `training`: what is
            best on training examples of the tasks so far.
        period: For `sfa`: share of a task's steps from one average to the next.
        rank: For `lora`: rank of the adapters (8 in its paper's tables of GLUE).
    """

    name: Name
    rate: Rate | None = None
    decay: float | None = Field(default=None, gt=0, le=1)
    distribution: UserPath | None = None
    resample: bool = False
    rescale: Rate | None = None
    strategy: Literal[
        "plain",
        "frozen",
        "lp_ft",
        "ewc",
        "ewc_online",
        "ewc_pretraining",
        "l2_sp",
        "recadam",
        "replay",
        "lwf",
        "wise_ft",
        "sfa",
        "lora",
        "joint",
        "single",
    ] = "plain"
    strength: float | None = Field(default=None, ge=0, le=1e30, allow_inf_nan=False)
    head_strength: float | None = Field(
        default=None, ge=0, le=1e30, allow_inf_nan=False
    )
    fisher_decay: _Share | None = None
    raw_text: UserPath | None = None
    fisher_examples: int | None = Field(default=None, ge=1)
    midpoint: _Share | None = None
    steepness: float | None = Field(default=None, gt=0, le=1e6)
    probe_rate: Rate | None = None
    examples_per_class: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, gt=0, le=1e6)
    alpha: _Share | Literal["training"] | None = None
    period: float | None = Field(default=None, gt=0, le=1)
    rank: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_strategy(cls, given: Any) -> Any:
        strategy = given.get("strategy", "plain") if isinstance(given, dict) else None
        if not isinstance(strategy, str):
            return given
        return {**_STRATEGIES.get(strategy, {}), **given}

    @model_validator(mode="after")
    def _one_source_of_rates(self) -> Self:
        if (self.rate is None) == (self.distribution is None):
            raise ValueError("an arm has either `rate` or `distribution`")
        if self.decay is not None and self.rate is None:
            raise ValueError("`decay` goes with `rate`")
        if self.distribution is None and (self.resample or self.rescale):
            raise ValueError("`resample` and `rescale` go with `distribution`")
        return self

    @model_validator(mode="after")
    def _settings_fit_the_strategy(self) -> Self:
        takes = _STRATEGIES[self.strategy]
        for key in _OF_STRATEGIES:
            given = getattr(self, key) is not None
            if given and key not in takes:
                homes = [name for name, keys in _STRATEGIES.items() if key in keys]
                raise ValueError(
                    f"`{key}` goes with the strategies {', '.join(homes)}, not with "
                    f"'{self.strategy}'"
                )
            if key in takes and not given:
                raise ValueError(f"the strategy '{self.strategy}' needs `{key}`")
        if self.strategy == "sfa" and self.alpha == "training":
            raise ValueError("alpha = 'training' goes with the strategy wise_ft")
        return self


class TrainingSettings(_Section):
    """How each task is trained.

    Args:
        epochs: Passes over the training examples of a task.
        batch_size: Examples per step.
        optimizer: `adam`, as in the paper, or `adamw`.
        weight_decay: Decoupled weight decay of `adamw`.
        max_length: Tokens per example at most, special tokens included.
        warmup: Share of a task's steps in which the rate rises linearly from 0.
        schedule: What follows: `cosine` falls to 0, `constant` stays.
        steps_per_call: Steps that run on the device before the host is asked again.
        evaluation_batch_size: Examples per evaluation batch; GPUs take more at a time.
        curve_points: How often task A is evaluated while a later task trains.
        curve_examples: Validation examples used for that, a stratified subset.
    """

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    max_length: int = Field(default=128, ge=8)
    warmup: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    steps_per_call: int = Field(default=8, ge=1)
    evaluation_batch_size: int = Field(default=16, ge=1)
    curve_points: int = Field(default=4, ge=0)
    curve_examples: int = Field(default=200, ge=1)


Seed = Annotated[int, Field(ge=0, lt=2**31)]


class DecayPoint(_Section):
    """Layer-wise decay as a point to try first.

    Args:
        rate: Learning rate of the head.
        decay: Factor from one layer to the one below.
    """

    rate: Rate
    decay: float = Field(gt=0, le=1)


class SearchSettings(_Section):
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
            not given. The rates are those of the trials.
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
            raise ValueError("`low` must be below `high`")
        if self.strength is not None and self.strength[0] >= self.strength[1]:
            raise ValueError(
                "the first of the two numbers of `strength` must be below the second. "
                f"Received: {list(self.strength)}"
            )
        return self

    @model_validator(mode="after")
    def _strength_is_of_an_arm(self) -> Self:
        if self.strength is not None and self.arm is None:
            raise ValueError("`strength` goes with `arm`, whose strategy it is of")
        return self

    @model_validator(mode="after")
    def _budget_holds_the_repeats(self) -> Self:
        if self.budget <= self.repeats:
            raise ValueError(
                "`budget` must be above `repeats`, which are full runs that it pays "
                f"for. Received: budget = {self.budget:g}, repeats = {self.repeats}"
            )
        return self


class ReportSettings(_Section):
    """What a comparison reports.

    Args:
        reference: Name of the arm that the others are compared with, the first one if
            not given. To name one asks for statistics, which need at least two seeds.
    """

    reference: Name | None = None


class MeasureSettings(_Section):
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


class Configuration(_Section):
    """What a file says: tasks, sequences of them, arms to compare, a search.

    Args:
        name: How it is called; results go to `runs/NAME`.
        seeds: Seeds of a comparison.
        compat: The faults of the authors' code that are to be reproduced, or `paper`
            for all; they are kept in one order.
            `softmax_before_loss`: the cross-entropy takes the softmax of the logits for
            logits, so that the model that is fitted is a softmax of a softmax.
            `bytes_literal_texts`: texts are wrapped as `b'…'`.
            `no_shuffling`: every epoch has the examples in the order of the data.
            `carry_moments`: Adam's moments go on from task to task, see
            `lrdist_keras.training.moments`.
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
    search: SearchSettings = SearchSettings()
    measures: MeasureSettings = MeasureSettings()
    report: ReportSettings = ReportSettings()

    @field_validator("compat", mode="before")
    @classmethod
    def _all_faults_by_one_word(cls, compat: Any) -> Any:
        if compat == "paper":
            return list(FAULTS)
        if isinstance(compat, str):
            raise ValueError(f"must be 'paper', or a list of some of {list(FAULTS)}")
        return compat

    @field_validator("compat")
    @classmethod
    def _faults_differ(cls, compat: list[Fault]) -> list[Fault]:
        return sorted(_unique(compat, "fault"), key=FAULTS.index)

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        return _unique(seeds, "seed")

    @field_validator("tasks", "arms", "sequences")
    @classmethod
    def _names_differ(cls, entries: list[Any]) -> list[Any]:
        _unique([entry.name for entry in entries], "name")
        return entries

    @model_validator(mode="after")
    def _sequences_know_their_tasks(self) -> Self:
        names = [task.name for task in self.tasks]
        for sequence in self.sequences:
            for name in sequence.tasks:
                if name not in names:
                    raise ValueError(
                        f"the sequence '{sequence.name}' has the task '{name}', which "
                        f"[[tasks]] does not define{nearest(name, names)}"
                    )
            _unique(sequence.tasks, "task of a sequence")
        known = [sequence.name for sequence in self.sequences]
        if (wanted := self.search.sequence) is not None and wanted not in known:
            raise ValueError(
                f"search.sequence is '{wanted}', which is none of the sequences"
                f"{nearest(wanted, known)}"
            )
        return self

    @model_validator(mode="after")
    def _reference_can_be_compared_with(self) -> Self:
        reference = self.report.reference
        if reference is None:
            return self
        known = [arm.name for arm in self.arms]
        if reference not in known:
            raise ValueError(
                f"report.reference is '{reference}', which is none of the arms"
                f"{nearest(reference, known)}"
            )
        if len(self.seeds) < 2:
            raise ValueError(
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
            raise ValueError(
                f"search.arm is '{search.arm}', which is none of the arms"
                f"{nearest(search.arm, known)}"
            )
        arm = self.search_arm
        if arm is None or search.strength is None:
            return self
        if "strength" not in _STRATEGIES[arm.strategy]:
            homes = [name for name, keys in _STRATEGIES.items() if "strength" in keys]
            raise ValueError(
                f"search.strength needs an arm with one of the strategies "
                f"{', '.join(homes)}. Received: '{arm.name}' of the strategy "
                f"{arm.strategy}"
            )
        if arm.strategy == "recadam" and search.high * search.strength[1] > 1:
            raise ValueError(
                "search.high x the largest search.strength must be at most 1, or the "
                "pull of recadam overshoots its anchor; lower one of them. Received: "
                f"{search.high * search.strength[1]:g}"
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
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _apply(content, override)
    try:
        return Configuration.model_validate(content)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        raise ValueError(f"{path}: " + "; ".join(problems)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the nearest of the known names, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{found[0]}'?)" if found else ""


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ValueError(
            "An override is written section.key=value, for example "
            f"training.epochs=2. Received: {override!r}"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
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
        raise ValueError(
            f"The override {override!r} goes into '{'.'.join(sections)}', which is a "
            "single value and not a section."
        )


def _index(entries: list[Any], part: str, where: str) -> int:
    names = [e.get("name") for e in entries if isinstance(e, dict)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(entries):
        return int(part)
    raise ValueError(
        f"The override names '{where}', which is neither the name nor the index of an "
        f"entry{nearest(part, [n for n in names if n])}. Names: {names}"
    )


def _describe(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    where = ".".join(location) or "the configuration"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        hint = nearest(location[-1], known) or f"; known are {', '.join(known)}"
        return f"unknown key '{where}'{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"the key '{where}' is missing"
    received = problem["input"]
    if isinstance(received, dict | list):
        return f"'{where}': {message}"
    return f"'{where}': {message}. Received: {received!r}"


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
    return list(section.model_fields)


def _unique(values: list[Any], what: str) -> list[Any]:
    repeated = sorted({v for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"every {what} may stand only once. Repeated: {repeated}")
    return values
