"""Whether a tampered audit trail is seen, and which rows are named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from formgate_server.core.audit import FIRST, linked
from formgate_server.core.model import AuditEvent
from formgate_server.core.ports import AuditRow
from formgate_server.core.secrets import Peppers
from formgate_server.core.verify_audit import Findings, verify

OLD = Peppers([b"1" * 32])
KEYS = Peppers([b"2" * 32, b"1" * 32])
NEW = Peppers([b"2" * 32])


def event(number: int) -> AuditEvent:
    """Make an event."""
    return AuditEvent(
        account_id="acme",
        create_time=number,
        action="UpdateKey",
        target=f"keys/k{number}",
        token_id="t1",
        before={"display_name": "é"},
        after={"display_name": str(number)},
    )


def chain(count: int, *, unsigned: int = 0, old: int = 0) -> list[AuditRow]:
    """Make a sound trail; its first rows have no MAC, the next were signed under the old key."""
    rows: list[AuditRow] = []
    previous = FIRST
    for number in range(1, count + 1):
        if number <= unsigned:
            rows.append(AuditRow(number, event(number), b"", ""))
            continue
        previous, key_id = (OLD if number <= unsigned + old else NEW).mac(linked(previous, number, event(number)))
        rows.append(AuditRow(number, event(number), previous, key_id))
    return rows


async def found(
    rows: Sequence[AuditRow], newest: int | None = None, keys: Peppers = KEYS, more: Sequence[Peppers] = ()
) -> Findings:
    """Verify a trail."""

    async def each() -> AsyncIterator[AuditRow]:
        for row in rows:
            yield row

    used = (*OLD.ids, *NEW.ids)
    return await verify(each(), rows[-1].sequence if newest is None else newest, [keys, *more], used)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
async def test_a_sound_trail(count: int) -> None:
    """Nothing is wrong with a trail as it was written, also by two keys."""
    assert await found(chain(count, old=count // 2), count) == Findings(sound=count)


@pytest.mark.parametrize(
    "change",
    [
        {"account_id": "other"},
        {"create_time": 0},
        {"action": "RevokeKey"},
        {"target": "keys/k9"},
        {"token_id": "t2"},
        {"actor": "eve"},
        {"actor_ip": "10.0.0.1"},
        {"before": None},
        {"after": {"display_name": "x"}},
        {"note": "x"},
    ],
)
@pytest.mark.parametrize("place", [1, 3, 5])
async def test_an_altered_row(place: int, change: dict[str, object]) -> None:
    """A row with any field altered is named, and no other."""
    rows = chain(5)
    row = rows[place - 1]
    rows[place - 1] = row._replace(event=replace(row.event, **change))  # type: ignore[arg-type]
    assert await found(rows) == Findings(sound=4, altered=[place])


async def test_an_altered_mac() -> None:
    """A MAC altered names its row, and the one behind, of which nothing shows any more what it was chained to."""
    rows = chain(5)
    rows[2] = rows[2]._replace(mac=b"x" * 32)
    assert await found(rows) == Findings(sound=3, altered=[3, 4])


async def test_a_mac_taken_away() -> None:
    """A row whose MAC was taken away does not pass for one that was written before there was a chain."""
    rows = chain(5)
    rows[2] = rows[2]._replace(event=event(9), mac=b"", mac_key_id="")
    assert (await found(rows)).altered == [3, 4]


async def test_the_first_macs_taken_away() -> None:
    """Were all MACs taken away up to a row, the row behind it shows that they were there."""
    rows = chain(5)
    rows[:3] = [row._replace(mac=b"", mac_key_id="") for row in rows[:3]]
    findings = await found(rows)
    assert (findings.unchecked, findings.altered, findings.intact) == ([1, 2, 3], [4], False)


@pytest.mark.parametrize("gone", [[1], [3], [2, 3], [1, 2, 3, 4], [2, 4]])
async def test_missing_rows(gone: list[int]) -> None:
    """Missing rows are named; the row behind a gap can not be checked, those behind it can."""
    rows = [row for row in chain(6) if row.sequence not in gone]
    findings = await found(rows)
    behind = sorted({number + 1 for number in gone} - set(gone))
    assert (findings.missing, findings.unchecked, findings.altered) == (gone, behind, [])
    assert findings.sound == 6 - len(gone) - len(behind)
    assert not findings.intact


@pytest.mark.parametrize(("one", "other"), [(1, 2), (2, 3), (2, 5), (1, 6), (5, 6)])
async def test_reordered_rows(one: int, other: int) -> None:
    """Rows that changed places are named, both; of neighbours, no others: the row behind is chained to one of them."""
    rows = chain(7)
    first, second = rows[one - 1], rows[other - 1]
    rows[one - 1], rows[other - 1] = second._replace(sequence=one), first._replace(sequence=other)
    findings = await found(rows)
    behind = [] if other == one + 1 else sorted({one + 1, other + 1})
    assert findings.altered == sorted({one, other, *behind})
    assert findings.sound == 7 - len(findings.altered)


async def test_a_row_put_twice() -> None:
    """A row that stands in another's place is named."""
    rows = chain(4)
    rows[2] = rows[1]._replace(sequence=3)
    assert 3 in (await found(rows)).altered


async def test_an_end_cut_off() -> None:
    """Rows cut off at the end are named, where the head still tells how many there were."""
    assert await found(chain(5)[:3], newest=5) == Findings(sound=3, missing=[4, 5])
    assert await found([], newest=2) == Findings(missing=[1, 2])


async def test_an_end_cut_off_with_the_head() -> None:
    """What can not be seen: an end cut off together with the head; the manual says so."""
    assert await found(chain(5)[:3], newest=3) == Findings(sound=3)


async def test_a_key_that_is_gone() -> None:
    """Rows whose key is not at hand are not called sound, nor altered, nor is the trail intact; with it they are."""
    findings = await found(chain(6, old=4), keys=NEW)
    assert findings == Findings(sound=2, unchecked=[1, 2, 3, 4])
    assert (findings.intact, findings.tampered) == (False, False)
    assert await found(chain(6, old=4), keys=NEW, more=[OLD]) == Findings(sound=6)


@pytest.mark.parametrize("keys", [KEYS, NEW])
async def test_a_key_that_never_was(keys: Peppers) -> None:
    """A row that was altered, and names a key that never signed here, is altered: it can not hide as unchecked."""
    rows = chain(5)
    rows[2] = rows[2]._replace(event=event(9), mac_key_id="f" * 16)
    assert (await found(rows, keys=keys)).altered == [3]
    mac, key_id = Peppers([b"3" * 32]).mac(linked(rows[1].mac, 3, event(9)))
    rows[2] = AuditRow(3, event(9), mac, key_id)
    assert (await found(rows, keys=keys)).altered == [3, 4]


async def test_a_key_that_is_gone_hides_no_more_than_it_must() -> None:
    """A row altered to name a key that did sign once, and is not at hand, is unchecked: not sound, nor intact."""
    rows = chain(5)
    rows[2] = rows[2]._replace(event=event(9), mac_key_id=OLD.ids[0])
    findings = await found(rows, keys=NEW)
    assert (findings.unchecked, findings.intact) == ([3], False)
    assert (await found(rows, keys=NEW, more=[OLD])).altered == [3]


async def test_rows_from_before_the_chain() -> None:
    """Rows that were written before there was a chain can not be checked; those behind them can."""
    assert await found(chain(6, unsigned=4)) == Findings(sound=2, unchecked=[1, 2, 3, 4])
    rows = chain(6, unsigned=4)
    rows[4] = rows[4]._replace(event=event(9))
    assert await found(rows) == Findings(sound=1, altered=[5], unchecked=[1, 2, 3, 4])


async def test_whoever_has_no_key_writes_no_row() -> None:
    """A row that was signed by another key, or put in, is named."""
    rows = chain(3)
    forged = Peppers([b"3" * 32])
    mac, _ = forged.mac(linked(rows[-1].mac, 4, event(4)))
    rows.append(AuditRow(4, event(4), mac, KEYS.ids[0]))
    assert await found(rows) == Findings(sound=3, altered=[4])
