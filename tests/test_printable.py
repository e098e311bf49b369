import unicodedata

import pytest

from lrdist_keras.printable import printable


@pytest.mark.parametrize(
    "text, expected",
    [
        ("plain text, ünïcödé, 日本語, 😀 [bold]", None),
        ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
        ("a\tb\nc\rd\x00\x7f\x9b1m", r"a\tb\nc\rd\x00\x7f\x9b1m"),
        ("abc\u202edef\u200f", r"abc\u202edef\u200f"),
        ("me\u200bthod\ufeff", r"me\u200bthod\ufeff"),
        ("no\xa0break", r"no\xa0break"),
        ("\u3164\u2800\u115f", r"\u3164\u2800\u115f"),
        ("half \ud800, of a file name \udcff", r"half \ud800, of a file name \udcff"),
        ("tag \U000e0041", r"tag \U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_escaped_and_the_rest_stays(text, expected):
    assert printable(text) == (text if expected is None else expected)


def test_no_character_of_a_terminal_control_or_a_direction_is_left():
    every = "".join(map(chr, range(0x110000)))
    kinds = {unicodedata.category(c) for c in printable(every)}
    assert not kinds & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_what_is_no_text_is_printed_as_it_is():
    assert printable(7) == "7"
