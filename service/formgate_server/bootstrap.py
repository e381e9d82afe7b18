"""Puts the server together: the only module that knows every other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
from prometheus_client import Gauge

from formgate_server import metrics
from formgate_server.backends import Counters, Parts, ended, open_counters
from formgate_server.core.attempts import Attempts
from formgate_server.core.authenticate import Authenticate
from formgate_server.core.changes import Changes
from formgate_server.core.check_key import CheckKey
from formgate_server.core.copy_key import CopyKey
from formgate_server.core.create_key import CreateKey
from formgate_server.core.delete_key import DeleteKey
from formgate_server.core.keeper import Keeper
from formgate_server.core.last_used import LastUsed
from formgate_server.core.lease_key import LeaseKey, SettleLeases
from formgate_server.core.manage_accounts import ManageAccounts
from formgate_server.core.manage_members import ManageMembers
from formgate_server.core.manage_tokens import ManageTokens
from formgate_server.core.model import Caller
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Clock, Limiter, Registry, UsageLedger
from formgate_server.core.prune import Prune
from formgate_server.core.read_account import ReadAccount
from formgate_server.core.read_keys import ReadKeys
from formgate_server.core.record_usage import RecordUsage
from formgate_server.core.reveal_key import RevealKey
from formgate_server.core.rotate_key import RotateKey
from formgate_server.core.secrets import Peppers
from formgate_server.core.set_key_state import SetKeyState
from formgate_server.core.settle import Settle
from formgate_server.core.update_key import UpdateKey
from formgate_server.core.watch_epochs import WatchEpochs
from formgate_server.policies.policy import load
from formgate_server.rpc.accounts import AccountServicer
from formgate_server.rpc.authorization import AuthorizationServicer
from formgate_server.rpc.dispatch import Dispatch
from formgate_server.rpc.keys import KeyServicer
from formgate_server.rpc.line import Lines
from formgate_server.rpc.methods import Method, methods
from formgate_server.settings import Settings
from formgate_server.storage.data_folder import read_private
from formgate_server.storage.guard import GuardedKeys
from formgate_server.storage.measured import MeasuredKeys, MeasuredLimiter
from formgate_server.storage.sealer import AesSealer
from formgate_server.storage.sql.counters import SqlReservations
from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.epochs import SqlEpochs
from formgate_server.storage.sql.keys import SqlKeyStore
from formgate_server.storage.sql.registry import SqlRegistry
from formgate_server.storage.sql.usage import SqlUsageLedger
from formgate_server.storage.wrappers import CachedKeyStore, PepperedKeyStore
from formgate_server.truth import StartError, SystemClock, Truth, embedded, explained, postgresql
from formgate_server.wire import files
from formgate_server.wire.auth_http import AuthHttpServer
from formgate_server.wire.envoy.ext_authz import ExtAuthz
from formgate_server.wire.gateways.answers import Answers
from formgate_server.wire.grpcio import GrpcServer, Limits
from formgate_server.wire.http import HttpServer
from formgate_server.wire.port import BALANCED, reserved
from formgate_server.wire.scheduling import batch_while_busy
from formgate_server.wire.tls import Tls, TlsFiles

if TYPE_CHECKING:
    from formgate_server.tracing import Tracing

_log = structlog.get_logger("formgate.bootstrap")

_FLUSH_SECONDS = 5.0
_LAST_FLUSH_SECONDS = 2.0
_STUCK_SECONDS = 10.0
_SHORTEST_TOKEN, _LONGEST_TOKEN = 32, 256


class Addresses(NamedTuple):
    """Where a server listens, HOST:PORT each."""

    grpc: str
    http: str
    auth_http: str | None = None


@asynccontextmanager
async def build(
    settings: Settings, *, worker: bool = False, hurry: asyncio.Event | None = None
) -> AsyncIterator[Addresses]:
    """Serve while the block runs; afterwards drain, at once when ``hurry`` is set. Raises StartError.

    A ``worker`` shares its port with others, and leaves probes and metrics to their supervisor.
    """
    async with AsyncExitStack() as stack:
        with explained():
            addresses = await _start(stack, settings, worker, hurry or asyncio.Event())
        yield addresses


class _Stores(NamedTuple):
    registry: Registry
    usage: UsageLedger
    counters: Counters


async def _start(
    stack: AsyncExitStack,
    settings: Settings,
    worker: bool,  # noqa: FBT001 - handed on
    hurry: asyncio.Event,
) -> Addresses:
    """Start everything; what is put on the stack last ends first: calls are drained before the stores close."""
    policies = load(settings.policy_dir)
    tls = _tls(settings, policies)
    tracing = _tracing(stack, settings)
    kind = Database if tracing is None else tracing.database
    truth = await (embedded if settings.database_url is None else postgresql)(stack, settings, kind)
    peppers, sealer = Peppers(truth.peppers), AesSealer(truth.sealing_keys)
    clock = SystemClock()
    stores = await _open_stores(stack, settings, truth, policies, clock)
    counters = stores.counters
    limiter: Limiter = MeasuredLimiter(counters.limiter, policies.limit_names, by="change")
    if tracing is not None:
        limiter = tracing.limiter(limiter)
    keeper = Keeper(peppers, sealer, policies)
    await _check_plans(stores.registry, policies)
    changes = Changes(
        stores.registry,
        limiter,
        clock,
        max_staleness=counters.max_staleness,
        leases=counters.leases,
        policies=policies,
        on_change=counters.on_change,
    )
    stack.push_async_callback(changes.finish)
    tokens = ManageTokens(changes, policies, peppers)
    if truth.manager_token is not None:
        await tokens.bootstrap(truth.manager_token)
    if settings.bootstrap_token_file is not None:
        await tokens.bootstrap(_read_token(settings.bootstrap_token_file))
    last_used = LastUsed()
    await stack.enter_async_context(_flushing(last_used, stores.registry))
    pulse = _Pulse()
    for job in (pulse.beat(), batch_while_busy()):
        stack.push_async_callback(ended, asyncio.create_task(job))
    check_key = CheckKey(MeasuredKeys(counters.finder), limiter, policies, clock, last_used)
    record_usage = await _usage(stack, settings, stores, truth.database, policies, clock)
    authorization = AuthorizationServicer(
        check_key,
        record_usage,
        LeaseKey(check_key, counters.leases, policies, clock, last_used),
        SettleLeases(counters.leases),
        WatchEpochs(counters.watching, SqlEpochs(truth.database), stores.registry),
    )
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
        ReadAccount(stores.registry, limiter, stores.usage, policies, clock),
        tokens,
    )
    authenticate = Authenticate(stores.registry, peppers, clock, time.monotonic, freshness=counters.freshness)
    dispatch = _dispatch(settings, tracing, authenticate, None if tls is None else tls.identify)
    http_address = settings.http if worker else _start_http(stack, settings.http, pulse)
    served = [*methods(authorization, keys, accounts), *ExtAuthz(check_key, clock).methods()]
    grpc_address = await _start_grpc(stack, settings, tls, dispatch, served, worker, hurry)
    auth = Answers(dispatch, check_key, clock)
    auth_http = None if settings.auth_http is None else await _start_auth_http(stack, settings, auth, worker, hurry)
    stack.callback(counters.watching.end)  # before the drain, which would wait for those who watch
    stack.callback(pulse.drain)
    pulse.is_ready = True
    return Addresses(grpc_address, http_address, auth_http)


def _tls(settings: Settings, policies: Policies) -> Tls | None:
    """Read what TLS is served with; None: it is not. Raises UnfitFileError."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    files = TlsFiles(
        settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, settings.tls_identities_file
    )
    return Tls(files, policies.by_name)


def _tracing(stack: AsyncExitStack, settings: Settings) -> Tracing | None:
    """Begin to trace, where that is wanted. Raises StartError."""
    if not settings.tracing:
        return None
    try:
        from formgate_server.tracing import Tracing  # noqa: PLC0415 - OpenTelemetry need not be there
    except ImportError as error:
        message = f"--tracing needs OpenTelemetry ({error}): pip install 'formgate-server[tracing]'"
        raise StartError(message) from error
    tracing = Tracing()
    stack.push_async_callback(asyncio.to_thread, tracing.close)
    return tracing


def _dispatch(
    settings: Settings,
    tracing: Tracing | None,
    authenticate: Authenticate,
    identify: Callable[[Collection[str]], Caller] | None,
) -> Dispatch:
    sample, per_second = settings.log_allowed_sample, settings.log_calls_per_second
    if tracing is not None:
        return tracing.dispatch(authenticate, identify, allowed_sample=sample, per_second=per_second)
    return Dispatch(authenticate, identify, Lines(allowed_sample=sample, per_second=per_second))


def _limits(settings: Settings) -> Limits:
    connections = files.connections(settings.max_connections)
    if connections < settings.max_connections:
        _log.warning(
            "too few files may be open for FORMGATE_MAX_CONNECTIONS: fewer connections are taken",
            connections=connections,
        )
    return Limits(
        settings.max_request_bytes,
        settings.max_response_bytes,
        settings.max_concurrent_streams,
        connections,
        settings.max_connection_age_seconds,
    )


async def _start_grpc(  # noqa: PLR0913, PLR0917 - what it takes to listen
    stack: AsyncExitStack,
    settings: Settings,
    tls: Tls | None,
    dispatch: Dispatch,
    served: Sequence[Method],
    worker: bool,  # noqa: FBT001 - handed on
    hurry: asyncio.Event,
) -> str:
    """Let callers ask; returns where. Raises OSError."""
    if tls is not None:
        stack.push_async_callback(ended, asyncio.create_task(tls.run()))
    port = stack.enter_context(ExitStack())
    listen, shared = settings.listen, worker
    if BALANCED and not worker and settings.redis_url is not None:
        listen, shared = port.enter_context(reserved(listen)), True
    credentials = None if tls is None else tls.credentials
    server = GrpcServer(dispatch, served, _limits(settings), credentials=credentials, shared=shared)
    number = await server.start(listen)
    stack.push_async_callback(server.drain, settings.drain_seconds, hurry, port.close)
    return f"{settings.listen.rpartition(':')[0]}:{number}"


async def _start_auth_http(
    stack: AsyncExitStack,
    settings: Settings,
    answers: Answers,
    worker: bool,  # noqa: FBT001 - handed on
    hurry: asyncio.Event,
) -> str:
    """Let gateways ask over HTTP; returns where. Raises OSError."""
    assert settings.auth_http is not None  # noqa: S101 - it is why this is called
    server = AuthHttpServer(answers)
    port = await server.start(settings.auth_http, shared=worker)
    stack.push_async_callback(server.drain, settings.drain_seconds, hurry)
    return f"{settings.auth_http.rpartition(':')[0]}:{port}"


def _start_http(stack: AsyncExitStack, address: str, pulse: _Pulse) -> str:
    host, _, port = address.rpartition(":")
    http = HttpServer(host.strip("[]"), int(port), live=pulse.beats, ready=pulse.ready)
    stack.callback(http.close)
    return f"{host}:{http.port}"


async def _usage(  # noqa: PLR0913, PLR0917 - what usage goes through
    stack: AsyncExitStack, settings: Settings, stores: _Stores, database: Database, policies: Policies, clock: Clock
) -> RecordUsage:
    """Return what records usage, and start its jobs: what is owed is settled, what is old is deleted."""
    settle = Settle(stores.usage, stores.counters.limiter, policies)
    prune = Prune(stores.usage, SqlEpochs(database), SqlReservations(database), clock, settings.keep)
    for job in (settle.run(_tell_owed), prune.run(_tell_pruned)):
        stack.push_async_callback(ended, asyncio.create_task(job))
    record_usage = RecordUsage(stores.usage, settle, policies, clock)
    stack.push_async_callback(record_usage.finish)
    return record_usage


def _tell_owed(trouble: Exception | None) -> None:
    if trouble is None:
        _log.info("what usage records owe is charged again")
    else:
        _log.warning(
            "what usage records owe can not be charged for now; it is tried again", error=type(trouble).__name__
        )


def _tell_pruned(ended: dict[str, int] | Exception) -> None:
    if isinstance(ended, Exception):
        _log.warning("old usage could not be deleted; it is tried again in an hour", error=type(ended).__name__)
    elif any(ended.values()):
        _log.info("deleted what is old", **ended)


async def _open_stores(
    stack: AsyncExitStack, settings: Settings, truth: Truth, policies: Policies, clock: Clock
) -> _Stores:
    """Put the stores over the database."""
    database, peppers = truth.database, Peppers(truth.peppers)
    reservations, epochs = SqlReservations(database), SqlEpochs(database)
    cache = CachedKeyStore(PepperedKeyStore(SqlKeyStore(database, policies), peppers), settings.key_cache_size)
    stack.enter_context(metrics.watched(_readings(database, cache)))
    attempts = Attempts(
        time.monotonic_ns,
        per_address=settings.invalid_attempts_per_minute or None,
        in_all=settings.unknown_keys_per_second,
    )
    parts = Parts(reservations, epochs, cache, GuardedKeys(cache, attempts), clock)
    counters = await open_counters(stack, settings, parts)
    freshness = counters.freshness
    if freshness is not None:
        database.is_away = lambda: not freshness.database_up
    return _Stores(SqlRegistry(database, peppers), SqlUsageLedger(database), counters)


def _readings(database: Database, cache: CachedKeyStore) -> dict[Gauge, Callable[[], float]]:
    """Return what /metrics shows of the database's connections and of the keys at hand."""
    readings: dict[Gauge, Callable[[], float]] = {metrics.key_cache_size: lambda: cache.size}
    for pool, use in database.use.items():
        readings[metrics.database_in_use[pool]] = partial(getattr, use, "in_use")
        readings[metrics.database_most[pool]] = partial(getattr, use, "most")
        readings[metrics.database_waiting[pool]] = partial(getattr, use, "waiting")
    return readings


async def _check_plans(registry: Registry, policies: Policies) -> None:
    """See to it that the policy and plan of every account are known. Raises StartError."""
    for name, plan in sorted(await registry.plans()):
        policy = policies.by_name.get(name)
        if policy is None or plan not in policy.plans:
            message = f"there are accounts with plan {plan} of policy {name}, which no policy file has: put it back"
            raise StartError(message)


def _read_token(path: Path) -> str:
    """Read the bootstrap token. Raises StartError, and DataFolderError where others may read it."""
    token = read_private(path).strip()
    fits = _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN
    if not fits or not token.isascii() or not token.isprintable() or " " in token:
        message = f"{path} must hold one line of {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable ASCII characters"
        raise StartError(message)
    return token


class _Pulse:
    """Whether the event loop runs, and whether calls are wanted."""

    def __init__(self) -> None:
        self.is_ready = False
        self.last = time.monotonic()

    async def beat(self) -> None:
        """Beat every second, and do nothing else: whatever a store does, the loop that runs is well."""
        while True:
            self.last = time.monotonic()
            await asyncio.sleep(1)

    def beats(self) -> bool:
        return time.monotonic() - self.last < _STUCK_SECONDS

    def ready(self) -> bool:
        return self.is_ready and self.beats()

    def drain(self) -> None:
        self.is_ready = False


@asynccontextmanager
async def _flushing(last_used: LastUsed, registry: Registry) -> AsyncIterator[None]:
    """Write the last uses now and then, also at the end if that goes soon."""
    task = asyncio.create_task(last_used.run(registry, _FLUSH_SECONDS, _tell_unwritten))
    try:
        yield
    finally:
        await ended(task)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_FLUSH_SECONDS):
                await last_used.flush(registry)


def _tell_unwritten(error: Exception) -> None:
    _log.error("when keys were last used can not be written, for a fault of ours", exc_info=error)
