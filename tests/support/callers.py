"""The two clients behind one face, so that a test says once what must hold for both.

::

    with Caller("asyncio", server.address, server.token) as caller:
        verdict = caller.check(secret, permissions="forms.view")
        verdicts = caller.at_once([Check(secret), Check(other)])   # so many callers at the same moment
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from formgate import AsyncClient, Check, Client, Verdict
from formgate.common import Options
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.accounts_pb2 import GRANULARITY_DAY, GetUsageRequest
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate.v1.resources_pb2 import Grant, Limit
from formgate.wire import BATCH, CHECK, RECORD
from tests.support.client import Client as Manager

T = TypeVar("T")

KINDS = ("threads", "asyncio")
PERMISSION = "forms.view"
RESOURCE = "forms/f1"
YES = pb.CheckKeyResponse(allowed=True, reason=pb.REASON_OK, http_status=200, key=pb.CheckedKey(key_id="key_1"))


class Caller:
    """A client of either kind, called from ordinary code."""

    def __init__(
        self, kind: str, address: str | Sequence[str], token: str | None = None, **options: Unpack[Options]
    ) -> None:
        self.kind = kind
        options.setdefault("leases", False)  # who tests them says so
        self.client: Any = (Client if kind == "threads" else AsyncClient)(address, token, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def counters(self) -> dict[str, int]:
        """See the client."""
        counted: dict[str, int] = self.client.counters
        return counted

    def check(self, *args: Any, **kwargs: Any) -> Verdict:
        """See the client."""
        result: Verdict = self._done(self.client.check(*args, **kwargs))
        return result

    def check_all(self, checks: Sequence[Check], **kwargs: Any) -> list[Verdict]:
        """See the client."""
        result: list[Verdict] = self._done(self.client.check_all(checks, **kwargs))
        return result

    def at_once(self, checks: Sequence[Check], timeout: float = 5.0) -> list[Verdict | BaseException]:
        """Make each check of its own thread or task, all at the same moment, and return what came of each."""
        if self.kind == "asyncio":
            outcomes: list[Verdict | BaseException] = self._done(self._gather(checks, timeout))
            return outcomes
        barrier = threading.Barrier(len(checks))

        def ask(check: Check) -> Verdict | BaseException:
            barrier.wait()
            try:
                verdict: Verdict = self.client.check(**check._asdict(), timeout=timeout)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                return error
            return verdict

        with ThreadPoolExecutor(len(checks)) as threads:
            return list(threads.map(ask, checks))

    async def _gather(self, checks: Sequence[Check], timeout: float) -> Any:  # noqa: ASYNC109 - the checks' own
        asked = (self.client.check(**check._asdict(), timeout=timeout) for check in checks)
        return await asyncio.gather(*asked, return_exceptions=True)

    def close(self) -> None:
        """Close the client, and what it ran on; once."""
        if not self._loop.is_closed():
            self._done(self.client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _done(self, result: Any) -> Any:
        if isinstance(result, Coroutine):
            return asyncio.run_coroutine_threadsafe(result, self._loop).result(30)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Key:
    """A key that was made for a test."""

    key_id: str
    secret: str

    def check(self, **changes: Any) -> Check:
        """Return a check that it passes."""
        return Check(self.secret, permissions=PERMISSION, resources=RESOURCE)._replace(**changes)


def new_key(manager: Manager, account: str, *limits: Limit) -> Key:
    """Make a key that may view the form."""
    grant = Grant(resource="forms", permissions=[PERMISSION])
    request = CreateKeyRequest(account_id=account, display_name="K", created_by="m", grants=[grant], limits=limits)
    made = manager(request)
    return Key(made.key.key_id, made.secret)


def counted(manager: Manager, account: str, key: Key) -> tuple[int, int]:
    """Return how many units, in how many records, the service has of a key."""
    now = int(time.time())
    request = GetUsageRequest(
        account_id=account,
        key_id=key.key_id,
        start_time=Timestamp(seconds=now - 86_400 * 3),
        end_time=Timestamp(seconds=now + 86_400 * 2),
        granularity=GRANULARITY_DAY,
    )
    buckets = manager(request).buckets
    return sum(bucket.units for bucket in buckets), sum(bucket.records for bucket in buckets)


class Scripted(grpc.GenericRpcHandler):
    """A server that answers with what it is told to; for answers that a real one never gives.

    ``check``, ``batch`` and ``record`` take the request's bytes and the call's context, and return the answer's bytes.
    """

    def __init__(self) -> None:
        self.check: Any = None
        self.batch: Any = None
        self.record: Any = None
        self.address = ""
        self.calls: list[str] = []

    def service(self, handler_call_details: Any) -> Any:
        """Find what answers a call."""
        path = handler_call_details.method
        answer = {CHECK: self.check, BATCH: self.batch, RECORD: self.record}.get(path)
        if answer is None:
            return None
        self.calls.append(path)
        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def scripted(tls: grpc.ServerCredentials | None = None) -> Iterator[Scripted]:
    """Serve on a free port."""
    handler = Scripted()
    with ThreadPoolExecutor(16) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers((handler,))
        free = "127.0.0.1:0"
        port = server.add_secure_port(free, tls) if tls else server.add_insecure_port(free)
        handler.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield handler
        finally:
            server.stop(None).wait()
