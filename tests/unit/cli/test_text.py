"""What came from elsewhere can not act on a terminal."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from formgate_server.cli.text import safe

ANY_TEXT = st.text(st.characters())


@given(ANY_TEXT)
@example("\x1b]0;owned\x07\x9b2J\x7f\u202e\u2066\u2028\u2029\ufeff\U000e0041\ud800")
def test_nothing_harmful_is_left(text: str) -> None:
    """No control, format (bidi) or separator character and no lone surrogate is shown as it is."""
    assert not {unicodedata.category(c) for c in safe(text) if c not in "\u200c\u200d"} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@given(ANY_TEXT, ANY_TEXT)
@example("\n", "\\n")
def test_different_texts_look_different(one: str, other: str) -> None:
    """Nothing can pass for something else by writing the escape itself."""
    assert (safe(one) == safe(other)) == (one == other)


@given(ANY_TEXT)
def test_it_fits_a_line_and_an_encoding(text: str) -> None:
    """What is shown is one line, and UTF-8 can write it."""
    assert len(safe(text).splitlines()) <= 1
    safe(text).encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Acme Inc",
        "Zoë & søn",
        "日本語",
        "\u0646\u0627\u0645",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "👩\u200d🔬",
        "[red]no[/red]",
        "a\u00a0b",
    ],
)
def test_names_stay_as_they_are(text: str) -> None:
    """What people write is not touched."""
    assert safe(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x00\x7f\x85\x9b", r"\x00\x7f\x85\x9b"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("C:\\n", r"C:\\n"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_escapes_look_as_in_python(text: str, shown: str) -> None:
    """The rest is shown escaped."""
    assert safe(text) == shown
