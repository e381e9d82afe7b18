"""The calls as bytes: paths, and messages put together of messages that are written already.

A batch is written from its checks' bytes: each was written once, and how large it is is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_SERVICE: Final = "/formgate.v1.AuthorizationService"
CHECK: Final = f"{_SERVICE}/CheckKey"
BATCH: Final = f"{_SERVICE}/BatchCheckKeys"
RECORD: Final = f"{_SERVICE}/RecordUsage"

MOST: Final = 1_000
"""Checks in a batch, or records in a call: what the service takes."""
MOST_BYTES: Final = 2**22
"""Of a call: half of what the service takes."""

_FIELD_1: Final = b"\n"
"""The tag of field 1 (field number * 8 + 2: a length follows)."""


def repeated(messages: Iterable[bytes]) -> bytes:
    """Write the message whose only field, number 1, holds these messages: a batch of checks, or of usage records."""
    return b"".join([part for one in messages for part in (_FIELD_1, _varint(len(one)), one)])


def _varint(value: int) -> bytes:
    """Write a number seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    digits = []
    while value > 0x7F:  # noqa: PLR2004 - what seven bits hold
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))
