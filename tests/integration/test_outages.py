"""When something is down: the cells of the table in docs/guarantees.md, with real servers stopped, frozen and cut off.

What is slow is in front of a proxy. Nothing hangs, nothing that is not known to be allowed is, verdicts say `degraded`,
the log says it once, and all heals by itself.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import grpc
import pytest

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2
from tests.support.client import Client, Refusal
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually

DEADLINE = 4.0
"""Nothing takes longer: a database is given up after 2 seconds, a Redis after a quarter of one."""
HEALED = 10.0
STALENESS, GRACE = 5.0, 9.0
FRESH = 1.5
"""Within so many seconds, by far, each poll follows the last."""

POLICY = """
name = "down"
description = "Limits that say what becomes of them."
prefixes = { LIVE = "down_" }

[plans.standard]
time_zone = "UTC"
limits = [{ name = "daily", holder = "ACCOUNT", amount = 100, calendar = "DAY" }]

[plans.closed]
time_zone = "UTC"
limits = [{ name = "daily", holder = "ACCOUNT", amount = 100, calendar = "DAY", when_degraded = "DENY" }]

[plans.open]
time_zone = "UTC"
limits = [{ name = "daily", holder = "ACCOUNT", amount = 100, calendar = "DAY", when_degraded = "ALLOW" }]
"""


@dataclass
class World:
    """A server whose ways to its stores are proxies."""

    deployed: Deployment
    server: Server
    manager: Client
    redis: RedisServer
    to_redis: Proxy
    to_database: Proxy
    probe: str = ""
    """A key that no test touches."""
    read: int = 0
    """How much of the server's log is of the tests before."""

    def restore(self) -> None:
        """Let all be well again."""
        for store in (self.to_redis, self.to_database):
            store.delay = 0.0
            store.pass_on()
        self.healed(self.probe)
        eventually(lambda: self.begun == self.ended, HEALED, "all that was said to be down is said to be back")
        eventually(self.is_fresh, HEALED, "all is published")
        self.read = len(self.server.log)

    @property
    def begun(self) -> tuple[int, int]:
        """How often the log has said that a store is away."""
        told = self.server.log
        return told.count("limits go by this process' share"), told.count("degraded: the database does not answer")

    @property
    def ended(self) -> tuple[int, int]:
        """How often the log has said that it is back."""
        told = self.server.log
        return told.count("no longer degraded"), told.count("the database answers again")

    @property
    def log(self) -> str:
        """What the server has logged during this test."""
        return self.server.log[self.read :]

    def account(self, plan: str = "standard") -> str:
        """Make an account."""
        request = accounts_pb2.CreateAccountRequest(policy="down", plan=plan)
        return str(self.manager(request).account.account_id)

    def key(self, account: str) -> keys_pb2.CreateKeyResponse:
        """Make a key and check it once: now it is known, and its counters are there."""
        made: keys_pb2.CreateKeyResponse = self.manager(keys_pb2.CreateKeyRequest(account_id=account))
        verdict = self.check(made.secret)
        assert (verdict.allowed, verdict.degraded) == (True, False)
        return made

    def check(self, secret: str, **fields: object) -> authorization_pb2.CheckKeyResponse:
        """Check a key."""
        verdict = self.outcome(authorization_pb2.CheckKeyRequest(key=secret, **fields))  # type: ignore[arg-type]
        assert isinstance(verdict, authorization_pb2.CheckKeyResponse), verdict
        return verdict

    def typical_seconds(self, secret: str) -> float:
        """Return how long a check takes: the median of five that are allowed, by all that there is."""
        took = []
        for _ in range(5):
            began = time.monotonic()
            verdict = self.check(secret)
            assert (verdict.allowed, verdict.degraded) == (True, False)
            took.append(time.monotonic() - began)
        return median(took)

    def outcome(self, request: object) -> object:
        """Call; whatever comes of it comes within the deadline."""
        began = time.monotonic()
        outcome = self.manager.outcome(request)  # type: ignore[arg-type]
        assert time.monotonic() - began < DEADLINE
        return outcome

    def degraded(self, secret: str) -> authorization_pb2.CheckKeyResponse:
        """Return a verdict that says that it is degraded, once there is one."""
        return eventually(lambda: _if(self.check(secret, cost=0), lambda told: told.degraded), HEALED, "degraded")

    def healed(self, secret: str) -> authorization_pb2.CheckKeyResponse:
        """Return an exact verdict, once there is one again."""

        def attempt() -> authorization_pb2.CheckKeyResponse | None:
            told = self.outcome(authorization_pb2.CheckKeyRequest(key=secret, cost=0))
            exact = isinstance(told, authorization_pb2.CheckKeyResponse) and not told.degraded
            return told if exact else None  # type: ignore[return-value]

        return eventually(attempt, HEALED, "exact again")

    def undecided(self, secret: str, seconds: float) -> grpc.StatusCode:
        """Return the code of a check that has no verdict, once there is one: so many seconds from now."""
        check = authorization_pb2.CheckKeyRequest(key=secret, cost=0)
        return eventually(lambda: _code(self.outcome(check)), seconds + DEADLINE, "undecided")

    def metrics(self) -> dict[str, float]:
        """Return all of /metrics: name and labels as they stand there, and the value."""
        with urllib.request.urlopen(f"http://{self.server.http}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}

    def is_fresh(self) -> bool:
        """Tell whether all is published; until it is, checks ask the database, also for keys that they know."""
        return self.metrics()["formgate_publication_age_seconds"] < FRESH

    def is_ready(self) -> bool:
        """Ask the probe that load balancers ask."""
        with urllib.request.urlopen(f"http://{self.server.http}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)


def _if(
    told: authorization_pb2.CheckKeyResponse, holds: Callable[[authorization_pb2.CheckKeyResponse], bool]
) -> authorization_pb2.CheckKeyResponse | None:
    return told if holds(told) else None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[World]:
    """One server for all of these: that it heals is what they say."""
    tmp_path = tmp_path_factory.mktemp("outages")
    with (
        RedisServer(tmp_path / "redis") as redis,
        Proxy(redis.port) as to_redis,
        Proxy(postgres_server.port) as to_database,
        Deployment(
            tmp_path / "d",
            postgres_server,
            redis.url().replace(str(redis.port), str(to_redis.port)),
            policies={"down": POLICY},
            max_staleness=STALENESS,
            database_grace=GRACE,
            processes=2,
        ) as deployed,
    ):
        server = deployed.serve(database=deployed.database_by(to_database.port))
        manager = Client(server.address, deployed.token)
        made = World(deployed, server, manager, redis, to_redis, to_database)
        made.probe = made.key(made.account("open")).secret
        yield made
        manager.close()


@pytest.fixture
def world(served: World) -> World:
    """All is well, whatever the last test did."""
    served.restore()
    return served


def take_away(store: Proxy, how: str) -> None:
    """Stop a store, or freeze it."""
    getattr(store, how)()


HOW = pytest.mark.parametrize("how", ["refuse", "stall"])


@HOW
def test_redis_down_a_check_is_decided_by_shares(world: World, how: str) -> None:
    """By the epoch of the database, and half of what was left; back again, what was let through is charged once."""
    key = world.key(world.account())
    take_away(world.to_redis, how)
    world.degraded(key.secret)
    verdicts = [world.check(key.secret) for _ in range(60)]
    admitted = sum(verdict.allowed for verdict in verdicts)
    # 99 were left, of which the mark may have covered up to 10: two processes share the rest.
    assert 45 <= admitted <= 50
    assert {verdict.reason for verdict in verdicts[-5:]} == {authorization_pb2.REASON_QUOTA_EXCEEDED}
    assert all(verdict.degraded for verdict in verdicts)
    assert world.is_ready()
    world.to_redis.pass_on()
    world.healed(key.secret)
    left = eventually(
        lambda: _if(world.check(key.secret, cost=0), lambda told: told.limits[0].remaining < 60), HEALED, "charged"
    )
    assert left.limits[0].remaining == 99 - admitted
    assert world.log.count("limits go by this process' share") == 1


def test_redis_down_metrics_say_so(world: World) -> None:
    """Gauges while it lasts, counters for ever: degraded, the breaker, what is not published, and for how long."""
    key = world.key(world.account())
    before = world.metrics()
    assert before["formgate_redis_connections"] == 1
    take_away(world.to_redis, "stall")
    world.degraded(key.secret)
    world.outcome(keys_pb2.RevokeKeyRequest(key_id=key.key.key_id))
    late = "formgate_publication_age_seconds"
    lasting = (
        'formgate_degraded_seconds_total{store="counters"}',
        'formgate_circuit_breaker_open_seconds_total{store="redis"}',
    )

    def for_a_while() -> dict[str, float] | None:
        told = world.metrics()
        return told if told[late] > FRESH and all(told[each] >= before[each] + 1 for each in lasting) else None

    away = eventually(for_a_while, HEALED, "unpublished, degraded and open for a second")
    for gauge in ('formgate_degraded{store="counters"}', 'formgate_circuit_breaker_open{store="redis"}'):
        assert (before[gauge], away[gauge]) == (0, 1)
    assert away["formgate_redis_connections"] == 0
    assert away["formgate_changes_unpublished"] == 1
    assert away["formgate_poll_age_seconds"] < FRESH < away[late]
    assert away['formgate_allowed_seconds{setting="max_staleness"}'] == STALENESS
    for counter in (
        'formgate_circuit_breaker_openings_total{store="redis"}',
        'formgate_publications_total{by="change",outcome="failed"}',
        "formgate_checks_degraded_total",
    ):
        assert away[counter] >= before[counter] + 1, counter
    world.restore()
    after = world.metrics()
    for gauge in ('formgate_degraded{store="counters"}', 'formgate_circuit_breaker_open{store="redis"}'):
        assert after[gauge] == 0
    assert world.metrics()["formgate_changes_unpublished"] == 0


@HOW
@pytest.mark.parametrize("plan", ["open", "closed"])
def test_redis_down_a_limit_says_what_becomes_of_it(world: World, how: str, plan: str) -> None:
    """Open: all is admitted; closed: nothing."""
    key = world.key(world.account(plan))
    take_away(world.to_redis, how)
    eventually(lambda: world.check(key.secret).degraded, HEALED, "degraded")
    assert {world.check(key.secret).allowed for _ in range(150)} == {plan == "open"}


@HOW
def test_redis_down_a_change_is_committed_and_in_effect_later(world: World, how: str) -> None:
    """Its answer says when; this process knows it at once."""
    key = world.key(world.account())
    take_away(world.to_redis, how)
    revoked = world.outcome(keys_pb2.RevokeKeyRequest(key_id=key.key.key_id))
    assert isinstance(revoked, keys_pb2.RevokeKeyResponse)
    ahead = revoked.effective_time.ToNanoseconds() / 1e9 - time.time()
    assert STALENESS - 1 < ahead <= STALENESS
    verdict = world.check(key.secret)
    assert (verdict.reason, verdict.degraded) == (authorization_pb2.REASON_KEY_REVOKED, True)
    world.to_redis.pass_on()
    assert world.healed(key.secret).reason == authorization_pb2.REASON_KEY_REVOKED


@HOW
def test_redis_down_usage_is_accepted(world: World, how: str) -> None:
    """It is the database's."""
    key = world.key(world.account())
    take_away(world.to_redis, how)
    record = authorization_pb2.UsageRecord(record_id="r1", key_id=key.key.key_id, units=1)
    told = world.outcome(authorization_pb2.RecordUsageRequest(records=[record]))
    assert isinstance(told, authorization_pb2.RecordUsageResponse)
    assert told.results[0].outcome == authorization_pb2.OUTCOME_ACCEPTED


@HOW
def test_database_down_known_keys_go_on_for_a_while(world: World, how: str) -> None:
    """Degraded and by the epochs in Redis; an unknown key is undecided, never "not found"; then nothing is decided."""
    account = world.account()
    key = world.key(account)
    unknown = world.manager(keys_pb2.CreateKeyRequest(account_id=account)).secret
    take_away(world.to_database, how)
    assert world.degraded(key.secret).allowed
    assert world.check(key.secret).allowed
    assert _code(world.outcome(authorization_pb2.CheckKeyRequest(key=unknown))) is grpc.StatusCode.UNAVAILABLE
    assert world.is_ready()
    assert world.undecided(key.secret, GRACE) is grpc.StatusCode.UNAVAILABLE
    world.to_database.pass_on()
    assert world.healed(key.secret).allowed
    assert world.check(unknown).allowed
    assert world.log.count("degraded: the database does not answer") == 1


@HOW
def test_database_down_changes_and_usage_are_undecided(world: World, how: str) -> None:
    """UNAVAILABLE, and nothing is half done; once it is known to be away, at once."""
    key = world.key(world.account())
    take_away(world.to_database, how)
    world.degraded(key.secret)
    record = authorization_pb2.UsageRecord(record_id="r1", key_id=key.key.key_id, units=1)
    for request in (
        keys_pb2.RevokeKeyRequest(key_id=key.key.key_id),
        authorization_pb2.RecordUsageRequest(records=[record]),
        accounts_pb2.CreateAccountRequest(account_id="late"),
    ):
        assert _code(world.outcome(request)) is grpc.StatusCode.UNAVAILABLE
    world.to_database.pass_on()
    assert world.healed(key.secret).allowed
    told = eventually(
        lambda: _answer(world.outcome(authorization_pb2.RecordUsageRequest(records=[record]))), HEALED, "usage"
    )
    assert told.results[0].outcome == authorization_pb2.OUTCOME_ACCEPTED
    late = world.outcome(accounts_pb2.GetAccountRequest(account_id="late"))
    assert _code(late) is grpc.StatusCode.NOT_FOUND


@HOW
def test_both_down_known_keys_go_on_for_less(world: World, how: str) -> None:
    """By heart, for max_staleness; then UNAVAILABLE; changes and usage at once, and nothing of them is done."""
    key = world.key(world.account())
    take_away(world.to_redis, how)
    take_away(world.to_database, how)
    assert world.degraded(key.secret).allowed
    record = authorization_pb2.UsageRecord(record_id="both", key_id=key.key.key_id, units=1)
    usage = authorization_pb2.RecordUsageRequest(records=[record])
    for request in (keys_pb2.RevokeKeyRequest(key_id=key.key.key_id), usage):
        assert _code(world.outcome(request)) is grpc.StatusCode.UNAVAILABLE
    assert world.undecided(key.secret, STALENESS) is grpc.StatusCode.UNAVAILABLE
    assert world.is_ready()
    world.to_redis.pass_on()
    world.to_database.pass_on()
    assert world.healed(key.secret).allowed
    told = eventually(lambda: _answer(world.outcome(usage)), HEALED, "usage")
    assert told.results[0].outcome == authorization_pb2.OUTCOME_ACCEPTED


def test_a_full_redis_is_as_one_that_is_down_and_the_log_says_why(world: World) -> None:
    """It answers, and refuses to count: checks are degraded, and what it said is told once, with what to look at."""
    key = world.key(world.account())
    world.redis.do("CONFIG", "SET", "maxmemory", 1)
    try:
        first = [world.check(key.secret) for _ in range(60)]
        until = time.monotonic() + 2.5  # looks whether it is well again find it there
        eventually(lambda: time.monotonic() > until, HEALED, "it was looked at again")
        verdicts = first + [world.check(key.secret) for _ in range(20)]
    finally:
        world.redis.do("CONFIG", "SET", "maxmemory", 0)
    assert all(verdict.degraded for verdict in verdicts)
    assert 45 <= sum(verdict.allowed for verdict in verdicts) <= 50
    world.healed(key.secret)
    (line,) = (each for each in world.log.splitlines() if "limits go by this process' share" in each)
    assert "OOM command not allowed" in line


def test_a_redis_slower_than_its_timeout_is_as_one_that_is_down(world: World) -> None:
    """A check costs no more than the timeout and is degraded; a change is in effect later; said once; it heals."""
    key = world.key(world.account("open"))
    world.to_redis.delay = 1.0
    began = time.monotonic()
    for _ in range(10):
        assert world.check(key.secret).degraded
    assert time.monotonic() - began < 10 * 0.6
    revoked = world.outcome(keys_pb2.DisableKeyRequest(key_id=key.key.key_id))
    assert isinstance(revoked, keys_pb2.DisableKeyResponse)
    assert revoked.effective_time.ToNanoseconds() / 1e9 - time.time() > STALENESS - 1
    assert world.check(key.secret).reason == authorization_pb2.REASON_KEY_DISABLED
    assert world.is_ready()
    world.to_redis.delay = 0.0
    assert world.healed(key.secret).reason == authorization_pb2.REASON_KEY_DISABLED
    assert world.log.count("limits go by this process' share") == 1


def test_a_redis_that_takes_its_time_is_waited_for(world: World) -> None:
    """Slow, but within the timeout: verdicts are exact, and no change is put off."""
    key = world.key(world.account())
    world.to_redis.delay = 0.04
    for left in (98, 97, 96):
        told = world.check(key.secret)
        assert (told.degraded, told.limits[0].remaining) == (False, left)
    revoked = world.outcome(keys_pb2.RevokeKeyRequest(key_id=key.key.key_id))
    assert isinstance(revoked, keys_pb2.RevokeKeyResponse)
    assert revoked.effective_time.ToNanoseconds() / 1e9 <= time.time()
    assert world.check(key.secret).reason == authorization_pb2.REASON_KEY_REVOKED


def test_a_database_that_takes_longer_than_is_waited_for_is_as_one_that_is_down(world: World) -> None:
    """Known keys go on at once, degraded; new keys, changes and usage are undecided in time; said once; it heals."""
    account = world.account("open")
    key = world.key(account)
    unknown = world.manager(keys_pb2.CreateKeyRequest(account_id=account)).secret
    world.to_database.delay = 1.5
    began = time.monotonic()
    assert world.check(key.secret).allowed
    assert time.monotonic() - began < 1.8, "a check of a known key waits for the database: two seconds"
    world.degraded(key.secret)
    record = authorization_pb2.UsageRecord(record_id="slow", key_id=key.key.key_id, units=1)
    for request in (
        authorization_pb2.CheckKeyRequest(key=unknown),
        keys_pb2.RevokeKeyRequest(key_id=key.key.key_id),
        authorization_pb2.RecordUsageRequest(records=[record]),
    ):
        assert _code(world.outcome(request)) is grpc.StatusCode.UNAVAILABLE
    assert world.is_ready()
    world.to_database.delay = 0.0
    assert world.healed(key.secret).allowed
    assert world.check(unknown).allowed
    assert world.log.count("degraded: the database does not answer") == 1


def test_a_database_that_freezes_under_a_read_holds_no_check(world: World) -> None:
    """Its first check, its counters, its epoch: whatever a check has asked for when it freezes has an end."""
    account = world.account()
    cold = [world.manager(keys_pb2.CreateKeyRequest(account_id=account)).secret for _ in range(3)]
    known = world.key(account)
    world.to_database.stall()
    for secret in cold:
        assert _code(world.outcome(authorization_pb2.CheckKeyRequest(key=secret))) is grpc.StatusCode.UNAVAILABLE
    assert world.degraded(known.secret).allowed
    world.to_database.pass_on()
    assert world.healed(cold[0]).allowed


def test_a_slow_database_costs_checks_nothing(world: World) -> None:
    """Slow, but within its patience: known keys are decided as fast as ever, and exactly; changes take their time."""
    key = world.key(world.account())
    world.to_database.delay = 0.05
    assert world.typical_seconds(key.secret) < 0.1
    told = world.check(key.secret)
    assert (told.degraded, told.limits[0].remaining) == (False, 93)
    assert isinstance(world.outcome(keys_pb2.RevokeKeyRequest(key_id=key.key.key_id)), keys_pb2.RevokeKeyResponse)
    assert world.check(key.secret).reason == authorization_pb2.REASON_KEY_REVOKED


def test_a_dead_redis_is_not_waited_for(world: World) -> None:
    """The first to meet it wait for the timeout; then the circuit is open, and a hundred checks take no time."""
    key = world.key(world.account("open"))
    world.to_redis.stall()
    world.degraded(key.secret)
    time_of_hundred = time.monotonic()
    for _ in range(100):
        assert world.check(key.secret).degraded
    assert time.monotonic() - time_of_hundred < 10, "each check waits for a dead Redis"


def _code(outcome: object) -> grpc.StatusCode | None:
    return outcome.code if isinstance(outcome, Refusal) else None


def _answer(outcome: object) -> authorization_pb2.RecordUsageResponse | None:
    return outcome if isinstance(outcome, authorization_pb2.RecordUsageResponse) else None
