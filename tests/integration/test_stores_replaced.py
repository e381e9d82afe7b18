"""A store that another takes the place of, while servers run: docs/operations/replacing-a-store.md, as it stands."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from formgate.rules.reason import Reason
from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2, resources_pb2
from tests.support.client import Client, Refusal
from tests.support.deployment import Deployment
from tests.support.postgres import FOLLOWED, PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually

AMOUNT = 20
HOURLY = resources_pb2.Limit(
    name="rate", holder=resources_pb2.HOLDER_KEY, amount=AMOUNT, window=Duration(seconds=3_600)
)


def reason(manager: Client, secret: str) -> Reason | None:
    """Return why a check is decided as it is; None: it is undecided, or degraded."""
    answer = manager.outcome(authorization_pb2.CheckKeyRequest(key=secret))
    return None if isinstance(answer, Refusal) or answer.degraded else Reason(answer.reason)


def test_a_standby_takes_over(tmp_path: Path, redis_server: RedisServer) -> None:
    """With a synchronous standby nothing that was acknowledged is lost, and nobody has to restart a server."""
    with PostgresServer(*FOLLOWED) as primary, primary.standby() as standby:
        for sql in ("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()"):
            asyncio.run(primary.execute(sql))
        with Deployment(tmp_path / "deployment", primary, redis_server.url()) as deployment:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            one = deployment.database.render_as_string(hide_password=False)
            environment = deployment.environment() | {
                "FORMGATE_DATABASE_URL": one.replace(f"127.0.0.1:{primary.port}", hosts)
            }
            server = Server(tmp_path / "server", environment=environment)
            with server, closing(Client(server.address, deployment.token)) as manager:
                manager(accounts_pb2.CreateAccountRequest(account_id="failed-over"))
                kept, revoked = (manager(keys_pb2.CreateKeyRequest(account_id="failed-over")) for _ in range(2))
                now = Timestamp()
                now.GetCurrentTime()
                record = authorization_pb2.UsageRecord(
                    record_id="r1", key_id=kept.key.key_id, units=1, operation="read", occur_time=now
                )
                recorded = authorization_pb2.RecordUsageRequest(records=[record])
                assert manager(recorded).results[0].outcome == authorization_pb2.OUTCOME_ACCEPTED
                manager(keys_pb2.RevokeKeyRequest(key_id=revoked.key.key_id))
                assert reason(manager, kept.secret) is Reason.OK
                primary.kill()
                assert manager(authorization_pb2.CheckKeyRequest(key=kept.secret)).allowed
                asyncio.run(standby.execute("ALTER SYSTEM RESET synchronous_standby_names"))
                asyncio.run(standby.execute("SELECT pg_promote()"))
                again = eventually(lambda: _answered(manager, recorded), 20, "the new primary is found")
                assert again.results[0].outcome == authorization_pb2.OUTCOME_DUPLICATE
                eventually(lambda: reason(manager, kept.secret) is Reason.OK, 10, "verdicts without degraded")
                assert reason(manager, revoked.secret) is Reason.KEY_REVOKED
                manager(keys_pb2.RevokeKeyRequest(key_id=kept.key.key_id))
                assert reason(manager, kept.secret) is Reason.KEY_REVOKED


def _answered(manager: Client, request: authorization_pb2.RecordUsageRequest) -> Any:
    answer = manager.outcome(request)
    return None if isinstance(answer, Refusal) else answer


def test_another_redis_takes_over(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """The old one is stopped first; servers then move one by one. No limit is refilled, no revocation late."""
    old, new = (RedisServer(tmp_path / name) for name in ("old", "new"))
    old.start()
    with new, Deployment(tmp_path / "deployment", postgres_server, old.url(), max_staleness=3) as deployment:
        stays, moves = deployment.serve(), deployment.serve()
        with closing(Client(stays.address, deployment.token)) as first:
            first(accounts_pb2.CreateAccountRequest(account_id="moved"))
            kept, revoked = (first(keys_pb2.CreateKeyRequest(account_id="moved", limits=[HOURLY])) for _ in range(2))
            assert [reason(first, each.secret) for each in (kept, revoked)] == [Reason.OK] * 2
            spent = 1 + sum(reason(first, kept.secret) is Reason.OK for _ in range(AMOUNT - 5))
            old.kill()
            moves.stop()
            moved = deployment.serve(redis=new.url())
            with closing(Client(moved.address, deployment.token)) as second:
                changed = first(keys_pb2.RevokeKeyRequest(key_id=revoked.key.key_id))
                assert changed.effective_time.ToDatetime() > changed.key.revoke_time.ToDatetime()
                assert not first(authorization_pb2.CheckKeyRequest(key=revoked.secret)).allowed
                eventually(lambda: reason(second, revoked.secret) is Reason.KEY_REVOKED, 3, "the other server follows")
                # The database's mark is at most a block ahead of what was spent; never behind it.
                admitted = sum(reason(second, kept.secret) is Reason.OK for _ in range(AMOUNT))
                assert admitted <= AMOUNT - spent
