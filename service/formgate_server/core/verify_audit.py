"""Whether an account's audit trail is as it was written: every row in its place, none altered, none missing.

What this can not see: an end cut off together with the account's head of the chain, or what somebody wrote who had the
key. Both take the database and the pepper; an export kept elsewhere shows them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass, field

from formgate_server.core.audit import FIRST, AuditKeys, linked
from formgate_server.core.ports import AuditRow


@dataclass(slots=True)
class Findings:
    """What was found wrong, by sequence number, and how many rows are sound."""

    sound: int = 0
    altered: list[int] = field(default_factory=list)
    """Rows whose content, place or MAC is not what was written. Rows that changed places are here both."""
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
    previous: bytes | None = FIRST
    expected = 1
    async for row in rows:
        if row.sequence > expected:
            findings.missing.extend(range(expected, row.sequence))
            previous = None  # what this row is chained to is gone: its own MAC can not be checked
        _judge(row, previous, keys, findings)
        previous, expected = row.mac, row.sequence + 1
    findings.missing.extend(range(expected, newest + 1))
    return findings


def _judge(row: AuditRow, previous: bytes | None, keys: AuditKeys, findings: Findings) -> None:
    good = None
    if previous is not None and row.mac:
        good = keys.verifies(linked(previous, row.sequence, row.event), row.mac, row.mac_key_id)
    if good is None:
        findings.unchecked.append(row.sequence)
    elif good:
        findings.sound += 1
    else:
        findings.altered.append(row.sequence)
