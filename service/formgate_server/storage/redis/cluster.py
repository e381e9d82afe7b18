"""A Redis Cluster: which primary has which slot, kept up to date by what goes wrong."""

from __future__ import annotations

import asyncio
import random
from binascii import crc_hqx
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

from formgate_server.storage.redis.base import Client, OnState
from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.line import Line
from formgate_server.storage.redis.meeting import NotReadyError, Options, ask_once
from formgate_server.storage.redis.url import Address

_SLOTS = 16_384
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5


def slot_of(tag: str) -> int:
    """Return the slot of the keys with this hash tag."""
    return crc_hqx(tag.encode(), 0) % _SLOTS


class Node:
    """A primary, or what was one a moment ago, and the lines to it."""

    def __init__(self, address: Address, lines: list[Line]) -> None:
        self.address = address
        self.lines = lines

    @property
    def up(self) -> bool:
        """Whether requests reach it."""
        return all(line.up for line in self.lines)

    def line(self, number: int) -> Line:
        """Return the line for a slot, always the same, so that what concerns an account is run in order."""
        return self.lines[number % len(self.lines)]


class RedisCluster(Client):
    """The primaries of a cluster. A request goes to the one that has its hash tag's slot."""

    def __init__(self, options: Options, on_state: OnState) -> None:
        super().__init__(options, on_state)
        self._nodes: dict[Address, Node] = {}
        self._slots: list[Node | None] = [None] * _SLOTS
        self._leaving: list[Line] = []
        """Lines to what is no primary any more: nothing is sent over them, and what was is still answered."""
        self._why = "no node has told which slots there are"
        self._first_map = asyncio.Event()
        self._stale = asyncio.Event()
        self._stale.set()
        self._keeper = self._loop.create_task(self._keep_map())

    async def close(self) -> None:
        """As RedisClient says."""
        self._keeper.cancel()
        await asyncio.gather(self._keeper, return_exceptions=True)
        self._why = "closed"
        self._first_map.set()
        self._slots = [None] * _SLOTS
        await super().close()

    def place(self, slot: str) -> object:
        """As RedisClient says: what moves to another node moves by slots."""
        return slot_of(slot)

    def _lines(self) -> list[Line]:
        return [*(line for node in self._nodes.values() for line in node.lines), *self._leaving]

    def _line(self, slot: str | None) -> Line | None:
        number = 0 if slot is None else slot_of(slot)
        node = self._slots[number]
        return None if node is None else node.line(number)

    async def _found_line(self, slot: str | None) -> Line:
        await self._first_map.wait()
        line = self._line(slot)
        if line is None:
            self._stale.set()
            raise StoreUnavailable(self._why)
        return line

    def _redirected(self, error: str, connection: Connection) -> Line | None:
        kind, number, where = error.split(" ")[:3]  # MOVED 3999 127.0.0.1:6381
        host, _, port = where.rpartition(":")
        # An empty host: the one that it was asked at.
        address = Address(host or connection.address.host, int(port))
        node = self._node(address)
        if kind == "MOVED":
            self._slots[int(number)] = node
            self._stale.set()
        return node.line(int(number))

    # The map.

    async def _keep_map(self) -> None:
        """Ask for the map, one at a time, when it may be stale, and again and again while not every slot is served."""
        pause = _FIRST_PAUSE
        while True:
            await self._stale.wait()
            self._stale.clear()
            try:
                self._adopt(await find_primaries(self._known(), self._options))
            except NotReadyError as error:
                self._why = str(error)
            except Exception as error:  # noqa: BLE001 - whatever a server says that none should, it is asked again
                self._why = f"a node told what is no map of slots ({type(error).__name__})"
            # Whether told or not, the first attempt is over, and nobody waits for another.
            self._first_map.set()
            self._judge()
            if self._told:
                pause = _FIRST_PAUSE
            else:
                self._stale.set()
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - so that not all come at once
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _known(self) -> list[Address]:
        """Return the nodes, those first that answer."""
        nodes = list(self._nodes.values())
        random.shuffle(nodes)
        nodes.sort(key=lambda node: not node.up)
        return list(dict.fromkeys([*(node.address for node in nodes), *self._options.target.addresses]))

    def _adopt(self, ranges: list[Range]) -> None:
        slots: list[Node | None] = [None] * _SLOTS
        for first, last, address in ranges:
            slots[first : last + 1] = [self._node(address)] * (last + 1 - first)
        self._slots = slots
        self._why = "no node serves the slot"
        serving = {address for _, _, address in ranges}
        self._leaving = [line for line in self._leaving if line.alive]
        for address in [each for each in self._nodes if each not in serving]:
            for line in self._nodes.pop(address).lines:
                line.close(drain=True)
                self._leaving.append(line)

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            make = partial(Line, partial(_at, address), self._options, self._scripts, self._changed)
            node = self._nodes[address] = Node(address, [make() for _ in range(self._options.connections)])
        return node

    # How it stands.

    def _changed(self, line: Line) -> None:
        if line.up is False:
            self._stale.set()
        self._judge()

    def _judge(self) -> None:
        """Tell whether every slot is served."""
        for node in self._nodes.values():
            for line in node.lines:
                if line.up is False:
                    self._tell(up=False, detail=line.why)
                    return
                if line.up is None:
                    return
        if None in self._slots:
            self._tell(up=False, detail=self._why)
        else:
            self._tell(up=True, detail="connected to every primary")


async def _at(address: Address) -> Address:
    return address


class Range(NamedTuple):
    """The slots from ``first`` to ``last``, and the primary that has them."""

    first: int
    last: int
    primary: Address


async def find_primaries(nodes: Iterable[Address], options: Options) -> list[Range]:
    """Return who has which slots, by the first of these nodes that tells. Raises NotReadyError when none does."""
    reasons = set()
    for address in nodes:
        try:
            async with asyncio.timeout(options.timeout):
                (slots,) = await ask_once(address, options, options.target.login, ("CLUSTER", "SLOTS"))
            if slots:
                return [_range(fields, address) for fields in slots]
            reasons.add(f"{address} has no slots")
        except (OSError, NotReadyError) as error:
            reasons.add(str(error) or f"{address} does not answer")
    raise NotReadyError(f"no node has told which slots there are: {'; '.join(sorted(reasons))}")


def _range(fields: list[Any], asked: Address) -> Range:
    first, last, primary, *_ = fields
    host, port = primary[0], primary[1]
    return Range(first, last, Address(host.decode() if host else asked.host, port))
