"""Puts the server together: the only module that knows every other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from formgate_server.core.authenticate import Authenticate
from formgate_server.core.changes import Changes
from formgate_server.core.check_key import CheckKey
from formgate_server.core.copy_key import CopyKey
from formgate_server.core.create_key import CreateKey
from formgate_server.core.delete_key import DeleteKey
from formgate_server.core.errors import UnavailableError
from formgate_server.core.keeper import Keeper
from formgate_server.core.last_used import LastUsed
from formgate_server.core.manage_accounts import ManageAccounts
from formgate_server.core.manage_members import ManageMembers
from formgate_server.core.manage_tokens import ManageTokens
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Clock, KeyStore, Limiter, Registry, UsageLedger
from formgate_server.core.read_account import ReadAccount
from formgate_server.core.read_keys import ReadKeys
from formgate_server.core.record_usage import RecordUsage
from formgate_server.core.reveal_key import RevealKey
from formgate_server.core.rotate_key import RotateKey
from formgate_server.core.secrets import TOKEN_PREFIX, Peppers, new_secret
from formgate_server.core.set_key_state import SetKeyState
from formgate_server.core.update_key import UpdateKey
from formgate_server.core.verify_audit import Findings, verify
from formgate_server.policies.policy import PolicyError, load
from formgate_server.rpc.accounts import AccountServicer
from formgate_server.rpc.authorization import AuthorizationServicer
from formgate_server.rpc.dispatch import Dispatch
from formgate_server.rpc.keys import KeyServicer
from formgate_server.rpc.methods import methods
from formgate_server.settings import Settings
from formgate_server.storage.data_folder import DataFolder, DataFolderError, read_keys
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.sealer import AesSealer
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.counters import SqlReservations
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.fingerprints import PEPPER, SEALING_KEY, Fingerprints, Stored
from formgate_server.storage.sql.keys import SqlKeyStore
from formgate_server.storage.sql.registry import SqlRegistry
from formgate_server.storage.sql.trail import Trail
from formgate_server.storage.sql.usage import SqlUsageLedger
from formgate_server.storage.wrappers import CachedKeyStore
from formgate_server.wire.grpcio import GrpcServer
from formgate_server.wire.http import HttpServer

_log = structlog.get_logger("formgate.bootstrap")

_BEATS_A_FLUSH = 5
_STUCK_SECONDS = 10.0
_SHORTEST_TOKEN, _LONGEST_TOKEN = 32, 256


class StartError(Exception):
    """Why the server can not start, and what to do about it."""


class Addresses(NamedTuple):
    """Where a server listens, HOST:PORT each."""

    grpc: str
    http: str


class SystemClock:
    """This machine's clock."""

    def now(self) -> int:
        """See ``Clock``."""
        return time.time_ns() // 1_000


async def upgrade_database(settings: Settings) -> None:
    """Bring the database to this version. Raises StartError."""
    try:
        with closing(DataFolder(settings.data)) as folder:
            if settings.pepper_file is None:
                folder.peppers()  # made before the database: one without the other is taken for a loss
            await migrate.upgrade(folder.database_url())
    except (DataFolderError, UnavailableError) as error:
        raise StartError(str(error)) from error


async def verify_audit(settings: Settings, account_id: str | None, retired: Iterable[Path] = ()) -> dict[str, Findings]:
    """Verify the audit trail of an account (None: of all), by account. Raises StartError where it can not be read.

    ``retired``: files of peppers that signed once. It locks nothing and writes nothing; a server may serve the same
    folder. An account that is not there is left out.
    """
    file = settings.data.absolute() / "formgate.db"  # no DataFolder: that locks, and makes what is missing
    if not file.exists():
        message = f"there is no database {file}"
        raise StartError(message)
    trail = Trail(file)
    try:
        files = [settings.pepper_file or file.with_name("pepper"), *retired]
        peppers = [Peppers(read_keys(each)) for each in files]
        if await trail.revision() != migrate.head():
            message = f"{file} is not of this version: `formgate migrate` brings it there"
            raise StartError(message)
        heads = await trail.heads(account_id)
        used = await trail.peppers()
        return {account: await verify(trail.rows(account), newest, peppers, used) for account, newest in heads.items()}
    except (DataFolderError, UnavailableError) as error:
        raise StartError(str(error)) from error
    finally:
        await trail.close()


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Addresses]:
    """Serve while the block runs; afterwards drain. Raises StartError."""
    async with AsyncExitStack() as stack:
        try:
            addresses = await _start(stack, settings)
        except (PolicyError, DataFolderError, UnavailableError, OSError) as error:
            raise StartError(str(error)) from error
        yield addresses


class _Stores(NamedTuple):
    registry: Registry
    keys: KeyStore
    usage: UsageLedger
    limiter: Limiter


async def _start(stack: AsyncExitStack, settings: Settings) -> Addresses:
    """Start everything; what is put on the stack last ends first: calls are drained before the stores close."""
    policies = load(settings.policy_dir)
    folder = stack.enter_context(closing(DataFolder(settings.data)))
    peppers = Peppers(folder.peppers() if settings.pepper_file is None else read_keys(settings.pepper_file))
    clock = SystemClock()
    database = await _open_database(stack, folder)
    pepper_file = settings.pepper_file or folder.pepper_file
    await _check_secret_keys(database, PEPPER, peppers.ids, pepper_file, clock)
    sealer = AesSealer(await _sealing_keys(settings, folder, database, clock))
    sealing_key_file = settings.sealing_key_file or folder.sealing_key_file
    await _check_secret_keys(database, SEALING_KEY, sealer.ids, sealing_key_file, clock)
    stores = _stores(stack, settings, database, policies, peppers, clock)
    keeper = Keeper(peppers, sealer, policies)
    await _check_plans(stores.registry, policies)
    changes = Changes(stores.registry, stores.limiter, clock)
    stack.push_async_callback(changes.finish)
    tokens = ManageTokens(changes, policies, peppers)
    await tokens.bootstrap(folder.manager_token(lambda: new_secret(TOKEN_PREFIX)))
    if settings.bootstrap_token_file is not None:
        await tokens.bootstrap(_read_token(settings.bootstrap_token_file))
    last_used = LastUsed()
    pulse = await stack.enter_async_context(_pulse(last_used, stores.registry))
    check_key = CheckKey(stores.keys, stores.limiter, policies, peppers=peppers, clock=clock, last_used=last_used)
    record_usage = RecordUsage(stores.usage, stores.registry, stores.limiter, policies, clock)
    stack.push_async_callback(record_usage.finish)
    authorization = AuthorizationServicer(check_key, record_usage)
    keys = KeyServicer(
        create=CreateKey(changes, policies, keeper),
        read=ReadKeys(stores.registry),
        update=UpdateKey(changes, policies),
        set_state=SetKeyState(changes),
        copy=CopyKey(changes, policies, keeper),
        delete=DeleteKey(changes, policies),
        reveal=RevealKey(changes, keeper),
        rotate=RotateKey(changes, policies, keeper),
    )
    accounts = AccountServicer(
        ManageAccounts(changes, policies),
        ManageMembers(changes, policies),
        ReadAccount(stores.registry, stores.limiter, stores.usage, policies, clock),
        tokens,
    )
    dispatch = Dispatch(Authenticate(stores.registry, peppers, clock, time.monotonic))
    http_host, _, http_port = settings.http.rpartition(":")
    http = HttpServer(http_host.strip("[]"), int(http_port), live=pulse.beats, ready=pulse.ready)
    stack.callback(http.close)
    grpc = GrpcServer(dispatch, methods(authorization, keys, accounts))
    grpc_port = await grpc.start(settings.listen)
    stack.push_async_callback(grpc.drain, settings.drain_seconds)
    stack.callback(pulse.drain)
    pulse.is_ready = True
    return Addresses(f"{settings.listen.rpartition(':')[0]}:{grpc_port}", f"{http_host}:{http.port}")


async def _open_database(stack: AsyncExitStack, folder: DataFolder) -> Database:
    """Open the embedded default's database, brought to this version."""
    url = folder.database_url()
    await migrate.upgrade(url)
    database = open_database(url)
    stack.push_async_callback(database.close)
    return database


def _stores(  # noqa: PLR0913, PLR0917 - what stores are made of
    stack: AsyncExitStack, settings: Settings, database: Database, policies: Policies, peppers: Peppers, clock: Clock
) -> _Stores:
    """Return the embedded default's stores: SQLite, and counters in memory whose marks it holds."""
    registry = SqlRegistry(database, peppers)
    limiter = MemoryLimiter(clock, SqlReservations(database), on_degraded=_tell_degraded)
    stack.push_async_callback(_close_limiter, limiter)
    keys = CachedKeyStore(SqlKeyStore(database, policies), settings.key_cache_size)
    return _Stores(registry, keys, SqlUsageLedger(database), limiter)


async def _sealing_keys(settings: Settings, folder: DataFolder, database: Database, clock: Clock) -> tuple[bytes, ...]:
    """Return the sealing keys; the folder's is made where nothing is sealed yet. Raises StartError."""
    if settings.sealing_key_file is not None:
        return read_keys(settings.sealing_key_file)
    if not folder.sealing_key_file.exists():
        await _check_secret_keys(database, SEALING_KEY, (), folder.sealing_key_file, clock)
    return folder.sealing_keys()


async def _check_secret_keys(database: Database, name: str, ids: Sequence[str], file: Path, clock: Clock) -> None:
    """See to it that every key is there under which something of use is stored. Raises StartError."""
    fingerprints = Fingerprints(database)
    newest = ids[:1]  # under which things are stored from now on
    known = await fingerprints.check(name, newest)
    stored = await fingerprints.stored(name, known.union(ids) - set(newest), clock.now())
    for each, what in sorted(stored.items()):
        if each not in ids:
            message = f"the database holds {what} under {name} {each}, which is not in {file}: put it back"
            raise StartError(message)
    for each in ids[1:]:
        _log.info("an older key is kept", kind=name, id=each, needed_by=str(stored.get(each, Stored(0))))
    await fingerprints.remember(name, newest)


async def _check_plans(registry: Registry, policies: Policies) -> None:
    """See to it that the policy and plan of every account are known. Raises StartError."""
    for name, plan in sorted(await registry.plans()):
        policy = policies.by_name.get(name)
        if policy is None or plan not in policy.plans:
            message = f"there are accounts with plan {plan} of policy {name}, which no policy file has: put it back"
            raise StartError(message)


def _read_token(path: Path) -> str:
    """Read the bootstrap token. Raises StartError."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN or not token.isprintable() or " " in token:
        message = f"{path} must hold one line of {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable ASCII characters"
        raise StartError(message)
    return token


async def _close_limiter(limiter: MemoryLimiter) -> None:
    try:
        await limiter.close()
    except UnavailableError:
        _log.warning("the counters could not be written; after the restart they may count a block too much")


def _tell_degraded(degraded: bool) -> None:  # noqa: FBT001 - told by position
    if degraded:
        _log.warning("the database takes no marks: limits are counted on, and may refill should this process end now")
    else:
        _log.info("the database takes marks again")


class _Pulse:
    """Whether the event loop runs, and whether calls are wanted."""

    def __init__(self) -> None:
        self.is_ready = False
        self.last = time.monotonic()

    def beats(self) -> bool:
        return time.monotonic() - self.last < _STUCK_SECONDS

    def ready(self) -> bool:
        return self.is_ready and self.beats()

    def drain(self) -> None:
        self.is_ready = False


@asynccontextmanager
async def _pulse(last_used: LastUsed, registry: Registry) -> AsyncIterator[_Pulse]:
    """Let the pulse beat every second, and write the last uses now and then, also at the end."""
    pulse = _Pulse()

    async def beat() -> None:
        while True:
            for _ in range(_BEATS_A_FLUSH):
                pulse.last = time.monotonic()
                await asyncio.sleep(1)
            await last_used.flush(registry)

    task = asyncio.create_task(beat())
    try:
        yield pulse
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await last_used.flush(registry)
