"""JSON files read into pydantic models; errors name the file and the entry."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from lrdist_keras.errors import InputError
from lrdist_keras.strict_json import parse_json

_Model = TypeVar("_Model", bound=BaseModel)


def read_validated(path: Path, kind: type[_Model]) -> _Model:
    """Reads a JSON file into a model.

    Args:
        path: The file, which is there.
        kind: The model.

    Raises:
        InputError: If it is no JSON, or the model does not allow its content.
    """
    try:
        return kind.model_validate(parse_json(path.read_bytes()))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise InputError(f"{path} is damaged: {where}: {problem['msg']}") from None
    except InputError as error:
        raise InputError(f"{path} is damaged: {error}") from None
