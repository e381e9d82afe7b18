"""Where the primary is, by what most sentinels say."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from formgate_server.storage.redis.base import OnState
from formgate_server.storage.redis.meeting import NotReadyError, Options, ask_once
from formgate_server.storage.redis.single import Redis
from formgate_server.storage.redis.url import Address

_POLL = 1.0
"""Seconds between looks at whether another primary has taken over: one that is cut off does not know it itself."""


class Sighting(NamedTuple):
    """What a sentinel says: the newest configuration wins, and of two the one that is just being made."""

    config_epoch: int
    is_switching: bool
    address: Address


class RedisBehindSentinel(Redis):
    """The primary of a service that Sentinel watches."""

    def __init__(self, options: Options, on_state: OnState) -> None:
        self._at: Address | None = None
        super().__init__(options, on_state, self._locate)
        self._poll = self._loop.create_task(self._poll_sentinels())

    async def close(self) -> None:
        """As RedisClient says."""
        self._poll.cancel()
        await asyncio.gather(self._poll, return_exceptions=True)
        await super().close()

    async def _locate(self) -> Address:
        self._at = await find_primary(self._options)
        return self._at

    async def _poll_sentinels(self) -> None:
        while True:
            await asyncio.sleep(_POLL)
            try:
                address = await find_primary(self._options)
            except NotReadyError:
                continue
            if self._at is not None and address != self._at:
                for line in self._lines():
                    line.renew(f"{address} is the primary now")


async def find_primary(options: Options) -> Address:
    """Return the primary's address, by the newest configuration among most sentinels, or those that answer in time.

    Raises NotReadyError when none knows it.
    """
    addresses = options.target.addresses
    sightings, reasons = [], set()
    asked = [asyncio.create_task(_ask(address, options)) for address in addresses]
    try:
        for answer in asyncio.as_completed(asked, timeout=options.timeout / 2):
            try:
                sightings.append(await answer)
            except TimeoutError:
                break
            except (OSError, NotReadyError) as error:
                reasons.add(str(error))
            except (KeyError, TypeError, ValueError):
                reasons.add("it does not answer as a sentinel does")
            if len(sightings) > len(addresses) // 2:
                break
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    if not sightings:
        detail = "; ".join(sorted(reasons)) or "none answers"
        raise NotReadyError(f"no sentinel knows the primary of {options.target.service}: {detail}")
    return max(sightings).address


async def _ask(address: Address, options: Options) -> Sighting:
    service = options.target.service
    # The second says earlier than the first that a replica has been promoted.
    facts, where = await ask_once(
        address,
        options,
        options.target.sentinel_login,
        ("SENTINEL", "MASTER", service),
        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
    )
    if not where:
        raise NotReadyError(f"{address} does not know {service} at present")
    named = dict(zip(facts[::2], facts[1::2], strict=False))
    before = (named[b"ip"], named[b"port"])
    host, port = where
    return Sighting(int(named[b"config-epoch"]), (host, port) != before, Address(host.decode(), int(port)))
