"""Recoverable secrets: AES-256-GCM (NIST SP 800-38D) under the sealing key, bound to their key by its id.

A box is a random nonce of 96 bits, then the ciphertext with its tag. Random nonces are safe for 2**32 boxes a key.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from formgate_server.core.ports import Sealed

_NONCE = 12


class AesSealer:
    """The Sealer of ``core.keeper``."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Take the sealing keys, 32 bytes each, newest first: one seals, all unseal."""
        self._by_id = {_fingerprint(key): AESGCM(key) for key in keys}

    @property
    def ids(self) -> tuple[str, ...]:
        """The keys' public fingerprints, newest first."""
        return tuple(self._by_id)

    def seal(self, secret: str, key_id: str) -> Sealed:
        """See ``Sealer``."""
        newest = self.ids[0]
        nonce = os.urandom(_NONCE)
        box = nonce + self._by_id[newest].encrypt(nonce, secret.encode(), key_id.encode())
        return Sealed(box, newest)

    def unseal(self, sealed: Sealed, key_id: str) -> str | None:
        """See ``Sealer``."""
        key = self._by_id.get(sealed.sealing_key_id)
        if key is None:
            return None
        nonce, ciphertext = sealed.box[:_NONCE], sealed.box[_NONCE:]
        try:
            return key.decrypt(nonce, ciphertext, key_id.encode()).decode()
        except InvalidTag:
            message = "a sealed secret was altered, or moved to another key"
            raise ValueError(message) from None


def _fingerprint(key: bytes) -> str:
    return hmac.digest(key, b"formgate sealing key fingerprint", "sha256").hex()[:16]
