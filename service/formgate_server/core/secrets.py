"""Secrets: how they are made, recognised and stored.

A secret is ``<prefix><43 base62 characters of a 256-bit random><6-character base62 CRC-32 of all before it>``. The
checksum tells a mistyped or truncated secret from an unknown one before any I/O; it proves nothing.

Stored is HMAC-SHA-256(pepper, SHA-256(secret)). A slow password hash would protect nothing here: a 256-bit random can
not be guessed at any speed, while a slow hash would cost every check milliseconds and let a flood of bad keys stop the
service (docs/adr/0004). The pepper, which is not in the database, makes a stolen database useless even for testing
whether a found string is a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BITS = 256
_RANDOM_LENGTH = 43  # 62**43 > 2**256
_CHECKSUM_LENGTH = 6  # 62**6 > 2**32
_BODY_LENGTH = _RANDOM_LENGTH + _CHECKSUM_LENGTH
_LONGEST_PREFIX = 32
_SHAPE = re.compile(rf"[A-Za-z0-9_-]{{1,{_LONGEST_PREFIX}}}[0-9A-Za-z]{{{_BODY_LENGTH}}}", re.ASCII)
_ID_BITS = 128

MOST_PEPPERS = 3
TOKEN_PREFIX = "fgt_"  # noqa: S105 - the public prefix of service tokens, not one of them


def base62(number: int, length: int) -> str:
    """Write ``number`` in base 62, big-endian, padded to ``length`` characters."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def _checksum(text: str) -> str:
    return base62(zlib.crc32(text.encode()), _CHECKSUM_LENGTH)


def new_secret(prefix: str) -> str:
    """Make a secret."""
    body = prefix + base62(secrets.randbits(_RANDOM_BITS), _RANDOM_LENGTH)
    return body + _checksum(body)


def new_id(prefix: str) -> str:
    """Make an id that no one has had and no one can guess."""
    return f"{prefix}_{base62(secrets.randbits(_ID_BITS), 22)}"


def prefix_of(secret: str) -> str | None:
    """Return the prefix of a well-formed secret; None: its shape or checksum is wrong."""
    if not _BODY_LENGTH < len(secret) <= _BODY_LENGTH + _LONGEST_PREFIX or _SHAPE.fullmatch(secret) is None:
        return None
    if not secret.endswith(_checksum(secret[:-_CHECKSUM_LENGTH])):
        return None
    return secret[:-_BODY_LENGTH]


def hint(secret: str) -> str:
    """Return what may be shown of a secret: its prefix and last 4 characters."""
    return f"{secret[:-_BODY_LENGTH]}...{secret[-4:]}"


@dataclass(frozen=True, slots=True)
class Pepper:
    """A key of the HMAC under which secrets are stored; ``id`` is its public fingerprint."""

    value: bytes = field(repr=False)
    id: str = ""

    def __post_init__(self) -> None:
        fingerprint = hmac.new(self.value, b"formgate pepper fingerprint", hashlib.sha256).hexdigest()[:16]
        object.__setattr__(self, "id", fingerprint)


class Peppers:
    """The peppers that live, newest first: one makes digests, all find them, so that they can rotate."""

    __slots__ = ("_peppers",)

    def __init__(self, values: Sequence[bytes]) -> None:
        """Take 1 to 3 peppers of 32 bytes, newest first. Raises ValueError otherwise."""
        if not 1 <= len(values) <= MOST_PEPPERS or any(len(value) != hashlib.sha256().digest_size for value in values):
            message = f"1 to {MOST_PEPPERS} peppers of 32 bytes are needed"
            raise ValueError(message)
        self._peppers = tuple(Pepper(value) for value in values)

    @property
    def ids(self) -> tuple[str, ...]:
        """The peppers' fingerprints, newest first."""
        return tuple(pepper.id for pepper in self._peppers)

    def digest(self, secret: str) -> tuple[bytes, str]:
        """Return the digest to store of ``secret``, and the id of its pepper."""
        newest = self._peppers[0]
        return self._hmac(newest, secret), newest.id

    def digests(self, secret: str) -> tuple[bytes, ...]:
        """Return the digests under which ``secret`` may be stored, the likeliest first."""
        return tuple(self._hmac(pepper, secret) for pepper in self._peppers)

    @staticmethod
    def _hmac(pepper: Pepper, secret: str) -> bytes:
        return hmac.digest(pepper.value, hashlib.sha256(secret.encode()).digest(), "sha256")
