"""Names and texts from files as a terminal can safely show them."""

from __future__ import annotations

from collections.abc import Iterable

# Characters that count as printable but leave a gap, or nothing, on the screen.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_MOST_LISTED = 20
_FIRST_LISTED = 5  # where there are more


def printable(text: object) -> str:
    r"""Returns the text with everything that cannot be seen written as an escape.

    Terminal escapes, control characters, marks of direction, characters of no width and
    spaces other than the common one become what Python writes for them, such as
    `\x1b`, `\u202e` or `\n`. So a name from a file can neither change the terminal nor
    look like another name.

    Args:
        text: A text, or what `str` makes one of.
    """
    text = str(text)
    if text.isprintable() and _BLANK.isdisjoint(text):
        return text
    return "".join(
        c
        if c.isprintable() and c not in _BLANK
        else c.encode("unicode_escape").decode()
        for c in text
    )


def listed(items: Iterable[object], most: int | None = _MOST_LISTED) -> str:
    """Returns items side by side; of more than `most` the first five and a number.

    Args:
        items: What is listed.
        most: How many are listed in full, None for any number.
    """
    texts = [printable(item) for item in items]
    if most is None or len(texts) <= most:
        return ", ".join(texts)
    shown = ", ".join(texts[:_FIRST_LISTED])
    return f"{shown} and {len(texts) - _FIRST_LISTED:,} more"
