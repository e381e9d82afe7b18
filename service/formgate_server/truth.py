"""The database and the secrets that its rows depend on: opened, and seen to fit together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import structlog
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from formgate_server.backends import UnfitRedisError
from formgate_server.core.errors import UnavailableError
from formgate_server.core.secrets import TOKEN_PREFIX, Peppers, new_secret
from formgate_server.policies.policy import PolicyError
from formgate_server.settings import Settings
from formgate_server.storage.data_folder import DataFolder, DataFolderError, read_keys
from formgate_server.storage.sealer import AesSealer
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.fingerprints import PEPPER, SEALING_KEY, Fingerprints, Stored
from formgate_server.storage.sql.parts import Parts as DatabaseParts
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.postgres import SMALLEST_POOL
from formgate_server.wire.followed import UnfitFileError

_log = structlog.get_logger("formgate.truth")

_REFUSALS = (PolicyError, DataFolderError, UnfitDatabaseError, UnfitFileError, UnfitRedisError)


class StartError(Exception):
    """Why the server can not start, and what to do about it."""


@contextmanager
def explained() -> Iterator[None]:
    """Raise StartError for whatever keeps a server from starting."""
    try:
        yield
    except UnavailableError as error:
        raise StartError(f"{error.message} {error.detail}".rstrip()) from error
    except (*_REFUSALS, OSError) as error:
        raise StartError(str(error)) from error
    except DBAPIError as error:  # such as: permission denied for schema public
        message = f"the database refuses: {error.orig}"
        raise StartError(message) from error


class SystemClock:
    """This machine's clock."""

    def now(self) -> int:
        """See ``Clock``."""
        return time.time_ns() // 1_000


class Truth(NamedTuple):
    """The database, brought to this version, and the secrets that its rows depend on."""

    database: Database
    peppers: tuple[bytes, ...]
    sealing_keys: tuple[bytes, ...]
    manager_token: str | None = None


async def embedded(stack: AsyncExitStack, settings: Settings, kind: Callable[[DatabaseParts], Database]) -> Truth:
    """Open the embedded default's folder: what is missing there is made, what is older is brought to this version."""
    folder = stack.enter_context(closing(DataFolder(settings.data)))
    peppers = folder.peppers() if settings.pepper_file is None else read_keys(settings.pepper_file)
    url = folder.database_url()
    await migrate.upgrade(url)
    database = open_database(url, kind=kind)
    stack.push_async_callback(database.close)
    await _check_secret_keys(database, PEPPER, Peppers(peppers).ids, settings.pepper_file or folder.pepper_file)
    sealing_key_file = settings.sealing_key_file or folder.sealing_key_file
    if settings.sealing_key_file is None and not sealing_key_file.exists():
        await _check_secret_keys(database, SEALING_KEY, (), sealing_key_file)  # before another is made
    sealing_keys = folder.sealing_keys() if settings.sealing_key_file is None else read_keys(sealing_key_file)
    await _check_secret_keys(database, SEALING_KEY, AesSealer(sealing_keys).ids, sealing_key_file)
    return Truth(database, peppers, sealing_keys, folder.manager_token(lambda: new_secret(TOKEN_PREFIX)))


async def postgresql(stack: AsyncExitStack, settings: Settings, kind: Callable[[DatabaseParts], Database]) -> Truth:
    """Open PostgreSQL, which many share: nothing is made here, and nothing there is changed. Raises StartError."""
    assert settings.database_url is not None  # noqa: S101 - it is why this is called
    if settings.redis_url is None:
        message = (
            "FORMGATE_DATABASE_URL asks for FORMGATE_REDIS_URL: several servers may share this database, and their"
            " limits hold, and a revoked key ends, only where they share their counters, too"
        )
        raise StartError(message)
    pepper_file, sealing_key_file = given(settings, "pepper_file"), given(settings, "sealing_key_file")
    peppers, sealing_keys = read_keys(pepper_file), read_keys(sealing_key_file)
    database = open_database(settings.database_url.get_secret_value(), pool=settings.database_pool, kind=kind)
    stack.push_async_callback(database.close)
    await migrate.check(database)
    await _check_secret_keys(database, PEPPER, Peppers(peppers).ids, pepper_file)
    await _check_secret_keys(database, SEALING_KEY, AesSealer(sealing_keys).ids, sealing_key_file)
    return Truth(database, peppers, sealing_keys)


def given(settings: Settings, name: str) -> Path:
    """Return a file that must be given with PostgreSQL. Raises StartError."""
    path: Path | None = getattr(settings, name)
    if path is None:
        message = f"FORMGATE_DATABASE_URL asks for FORMGATE_{name.upper()}: all servers need the same one"
        raise StartError(message)
    return path


async def alone(stack: AsyncExitStack, settings: Settings, instead: str) -> Database:
    """Open the database for a command of its own. Raises StartError, and ``instead``, where a server has its folder."""
    if settings.database_url is not None:
        url: str | URL = settings.database_url.get_secret_value()
    else:
        url = stack.enter_context(closing(_folder_alone(settings, instead))).database_url()
    database = open_database(url, pool=SMALLEST_POOL)
    stack.push_async_callback(database.close)
    await migrate.check(database)
    return database


def _folder_alone(settings: Settings, instead: str) -> DataFolder:
    """Lock the embedded default's folder, which must be there. Raises StartError."""
    if not (settings.data / "formgate.db").exists():
        message = f"there is no database {settings.data.absolute() / 'formgate.db'}"
        raise StartError(message)
    try:
        return DataFolder(settings.data)
    except DataFolderError as error:
        message = f"{error}; {instead}"
        raise StartError(message) from error


async def _check_secret_keys(database: Database, name: str, ids: Sequence[str], file: Path) -> None:
    """See to it that every key is there under which something of use is stored. Raises StartError."""
    fingerprints = Fingerprints(database)
    newest = ids[:1]  # under which things are stored from now on
    known = await fingerprints.check(name, newest)
    stored = await fingerprints.stored(name, known.union(ids) - set(newest), SystemClock().now())
    for each, what in sorted(stored.items()):
        if each not in ids:
            message = f"the database holds {what} under {name} {each}, which is not in {file}: put it back"
            raise StartError(message)
    for each in ids[1:]:
        _log.info("an older key is kept", kind=name, id=each, needed_by=str(stored.get(each, Stored(0))))
    await fingerprints.remember(name, newest)
