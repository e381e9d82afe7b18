"""What a database driver raises, translated once into what the core knows. No SQL and no value gets into a message."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from formgate_server.core.errors import AlreadyExistsError, UnavailableError

_TAKEN = {"SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE", "23505"}
_OUR_FAULT = (IntegrityError, NotSupportedError, ProgrammingError)
_STALE_PLAN = "0A000"  # a table was changed under a prepared statement; the next one is prepared anew
_WRONG_VALUE = "22"  # the class of what PostgreSQL can not keep
_WRONG_SQL = "SQLITE_ERROR"  # an OperationalError like any other in the driver, but what it says is "no such table"


@contextmanager
def translated() -> Iterator[None]:
    """Raise AlreadyExistsError for what is there already, UnavailableError where the database does not answer.

    What only a fault of ours can cause (a broken reference, wrong SQL) goes through as it is.
    """
    try:
        yield
    except DBAPIError as error:
        code = _code(error.orig)
        if code in _TAKEN:
            # Without the cause: a driver's own words hold the values.
            raise AlreadyExistsError("There is one with this id already.") from None
        if code == _WRONG_SQL or _is_our_fault(error, code):
            _forget_values(error.orig)
            raise
        raise unavailable(_said(error.orig)) from error
    except sqlite3.Error as error:
        if _code(error) == _WRONG_SQL:
            raise
        raise unavailable(_said(error)) from error
    except asyncpg.SyntaxOrAccessError:
        raise
    except (PoolTimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise unavailable(_said(error)) from error


def _is_our_fault(error: DBAPIError, code: str | None) -> bool:
    if code == _STALE_PLAN:
        return False
    return isinstance(error, _OUR_FAULT) or (code or "").startswith(_WRONG_VALUE)


def _forget_values(error: BaseException | None) -> None:
    """Take the values out of what PostgreSQL says besides its message: Key (account_id)=(acme) is not present."""
    while error is not None:
        if isinstance(error, asyncpg.PostgresError):
            error.detail = error.where = error.internal_query = None
        error = error.__cause__


def _code(cause: BaseException | None) -> str | None:
    """Return the name that SQLite has for an error, or the SQLSTATE that PostgreSQL has."""
    return getattr(cause, "sqlite_errorname", getattr(cause, "sqlstate", None))


def unavailable(detail: str = "") -> UnavailableError:
    """Return what to raise where the database does not answer."""
    return UnavailableError("The database does not answer.", detail=detail)


def _said(cause: BaseException | None) -> str:
    """Return what a database has said, for the log; empty: nothing."""
    if isinstance(cause, sqlite3.Error):
        return f"SQLite: {cause}"  # such as: database or disk is full
    told = getattr(cause, "__cause__", None) or cause  # SQLAlchemy's is of asyncpg's, or asyncpg's own
    if isinstance(told, asyncpg.PostgresError):
        return f"PostgreSQL: {told.message} ({told.sqlstate})"  # its details may hold values
    return ""
