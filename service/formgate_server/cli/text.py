"""Texts that came from elsewhere, made safe to show on a terminal."""

from __future__ import annotations

import unicodedata

# Control characters (C0, C1, DEL), invisible format characters (bidi controls among them), lone surrogates, and line
# and paragraph separators: with them a name could move the cursor, set a title, or pass for another name or line.
_HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Persian and Indic names are not written right without these two joiners, and all that they do is join.
_JOINERS = frozenset("\u200c\u200d")


def safe(text: str) -> str:
    r"""Return ``text`` with everything harmful shown escaped (``\n``, ``\x1b``, ``\u202e``), on one line.

    A backslash is doubled, so that two different texts never look the same.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    harmful = unicodedata.category(character) in _HARMFUL and character not in _JOINERS
    if harmful or character == "\\":
        return character.encode("unicode_escape").decode("ascii")
    return character
