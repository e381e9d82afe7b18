"""Whether an account's audit trail is as it was written: every row in its place, none altered, none missing.

What this can not see: an end cut off together with the account's head of the chain, or what somebody wrote who had the
key. Both take the database and the pepper; an export kept elsewhere shows them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
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
    """Rows that can not be checked: their key is not there any more, or they were written before there was a chain."""

    @property
    def intact(self) -> bool:
        """Whether nothing is known to be wrong."""
        return not self.altered and not self.missing


async def verify(rows: AsyncIterable[AuditRow], newest: int, keys: AuditKeys) -> Findings:
    """Verify an account's ``rows``, oldest first; ``newest``: the sequence number that its head has reached."""
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
        good = _good(row, before, keys) if signed else None
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


def _good(row: AuditRow, before: Sequence[bytes], keys: AuditKeys) -> bool | None:
    """Tell whether a row, one at or behind the first that is signed, is chained to one of these; None: who knows."""
    if not row.mac:
        return False  # its MAC was taken away: rows that never had one stand before those that do
    told = [keys.verifies(linked(mac, row.sequence, row.event), row.mac, row.mac_key_id) for mac in before]
    return None if None in told or not told else True in told
