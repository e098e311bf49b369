"""The file of a benchmark's result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrdist_keras._storage import write_text
from lrdist_keras.machine import description, versions


def save(path: Path, result: dict[str, Any], *packages: str) -> None:
    """Writes a result as JSON, after the machine and the versions that made it.

    Args:
        path: Of the file.
        result: What was measured.
        *packages: That it depends on beside those of `lrdist_keras`.
    """
    content = {"machine": description(), "versions": versions(*packages), **result}
    write_text(path, json.dumps(content, indent=1) + "\n")
