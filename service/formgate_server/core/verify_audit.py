"""Whether an account's audit trail is as it was written: every row in its place, none altered, none missing.

What this can not see: an end cut off together with the account's head of the chain, or what somebody wrote who had the
key. Both take the database and the pepper; an export kept elsewhere shows them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Collection, Sequence
from dataclasses import dataclass, field

from formgate_server.core.audit import FIRST, AuditKeys, linked
from formgate_server.core.ports import AuditRow

_MOST_MOVED = 64


@dataclass(slots=True)
class Findings:
    """What was found wrong, by sequence number, and how many rows are sound."""

    sound: int = 0
    altered: list[int] = field(default_factory=list)
    """Rows whose content, place or MAC is not what was written: of rows that changed places, all.

    Also the row behind one whose MAC was altered: nothing shows any more what it was chained to.
    """
    missing: list[int] = field(default_factory=list)
    unchecked: list[int] = field(default_factory=list)
    """Rows that can not be checked: their key is not at hand, or they were written before there was a chain."""

    @property
    def tampered(self) -> bool:
        """Whether something is known to be wrong."""
        return bool(self.altered or self.missing)

    @property
    def intact(self) -> bool:
        """Whether every row is known to be there, and as it was written: what can not be checked is not."""
        return not self.tampered and not self.unchecked


async def verify(
    rows: AsyncIterable[AuditRow], newest: int, keys: Sequence[AuditKeys], used: Collection[str]
) -> Findings:
    """Verify an account's ``rows``, oldest first; ``newest``: the sequence number that its head has reached.

    ``used`` are the ids of all keys that ever signed here: a row that names another was not written by a server.
    """
    findings = Findings()
    # The MACs to which the next row may be chained: that of the row before it or, where those before it are not what
    # was written, of any of them: they may have changed places. Empty: what it is chained to is gone.
    before = [FIRST]
    expected = 1
    signed = False
    async for row in rows:
        if row.sequence > expected:
            findings.missing.extend(range(expected, row.sequence))
            before = []
        signed = signed or bool(row.mac)
        good = _good(row, before, keys, used) if signed else None
        if good is None:
            findings.unchecked.append(row.sequence)
        elif good:
            findings.sound += 1
        else:
            findings.altered.append(row.sequence)
        before = [*before[-_MOST_MOVED:], row.mac] if good is False else [row.mac or FIRST]
        expected = row.sequence + 1
    findings.missing.extend(range(expected, newest + 1))
    return findings


def _good(row: AuditRow, before: Sequence[bytes], keys: Sequence[AuditKeys], used: Collection[str]) -> bool | None:
    """Tell whether a row, one at or behind the first that is signed, is chained to one of these; None: who knows."""
    if not row.mac or row.mac_key_id not in used:
        return False  # its MAC was taken away (rows that never had one stand before those that do), or made up
    told = [
        each.verifies(linked(mac, row.sequence, row.event), row.mac, row.mac_key_id) for mac in before for each in keys
    ]
    return True if True in told else False if False in told else None
