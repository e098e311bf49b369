"""The command `lrdist`."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from lrdist_keras.commands import looking, training
from lrdist_keras.machine import take_large_pages

app = typer.Typer(
    help="Learning-rate distributions for fine-tuning transformers without forgetting.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    training.compare,
    training.train,
    training.search,
    looking.check,
    looking.groups,
    looking.show,
    looking.combine,
):
    app.command()(command)


def main() -> None:
    """Runs `lrdist`."""
    take_large_pages()
    # Training runs on JAX; Keras reads its choice when it is first imported.
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        app()
    except Exception:
        traceback.print_exc()
        print(
            "lrdist: this is a fault of lrdist_keras, not of your input. Please report "
            "it with the traceback above, the command and the configuration.",
            file=sys.stderr,
        )
        sys.exit(1)
