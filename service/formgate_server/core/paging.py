"""Listings page by page: a token says where to go on, and belongs to the listing that gave it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from formgate_server.core import fields
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.ports import Cursor

T = TypeVar("T")

USUAL_PAGE = 100
LARGEST_PAGE = 1_000
HEAVIEST_PAGE = 1_000_000
"""How much a page may hold, about in bytes: a client takes 4 MiB, unless it is told otherwise."""

_AT_ONCE = 100


class Page(NamedTuple, Generic[T]):
    """Some rows of a listing; ``next_token`` empty: there are no more."""

    rows: list[T]
    next_token: str


async def page(
    fetch: Callable[[Cursor | None, int], Awaitable[list[T]]],
    cursor_of: Callable[[T], Cursor],
    listing: tuple[object, ...],
    size: int,
    token: str,
) -> Page[T]:
    """Return the page after ``token`` of what ``fetch(after, most)`` lists; ``listing`` tells it from others.

    A page of large rows ends before it has ``size`` of them: no answer may be too large for its caller to take.
    """
    fields.number(size, "page_size", largest=2**31 - 1)
    most = min(size or USUAL_PAGE, LARGEST_PAGE)
    mark = hashlib.sha256(repr(listing).encode()).hexdigest()[:8]
    rows: list[T] = []
    after, weight, ended = _read(token, mark), 0, False
    while not ended:
        wanted = min(most - len(rows), _AT_ONCE)
        some = await fetch(after, wanted + 1)  # one more tells whether there are more
        for row in some[:wanted]:
            weight += len(repr(row))
            if rows and weight > HEAVIEST_PAGE:
                return Page(rows, _write(cursor_of(rows[-1]), mark))
            rows.append(row)
        if len(some) <= wanted:
            return Page(rows, "")
        after, ended = cursor_of(rows[-1]), len(rows) == most
    return Page(rows, _write(cursor_of(rows[-1]), mark))


def _write(cursor: Cursor, mark: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, *cursor]).encode()).decode()


def _read(token: str, mark: str) -> Cursor | None:
    if not token:
        return None
    try:
        match json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True)):
            case [str(given), int(create_time), str(id_)] if given == mark:
                if abs(create_time) <= fields.LARGEST and fields.is_identifier(id_):
                    return Cursor(create_time, id_)
    except (ValueError, RecursionError, binascii.Error):
        pass
    raise InvalidArgumentError("page_token", "is not one that this listing gave; begin again without it")
