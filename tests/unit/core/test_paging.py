"""Listings page by page: everything once and in order, however large the things and the pages."""

from __future__ import annotations

import pytest

from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.paging import HEAVIEST_PAGE, Page, page
from formgate_server.core.ports import Cursor

Row = tuple[int, str]


async def pages(rows: list[Row], size: int) -> list[Page[Row]]:
    """Read a listing to its end."""

    async def fetch(after: Cursor | None, most: int) -> list[Row]:
        assert most <= 101  # so that no more than a page of the largest is in memory
        return [row for row in rows if after is None or row[0] > after.create_time][:most]

    read: list[Page[Row]] = []
    token = ""
    while not read or token:
        read.append(await page(fetch, lambda row: Cursor(row[0], "id"), ("rows",), size, token))
        token = read[-1].next_token
    return read


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 201, 350])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 350, 5_000])
async def test_every_row_once_and_in_order(count: int, size: int) -> None:
    """Each page but the last is full, and the last says that it is; 0 means 100, above 1,000 is 1,000."""
    rows = [(number, "x") for number in range(count)]
    read = await pages(rows, size)
    assert [row for each in read for row in each.rows] == rows
    full = min(size or 100, 1_000)
    assert [len(each.rows) for each in read[:-1]] == [full] * (max(count - 1, 0) // full)


async def test_a_page_of_large_rows_ends_sooner() -> None:
    """No page is heavier than it may be, unless one row alone is, and none is empty."""
    rows = [(number, "x" * size) for number, size in enumerate([400_000] * 5 + [3_000_000] * 2 + [10] * 300)]
    read = await pages(rows, 1_000)
    assert [row for each in read for row in each.rows] == rows
    assert [len(each.rows) for each in read] == [2, 2, 1, 1, 1, 300]
    assert all(len(each.rows) == 1 or len(repr(each.rows)) < HEAVIEST_PAGE * 1.1 for each in read)


async def test_a_token_of_another_listing() -> None:
    """It is refused: it would go on in the wrong place."""
    (first, *_) = await pages([(1, ""), (2, "")], 1)

    async def fetch(_after: Cursor | None, _most: int) -> list[Row]:
        return []

    with pytest.raises(InvalidArgumentError):
        await page(fetch, lambda row: Cursor(row[0], "id"), ("others",), 1, first.next_token)
