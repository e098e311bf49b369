"""The command `lrdist`, and what it says where the laboratory is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# One module of each package that no command goes without.
_NEEDED = ("jax", "keras_hub", "pydantic", "rich", "tokenizers", "typer")


def main() -> None:
    """Runs `lrdist`; names the extra that brings it where a package is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(
            "lrdist: error: the command needs the laboratory: pip install "
            f"'lrdist-keras[lab]' (missing: {', '.join(missing)})"
        )
    from lrdist_keras.cli import main as run

    run()


if __name__ == "__main__":
    main()
