"""How secrets are kept: a digest to find them by and, where the policy makes them recoverable, sealed."""

from __future__ import annotations

from typing import Protocol

from formgate_server.core.errors import FailedPreconditionError
from formgate_server.core.model import Account, Key
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Sealed, StoredSecret
from formgate_server.core.secrets import Peppers


class Sealer(Protocol):
    """Encrypts secrets so that they can be shown again: AES-256-GCM, the key_id as associated data."""

    def seal(self, secret: str, key_id: str) -> Sealed:
        """Encrypt ``secret`` under the newest sealing key."""
        ...

    def unseal(self, sealed: Sealed, key_id: str) -> str | None:
        """Decrypt; None: its sealing key is not there any more. Raises ValueError where it was tampered with."""
        ...


class Keeper:
    """Turns secrets into what is stored, and back where that can be."""

    def __init__(self, peppers: Peppers, sealer: Sealer, policies: Policies) -> None:
        self._peppers = peppers
        self._sealer = sealer
        self._policies = policies

    def stored(self, key: Key, secret: str, account: Account) -> StoredSecret:
        """Return what to store of a key's secret."""
        digest, pepper_id = self._peppers.digest(secret)
        recoverable = self._policies.of(account).keys.recoverable
        return StoredSecret(digest, pepper_id, self._sealer.seal(secret, key.key_id) if recoverable else None)

    def shown(self, sealed: Sealed | None, key_id: str) -> str:
        """Return a key's secret. Raises FailedPreconditionError where it can not be shown."""
        secret = None if sealed is None else self._sealer.unseal(sealed, key_id)
        if secret is None:
            message = "this key's secret is not recoverable: rotate the key to get a new one"
            raise FailedPreconditionError(message, reason="NOT_RECOVERABLE")
        return secret
