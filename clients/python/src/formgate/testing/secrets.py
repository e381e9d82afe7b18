"""Secrets of the right form, so that a mistyped key and an unknown one are told apart as the service does."""

from __future__ import annotations

import re
import secrets
import zlib

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORM = re.compile(r"([A-Za-z0-9_-]{1,32})[0-9A-Za-z]{43}([0-9A-Za-z]{6})", re.ASCII)


def _base62(number: int, length: int) -> str:
    digits = ""
    for _ in range(length):
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def new_secret(prefix: str) -> str:
    """Make a secret: prefix, 256 random bits, and a checksum of both."""
    body = prefix + _base62(secrets.randbits(256), 43)
    return body + _base62(zlib.crc32(body.encode()), 6)


def is_secret(text: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether ``text`` has the form of a secret of ours."""
    form = _FORM.fullmatch(text)
    return form is not None and form[1] in prefixes and _base62(zlib.crc32(text[:-6].encode()), 6) == form[2]
