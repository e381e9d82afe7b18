"""Keys by secret, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from formgate_server.core.compile_key import compile_key

if TYPE_CHECKING:
    from formgate_server.core.policy import Policies
    from formgate_server.core.verdict import KeyRecord
    from formgate_server.storage.memory.registry import MemoryRegistry


class MemoryKeyStore:
    """The KeyStore port."""

    def __init__(self, registry: MemoryRegistry, policies: Policies) -> None:
        self._tables = registry.tables
        self._policies = policies

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:  # noqa: ARG002 - every call reads anew
        """See ``KeyStore``."""
        secret = next((self._tables.secrets[digest] for digest in digests if digest in self._tables.secrets), None)
        key = None if secret is None else self._tables.key(secret.key_id)
        if secret is None or key is None:
            return None
        account = self._tables.accounts[key.account_id]
        creator = self._tables.members.get((key.account_id, key.created_by))
        return compile_key(key, account, self._policies.of(account), creator, secret.end)
