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
import re
import secrets
import zlib
from collections.abc import Sequence
from hmac import compare_digest

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BITS = 256
_RANDOM_LENGTH = 43  # 62**43 > 2**256
_CHECKSUM_LENGTH = 6  # 62**6 > 2**32
_BODY_LENGTH = _RANDOM_LENGTH + _CHECKSUM_LENGTH
_LONGEST_PREFIX = 32
_PREFIX = re.compile(rf"[A-Za-z0-9_-]{{1,{_LONGEST_PREFIX}}}", re.ASCII)
_ID_BITS = 128
_LONGEST = _LONGEST_PREFIX + _BODY_LENGTH

MOST_PEPPERS = 3
TOKEN_PREFIX = "fgt_"  # noqa: S105 - the public prefix of service tokens, not one of them


def base62(number: int, length: int) -> str:
    """Write ``number`` in base 62, big-endian, padded to ``length`` characters."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


_PAIRS = [base62(number, 2) for number in range(62**2)]  # two digits at a time: every check needs six


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    return _PAIRS[number // 62**4] + _PAIRS[number // 62**2 % 62**2] + _PAIRS[number % 62**2]


def new_secret(prefix: str) -> str:
    """Make a secret."""
    body = prefix + base62(secrets.randbits(_RANDOM_BITS), _RANDOM_LENGTH)
    return body + _checksum(body)


def new_id(prefix: str) -> str:
    """Make an id that no one has had and no one can guess."""
    return f"{prefix}_{base62(secrets.randbits(_ID_BITS), 22)}"


def could_be_secret(text: str) -> bool:
    """Tell whether ``text`` is short enough for a secret, and of ASCII: worth hashing."""
    return len(text) <= _LONGEST and text.isascii()


def fingerprint(secret: str) -> bytes:
    """Return the SHA-256 by which a secret is known in memory. Stored is ``Peppers.digests_of`` it."""
    return hashlib.sha256(secret.encode()).digest()


def prefix_of(secret: str) -> str | None:
    """Return the prefix of a well-formed secret; None: its shape or checksum is wrong."""
    if not could_be_secret(secret):
        return None
    prefix, body = secret[:-_BODY_LENGTH], secret[-_BODY_LENGTH:]
    if not body.isalnum() or _PREFIX.fullmatch(prefix) is None:
        return None
    return prefix if secret.endswith(_checksum(secret[:-_CHECKSUM_LENGTH])) else None


def hint(secret: str) -> str:
    """Return what may be shown of a secret: its prefix and last 4 characters."""
    return f"{secret[:-_BODY_LENGTH]}...{secret[-4:]}"


_AUDIT = b"formgate audit trail\0"  # no 32 bytes long: no secret's digest can be mistaken for a row, nor the reverse
_BLOCK = hashlib.sha256().block_size
_INNER = bytes(byte ^ 0x36 for byte in range(256))
_OUTER = bytes(byte ^ 0x5C for byte in range(256))


class Pepper:
    """A key of the HMAC under which secrets are stored; ``id`` is its public fingerprint.

    The two hashes of HMAC (RFC 2104) that depend on the key only are begun once: ``hmac.digest`` begins them anew for
    every check, which takes three times as long.
    """

    __slots__ = ("_inner", "_outer", "id")

    def __init__(self, value: bytes) -> None:
        padded = value.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(padded.translate(_INNER))
        self._outer = hashlib.sha256(padded.translate(_OUTER))
        self.id = self.hmac(b"formgate pepper fingerprint").hex()[:16]

    def hmac(self, message: bytes) -> bytes:
        """Return HMAC-SHA-256 of ``message`` under the pepper."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return outer.digest()


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
        return newest.hmac(fingerprint(secret)), newest.id

    def mac(self, message: bytes) -> tuple[bytes, str]:
        """See ``AuditKeys``."""
        newest = self._peppers[0]
        return newest.hmac(_AUDIT + message), newest.id

    def verifies(self, message: bytes, mac: bytes, key_id: str) -> bool | None:
        """See ``AuditKeys``."""
        for pepper in self._peppers:
            if pepper.id == key_id:
                return compare_digest(pepper.hmac(_AUDIT + message), mac)
        return None

    def digests(self, secret: str) -> list[bytes]:
        """Return the digests under which ``secret`` may be stored, the likeliest first."""
        return self.digests_of(fingerprint(secret))

    def digests_of(self, known_by: bytes) -> list[bytes]:
        """Return what ``digests`` does, of the secret with that fingerprint."""
        return [pepper.hmac(known_by) for pepper in self._peppers]
