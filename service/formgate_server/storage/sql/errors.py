"""What a database driver raises, translated once into what the core knows. No SQL and no value gets into a message."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from formgate_server.core.errors import AlreadyExistsError, UnavailableError

_UNIQUE = {"SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE", "23505"}
_OUR_FAULT = (IntegrityError, NotSupportedError, ProgrammingError)


@contextmanager
def translated() -> Iterator[None]:
    """Raise AlreadyExistsError for what is there already, UnavailableError where the database does not answer.

    What only a fault of ours can cause (a broken reference, wrong SQL) goes through as it is.
    """
    try:
        yield
    except DBAPIError as error:
        if _is_taken(error):
            # Without the cause: a driver's own words hold the values.
            raise AlreadyExistsError("There is one with this id already.") from None
        if isinstance(error, _OUR_FAULT):
            raise
        raise _unavailable() from error
    except (sqlite3.Error, PoolTimeoutError) as error:
        raise _unavailable() from error


def _unavailable() -> UnavailableError:
    return UnavailableError("The database does not answer.")


def _is_taken(error: DBAPIError) -> bool:
    cause = error.orig
    return getattr(cause, "sqlite_errorname", getattr(cause, "sqlstate", None)) in _UNIQUE
