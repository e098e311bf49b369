"""The folder of a trained model: one classifier a task, and what is known of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lrdist_keras.errors import MissingFile
from lrdist_keras.validated import read_validated

FILE = "model.json"


class _Part(BaseModel):
    """A table of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SavedTask(_Part):
    """One task of a saved model.

    Args:
        name: Its name.
        file: Its classifier, a `.keras` file in the folder.
        preset: Its KerasHub text classifier, a folder in the folder; None where the
            model has no pooler.
        class_names: Names of its classes in the order of the logits.
        columns: Texts that an example has, 1 or 2.
        source: Where its data is from.
        train_examples: Training examples; None where it was loaded and not trained.
        validation_examples: Validation examples that the accuracies are of.
        accuracy_after: Accuracy right after its own training.
        accuracy: Accuracy of the model that is saved.
    """

    name: str
    file: str
    preset: str | None
    class_names: list[str] = Field(min_length=2)
    columns: int = Field(ge=1, le=2)
    source: str
    train_examples: int | None
    validation_examples: int = Field(ge=1)
    accuracy_after: Annotated[float, Field(ge=0, le=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)]

    @field_validator("file", "preset")
    @classmethod
    def _lies_in_the_folder(cls, name: str | None) -> str | None:
        if name is not None and (Path(name).name != name or name.startswith(".")):
            raise ValueError("must be a name in the folder")
        return name


class SavedModel(_Part):
    """What `model.json` says.

    Args:
        format: Version of the file's format.
        tasks: The tasks in the order of their training.
        max_length: Tokens per example at most, special tokens included.
        preset: The pretrained model that it began from.
        pooler: Whether it has a pooler.
        precision: Precision of the products it was trained and evaluated with.
        arm: Name of the arm.
        strategy: What was done against forgetting.
        sequence: Name of the sequence.
        seed: The seed.
        rates: Learning rates of each task by group; None where it was not trained.
        versions: Versions of packages.
        inputs: Digests of data, weights and tokenizer.
        configuration: The resolved configuration.
    """

    format: Literal[1] = 1
    tasks: list[SavedTask] = Field(min_length=1)
    max_length: int = Field(ge=8)
    preset: str
    pooler: bool
    precision: str
    arm: str
    strategy: str
    sequence: str
    seed: int
    rates: list[dict[str, float] | None]
    versions: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    configuration: dict[str, Any]


def read_saved(folder: Path) -> SavedModel:
    """Reads `model.json` of a folder.

    Raises:
        FileNotFoundError: If there is none.
        InputError: If it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingFile(
            f"There is no {FILE} in '{folder}', so it is no folder of `lrdist train`."
        )
    return read_validated(path, SavedModel)
