"""JSON read more strictly than `json` does, and what of a result it can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lrdist_keras.errors import InputError


def parse_json(text: str | bytes) -> Any:
    """Reads JSON as the standard says, and more strictly than `json`.

    Raises:
        InputError: If it is not JSON, a key stands twice in an object, a number is not
            finite, or it is nested too deeply.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_repeated,
            parse_constant=_refused,
            parse_float=_finite_float,
            parse_int=_short_int,
        )
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InputError(f"it is not text in UTF-8: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"it is not JSON: {error}") from None


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise InputError(f"a key stands twice: {', '.join(map(repr, repeated))}")
    return content


def _refused(constant: str) -> Any:
    raise InputError(f"numbers must be finite. Received: {constant}")


def _finite_float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refused(text)


def _short_int(text: str) -> int:
    # Python's own limit on digits is an error of another class.
    return int(text) if len(text) <= 400 else _refused(f"{text[:20]}…")


def finite_or_none(content: Any) -> Any:
    """Returns what JSON can hold: the content with None for what is not finite."""
    if isinstance(content, Mapping):
        return {name: finite_or_none(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_none(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
