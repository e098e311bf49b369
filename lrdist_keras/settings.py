"""The sections of a configuration that say what is trained and how."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

from lrdist_keras.errors import InputError
from lrdist_keras.printable import printable


def _file_name(name: str) -> str:
    if name in (".", ".."):
        raise InputError("a name must be one that a folder can have")
    return name


Name = Annotated[
    str, Field(pattern=r"^[^\s/][^/\n]*$", max_length=80), AfterValidator(_file_name)
]
LARGEST_RATE = 1e3  # far above it float32 would overflow in training
Rate = Annotated[float, Field(gt=0, le=LARGEST_RATE, allow_inf_nan=False)]
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
Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1, strict=True)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without_unset(content: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Returns a section's content without those of the keys that are not set.

    They came later: files of results that do without them are what they were before.
    """
    unset = {key for key in keys if not content.get(key)}
    return {key: value for key, value in content.items() if key not in unset}


class ModelSettings(Section):
    """The pretrained backbone.

    Args:
        preset: A KerasHub preset name, a folder, or `package://module/folder` for a
            folder inside an installed package.
        sha256: SHA-256 of the folder's weights file, or of each of several by name;
            checked before loading where given.
        dropout: Dropout rate of the backbone.
        precision: Precision of the encoder's matrix products: `float32`, `bfloat16`, on
            GPUs `tf32`, or `auto`, bfloat16 where the machine has units for it, see
            README.
            Weights and optimizer are float32 in any case.
        encoder_groups: Number of encoder groups of the scheme.
        rounding: `floor` or `ceil`, see `lrdist_keras.groups.Scheme`.
        pooler: Whether the dense layer is trained that KerasHub's text classifiers have
            between the first token and the head, in the group `head`. Without it a head
            is one linear layer on the first token.
        layer_groups: Instead of both: the number of consecutive layers of each encoder
            group, from the bottom; `[1, 2, 9]` divides 12 layers in three groups.
    """

    preset: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    encoder_groups: int = Field(default=8, ge=1)
    rounding: Literal["floor", "ceil"] = "floor"
    pooler: bool = False
    layer_groups: tuple[_Count, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_way_to_divide_the_layers(self) -> Self:
        given = sorted(self.model_fields_set & {"encoder_groups", "rounding"})
        if self.layer_groups is not None and given:
            raise InputError(
                "`layer_groups` stands in place of `encoder_groups` and `rounding`; "
                f"leave one or the other out. Received: {', '.join(given)} beside it"
            )
        return self

    @model_serializer(mode="wrap")
    def _only_what_divides_the_layers(self, handler: Any) -> dict[str, Any]:
        # Without groups of one's own, files are what they were before there were any.
        content = handler(self)
        without = {"layer_groups"}
        if self.layer_groups is not None:
            without = {"encoder_groups", "rounding"}
        content = {k: v for k, v in content.items() if k not in without}
        return without_unset(content, ("pooler",))


class DataSettings(Section):
    """Where data lies.

    Args:
        dir: Folder of prepared TFDS data; relative file names refer to it too.
        cache: Folder for encoded texts and compiled programs.
        download: Whether TFDS may download what is missing.
    """

    dir: UserPath = "data"
    cache: UserPath = Field(default="~/.cache/lrdist_keras", validate_default=True)
    download: bool = False


class TaskSettings(Section):
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
        label: For `files`: the column of the label, integers or names.
        trained: For the first task of a sequence: a model that has learned it, which is
            loaded in place of a training. A folder of `lrdist train`, a `.keras` file,
            or a folder with a classifier of KerasHub or Hugging Face. `train` is then
            needed only by what uses training examples later.
        class_names: For `files`: all labels in the order of the classes' numbers, if
            that matters; where none is an integer, also what reports call 0, 1, 2, ….
            Without it the labels of the training file in their order are the classes.
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
    trained: UserPath | None = None
    class_names: list[str] | None = None

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, handler: Any) -> dict[str, Any]:
        return without_unset(handler(self), ("trained",))

    @model_validator(mode="after")
    def _fields_fit_the_source(self) -> Self:
        of_files = ("train", "validation", "format", "text", "label", "class_names")
        given = [name for name in of_files if getattr(self, name) is not None]
        if self.source != "files" and given:
            raise InputError(
                f"{', '.join(given)} may be given only with source = 'files', "
                f"not with '{self.source}'"
            )
        needed = {"validation" if self.trained else "train", "text", "label"}
        if self.source == "files" and not needed <= set(given):
            *most, last = [f"`{name}`" for name in of_files if name in needed]
            raise InputError(f"source = 'files' needs {', '.join(most)} and {last}")
        if self.class_names is not None:
            unique(self.class_names, "class name")
        if isinstance(self.text, list) and len(self.text) not in (1, 2):
            raise InputError("`text` must name one column, or the two of a pair")
        return self


class SequenceSettings(Section):
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
            raise InputError(
                f"shift = '{self.shift}' divides one task, so `tasks` must name one. "
                f"Received: {count}"
            )
        if self.shift == "domain" and count < 2:
            raise InputError(
                "shift = 'domain' goes from one task to another with the same classes, "
                f"so `tasks` must name at least two. Received: {count}"
            )
        if self.shift != "cluster" and self.clusters is not None:
            raise InputError("`clusters` goes with shift = 'cluster'")
        return self

    @property
    def parts(self) -> int:
        """How many trainings it has, one after the other."""
        if self.shift == "length":
            return 2
        return self.clusters or 2 if self.shift == "cluster" else len(self.tasks)

    @property
    def name(self) -> str:
        """The sequence in words."""
        tasks = " -> ".join(self.tasks)
        if self.shift == "cluster":
            return f"{tasks} ({self.clusters or 2} clusters)"
        return tasks if self.shift == "task" else f"{tasks} ({self.shift})"


class TrainingSettings(Section):
    """How each task is trained.

    Args:
        epochs: Passes over the training examples of a task.
        batch_size: Examples per step.
        optimizer: `adam`, as in the paper; `adamw`; or `sgd`, with momentum.
        weight_decay: Decoupled weight decay of `adamw`.
        momentum: Momentum of `sgd`, in [0, 1), and of nothing else; it begins anew with
            every training.
        max_length: Tokens per example at most, special tokens included.
        warmup: Share of a task's steps in which the rate rises linearly from 0.
        schedule: What follows: `cosine` falls to 0, `constant` stays.
        steps_per_call: Steps that run on the device before the host is asked again.
        evaluation_batch_size: Examples per evaluation batch: 16, on GPUs and TPUs 256,
            if not given.
        row_lengths: Tokens per row that there are programs for in training and
            evaluation, ascending; a batch has the shortest that its texts fit in, and
            `max_length` is always one. If not given, 8, 16, 24, … on a CPU, and 32, 64,
            128, … on GPUs and TPUs, where compiling takes longest.
        curve_points: How often task A is evaluated while a later task trains.
        curve_examples: Validation examples used for that, a stratified subset.
    """

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=16, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    max_length: int = Field(default=128, ge=8)
    warmup: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    steps_per_call: int = Field(default=8, ge=1)
    evaluation_batch_size: int = Field(default=16, ge=1)
    row_lengths: tuple[_Count, ...] | None = Field(default=None, min_length=1)
    curve_points: int = Field(default=4, ge=0)
    curve_examples: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Self:
        if self.optimizer != "sgd" and "momentum" in self.model_fields_set:
            raise InputError(
                f"`momentum` goes with optimizer = 'sgd', not with '{self.optimizer}'"
            )
        return self

    @field_validator("row_lengths")
    @classmethod
    def _ascending(cls, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if given and list(given) != sorted(set(given)):
            raise InputError(
                "`row_lengths` must ascend, without repetition. Received: "
                f"{', '.join(map(str, given))}"
            )
        return given

    @model_serializer(mode="wrap")
    def _only_the_optimizers_own(self, handler: Any) -> dict[str, Any]:
        # Files of the other optimizers are what they were before there was momentum.
        content = handler(self)
        without = "momentum" if self.optimizer != "sgd" else ""
        others = {key: value for key, value in content.items() if key != without}
        return without_unset(others, ["row_lengths"])


def check_faults(faults: Collection[Fault], training: TrainingSettings) -> None:
    """Refuses faults of the authors' code that an optimizer cannot have.

    Raises:
        ValueError: If Adam's moments are to go on and there are none.
    """
    if "carry_moments" in faults and training.optimizer == "sgd":
        raise InputError(
            "the fault `carry_moments` is of Adam's moments, and sgd has none; take "
            "training.optimizer = 'adam' or 'adamw', or name the other faults alone in "
            "`compat`. Received: optimizer = 'sgd'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the nearest of the known names, or an empty string.

    One that differs in case only is the nearest.
    """
    folded = {text.casefold(): text for text in known}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return f" (did you mean '{printable(folded[found[0]])}'?)" if found else ""


def unique(values: list[Any], what: str) -> list[Any]:
    """Returns the values.

    Raises:
        ValueError: If one stands twice; the message calls it `what`.
    """
    repeated = sorted({v for v in values if values.count(v) > 1})
    if repeated:
        raise InputError(f"every {what} may stand only once. Repeated: {repeated}")
    return values
