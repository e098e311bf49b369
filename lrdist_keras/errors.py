"""Errors that whoever uses this can mend, told from faults of the program."""

from __future__ import annotations


class InputError(ValueError):
    """An input breaks a rule; the message names the input, the rule and the remedy.

    `lrdist` prints it as one line. Any other exception is a fault of the program and
    shows its traceback.
    """


class MissingFile(InputError, FileNotFoundError):
    """A file or folder that an input names is not there."""


class MissingPackage(InputError, ImportError):
    """A package that an input needs is not installed."""


class SearchFailed(RuntimeError):
    """Trials failed, in a row or by a mistake; the message holds the traceback."""
