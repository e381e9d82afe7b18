"""The core in this process: the bundled policies, stores in memory, and a clock that stands still until it is set."""

from __future__ import annotations

from typing import Any

from formgate_server.core.changes import Changes
from formgate_server.core.check_key import CheckKey
from formgate_server.core.copy_key import CopyKey
from formgate_server.core.create_key import CreateKey, NewKey
from formgate_server.core.keeper import Keeper
from formgate_server.core.last_used import LastUsed
from formgate_server.core.manage_accounts import ManageAccounts, NewAccount
from formgate_server.core.manage_members import ManageMembers
from formgate_server.core.model import Caller, Key, KeyState, ServiceRole
from formgate_server.core.read_account import ReadAccount
from formgate_server.core.record_usage import RecordUsage
from formgate_server.core.rotate_key import RotateKey
from formgate_server.core.secrets import Peppers
from formgate_server.core.set_key_state import SetKeyState
from formgate_server.core.settle import Settle
from formgate_server.core.verdict import CheckQuery, Verdict
from formgate_server.policies.policy import load
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.keys import MemoryKeyStore
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.memory.registry import MemoryRegistry
from formgate_server.storage.memory.usage import MemoryUsageLedger
from formgate_server.storage.sealer import AesSealer
from formgate_server.storage.wrappers import PepperedKeyStore
from tests.support.clock import SettableClock
from tests.support.stores import Unguarded

CALLER = Caller("t1", ServiceRole.MANAGER)


class World:
    """What a server is made of, and the calls that tests make."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.policies = load()
        peppers = Peppers([b"p" * 32])
        self.registry = MemoryRegistry(peppers)
        self.limiter = MemoryLimiter(self.clock, MemoryReservations())
        keeper = Keeper(peppers, AesSealer([b"s" * 32]), self.policies)
        ledger = MemoryUsageLedger(self.registry)
        changes = Changes(self.registry, self.limiter, self.clock)
        keys = MemoryKeyStore(self.registry, self.policies)
        self.check_key = CheckKey(
            Unguarded(PepperedKeyStore(keys, peppers)), self.limiter, self.policies, self.clock, LastUsed()
        )
        self.accounts = ManageAccounts(changes, self.policies)
        self.members = ManageMembers(changes, self.policies)
        self.create = CreateKey(changes, self.policies, keeper)
        self.copy = CopyKey(changes, self.policies, keeper)
        self._rotate = RotateKey(changes, self.policies, keeper)
        self.states = SetKeyState(changes)
        self.read = ReadAccount(self.registry, self.limiter, ledger, self.policies, self.clock)
        self.record = RecordUsage(ledger, Settle(ledger, self.limiter, self.policies), self.policies, self.clock)

    async def account(self, account_id: str = "acme", **fields: Any) -> str:
        """Make an account."""
        return (await self.accounts.create(CALLER, NewAccount(account_id=account_id, **fields))).account_id

    async def key(self, account_id: str = "acme", **fields: Any) -> tuple[Key, str]:
        """Make a key; returns it and its secret."""
        return await self.create(CALLER, NewKey(account_id=account_id, **fields))

    async def rotate(self, caller: Caller, key_id: str, overlap: int) -> tuple[Key, str]:
        """Rotate a key; returns it and its new secret."""
        return (await self._rotate(caller, key_id, overlap)).result

    async def check(self, secret: str, **asked: Any) -> Verdict:
        """Check a key."""
        return await self.check_key(CheckQuery(key=secret, **asked), CALLER)

    async def told(self, secret: str, **asked: Any) -> str:
        """Check a key and return the name of the reason."""
        return (await self.check(secret, **asked)).reason.name

    async def state(self, key: Key, state: KeyState) -> None:
        """Set a key's state."""
        await self.states(CALLER, key.key_id, state, "Change", "")
