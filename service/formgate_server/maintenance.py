"""What an operator does to a database by a command: upgrade, prune, verify, raise every epoch after a restore."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, closing
from pathlib import Path

from sqlalchemy import URL

from formgate_server.core.prune import OnProgress, Prune
from formgate_server.core.secrets import Peppers
from formgate_server.core.verify_audit import Findings, verify
from formgate_server.settings import Settings
from formgate_server.storage.data_folder import DataFolder, read_keys
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.counters import SqlReservations
from formgate_server.storage.sql.epochs import SqlEpochs
from formgate_server.storage.sql.trail import Trail
from formgate_server.storage.sql.usage import SqlUsageLedger
from formgate_server.truth import StartError, SystemClock, alone, explained, given

_RENEWED_AT_ONCE = 1_000


async def upgrade_database(settings: Settings) -> None:
    """Bring the database to this version. Raises StartError."""
    with explained():
        if settings.database_url is not None:
            await migrate.upgrade(settings.database_url.get_secret_value())
            return
        with closing(DataFolder(settings.data)) as folder:
            if settings.pepper_file is None:
                folder.peppers()  # made before the database: one without the other is taken for a loss
            await migrate.upgrade(folder.database_url())


async def renew_epochs(settings: Settings, on_progress: Callable[[int], None]) -> int:
    """Raise every account's epoch above all that there ever was, and return how many. Raises StartError.

    After a restore, Redis and servers may know of changes that the database has forgotten.
    """
    with explained():
        async with AsyncExitStack() as stack:
            epochs = SqlEpochs(await alone(stack, settings, "stop it first: it holds what the restore has undone"))
            renewed, last = 0, ""
            while account_ids := await epochs.renew(last, _RENEWED_AT_ONCE):
                renewed, last = renewed + len(account_ids), account_ids[-1]
                on_progress(renewed)
            return renewed


async def prune(settings: Settings, batch: int, on_progress: OnProgress | None) -> dict[str, int]:
    """Delete old usage, or only count it where ``on_progress`` is None. Raises StartError where that can not be.

    The embedded default's folder is locked meanwhile: the server that uses it deletes by itself.
    """
    with explained():
        async with AsyncExitStack() as stack:
            database = await alone(stack, settings, "a running server deletes old usage by itself, every hour")
            ledger, epochs, reservations = SqlUsageLedger(database), SqlEpochs(database), SqlReservations(database)
            old = Prune(ledger, epochs, reservations, SystemClock(), settings.keep, batch)
            return await (old.count() if on_progress is None else old(on_progress))


async def verify_audit(settings: Settings, account_id: str | None, retired: Iterable[Path] = ()) -> dict[str, Findings]:
    """Verify the audit trail of an account (None: of all), by account. Raises StartError where it can not be read.

    ``retired``: files of peppers that signed once. It locks nothing and writes nothing; servers may go on meanwhile. An
    account that is not there is left out.
    """
    with explained():
        url, pepper_file, name = _trail_of(settings)
        trail = Trail(url)
        try:
            peppers = [Peppers(read_keys(each)) for each in (pepper_file, *retired)]
            if not await trail.is_ours():
                message = f"{name} is not of this version: `formgate migrate` brings it there"
                raise StartError(message)
            heads = await trail.heads(account_id)
            used = await trail.peppers()
            return {
                account: await verify(trail.rows(account), newest, peppers, used) for account, newest in heads.items()
            }
        finally:
            await trail.close()


def _trail_of(settings: Settings) -> tuple[str | URL, Path, str]:
    """Return the URL of the database, the peppers' file, and what to call the database. Raises StartError."""
    if settings.database_url is not None:
        return settings.database_url.get_secret_value(), given(settings, "pepper_file"), "the database"
    file = settings.data.absolute() / "formgate.db"  # no DataFolder: that locks, and makes what is missing
    if not file.exists():
        message = f"there is no database {file}"
        raise StartError(message)
    url = URL.create("sqlite+aiosqlite", database=str(file))
    return url, settings.pepper_file or file.with_name("pepper"), str(file)
