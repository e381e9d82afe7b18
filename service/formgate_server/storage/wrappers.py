"""Ports around ports: what bootstrap puts before a store."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from formgate_server.core.errors import UnavailableError

if TYPE_CHECKING:
    from formgate_server.core.ports import KeyStore
    from formgate_server.core.secrets import Peppers
    from formgate_server.core.verdict import KeyRecord

_Outcome: TypeAlias = "KeyRecord | UnavailableError | None"


class PepperedKeyStore:
    """A KeyStore by the SHA-256 of secrets over one by what is stored of them."""

    def __init__(self, store: KeyStore, peppers: Peppers) -> None:
        self._store = store
        self._peppers = peppers

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        stored = [each for digest in digests for each in self._peppers.digests_of(digest)]
        return await self._store.find(stored, at_least=at_least)


class CachedKeyStore:
    """A KeyStore that remembers what it found, until a check asks for a higher epoch (docs/adr/0001).

    Unknown digests are not remembered. Entries leave in the order in which they came: a hit costs no bookkeeping, and a
    key in use comes back by one read for every ``most`` others that came in.

    Reads of one secret are shared as far as the port allows. A read under way when a call comes in may have missed what
    changed before that call: it will do only if it finds a high enough epoch, never if it finds nothing. Whoever has
    waited for such a read in vain shares the next one: that began after all who waited had called.
    """

    def __init__(self, store: KeyStore, most: int = 200_000) -> None:
        self._store = store
        self._most = most
        self._records: OrderedDict[bytes, KeyRecord] = OrderedDict()
        self._reads: dict[bytes, asyncio.Future[_Outcome]] = {}

    @property
    def size(self) -> int:
        """How many keys are at hand."""
        return len(self._records)

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """See ``KeyCache``."""
        return self._records.get(digests[0])

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        digest = digests[0]  # the newest pepper's: it stands for the secret, whichever pepper the key is stored under
        record = self._records.get(digest)
        if record is not None and record.epoch >= at_least:
            return record
        earlier = self._reads.get(digest)
        if earlier is not None:
            outcome = await asyncio.shield(earlier)
            if outcome is not None and not isinstance(outcome, UnavailableError) and outcome.epoch >= at_least:
                return outcome
            later = self._reads.get(digest)
            if later is not None:
                return _result(await asyncio.shield(later))
        return await self._read(digests)

    async def _read(self, digests: Sequence[bytes]) -> KeyRecord | None:
        read: asyncio.Future[_Outcome] = asyncio.get_running_loop().create_future()
        self._reads[digests[0]] = read
        outcome: _Outcome = UnavailableError("The read was broken off; the same call may go through now.")
        try:
            outcome = await self._store.find(digests)
            self._remember(digests[0], outcome)
        except UnavailableError as error:
            outcome = error
        finally:
            # Also when this call is cancelled: those who wait for the read may not wait for ever.
            del self._reads[digests[0]]
            read.set_result(outcome)
        return _result(outcome)

    def _remember(self, digest: bytes, record: KeyRecord | None) -> None:
        self._records.pop(digest, None)
        if record is not None:
            self._records[digest] = record
            if len(self._records) > self._most:
                self._records.popitem(last=False)


def _result(outcome: _Outcome) -> KeyRecord | None:
    if isinstance(outcome, UnavailableError):
        raise outcome
    return outcome
