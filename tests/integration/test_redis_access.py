"""Who may connect to Redis and how: users, passwords, the least rights, TLS, and the look before serving."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from formgate_server.core.limits import Counter
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling
from formgate_server.core.ports import Charge, Charged, EpochMissing, EpochMoved, LeaseCharge, Leased
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.redis.client import connect
from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.limiter import RedisLimiter
from formgate_server.storage.redis.preflight import preflight
from formgate_server.storage.redis.script import Script
from formgate_server.truth import SystemClock
from tests.support.certificates import Authority
from tests.support.clock import HOUR, SECOND
from tests.support.proxy import Proxy
from tests.support.redis import SERVERS, RedisServer, speaks_tls
from tests.support.redis_client import COUNT, TIMEOUT, States, connected, count, until

SECRET = "p@ss/w?rd%s3cr3t"
DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "operations" / "redis.md"


def documented_rights() -> str:
    """The rights of the ACL line in docs/operations/redis.md."""
    (line,) = (line for line in DOCUMENTED.read_text().splitlines() if line.startswith("ACL SETUSER formgate "))
    return line.partition(">PASSWORD ")[2]


def secured(folder: Path, *options: str, rights: str = "", binary: Path | None = None) -> RedisServer:
    """A server that wants a password of everybody, with a user ``formgate`` and one for the tests."""
    users = [
        "user default off",
        "user admin on >admin ~* &* +@all",
        f"user formgate on >{SECRET} {rights or documented_rights()}",
    ]
    return RedisServer(folder, *options, users=users, admin=("admin", "admin"), binary=binary)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A secured server of each kind that there is."""
    with secured(tmp_path / "redis", binary=SERVERS[request.param]) as server:
        yield server


async def test_the_documented_rights_suffice(server: RedisServer) -> None:
    """A user with no more than the rights in docs/operations/redis.md does all that the client does."""
    reads_replid = Script("replid", "return redis.call('INFO', 'replication')")
    states = States()
    async with connected(server.url(1, user="formgate", password=SECRET), states) as client:
        assert await count(client) == [1, b""]
        assert await client.command("WAIT", 0, 10) == 0
        assert b"master_replid" in await client.run(reads_replid, "a", [], [], repeatable=True)
        server.restart()
        await until(lambda: server.do("SCRIPT", "EXISTS", COUNT.sha1) == [1], "the script is loaded again")
    (facts,) = await preflight(server.url(user="formgate", password=SECRET))
    assert list(facts.problems) == []
    assert facts.replid_in_scripts


async def test_the_documented_rights_suffice_for_all_that_is_counted(server: RedisServer) -> None:
    """Epochs, charges, marks, refunds, leases: with no more than these rights, and none of it degraded."""
    kinds: tuple[Rolling | Calendar | Lifetime, ...] = (
        Rolling(60 * SECOND),
        Rolling(HOUR),
        Calendar(Period.DAY),
        Lifetime(),
    )
    limits = tuple(
        Counter(f"a/{number}", Limit(f"{number}", Holder.ACCOUNT, 1_000, per), "UTC")
        for number, per in enumerate(kinds)
    )
    async with connected(server.url(1, user="formgate", password=SECRET)) as client:
        limiter = RedisLimiter(client, MemoryReservations(), SystemClock())
        try:
            await limiter.none_out("a")
            missing = await limiter.charge(Charge("a", 1, "k", limits, 7, "r"))
            assert isinstance(missing, EpochMissing)
            await limiter.seed("a", 1, missing.incarnation)
            charged = await limiter.charge(Charge("a", 1, "k", limits, 7, "r"))
            assert charged == Charged(None, None, await limiter.look("a", limits))
            await limiter.refund("a", "k", "r")
            await limiter.adjust("a", limits, 3, once="b")
            assert [each.remaining for each in await limiter.look("a", limits)] == [997] * 4
            leased = await limiter.lease(LeaseCharge("a", 1, limits, 8, SECOND, "l"))
            assert isinstance(leased, Leased)
            assert leased.units
            assert (await limiter.out("a")).left > 0
            assert await limiter.settle("a", "l", leased.units) == leased.units
            await limiter.publish("a", 2)
            assert await limiter.charge(Charge("a", 1, "k", limits, 1)) == EpochMoved(2)
        finally:
            await limiter.close()


async def test_the_documented_rights_are_no_more_than_that(server: RedisServer) -> None:
    """With them one cannot read other applications' keys, flush, configure, or shut the server down."""
    async with connected(server.url(user="formgate", password=SECRET)) as client:
        for command in (("GET", "other"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("SHUTDOWN",), ("KEYS", "*")):
            with pytest.raises(StoreUnavailable, match="NOPERM"):
                await client.command(*command)


async def test_a_wrong_password_is_told_and_not_shown(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password fails every request at once, says so, and appears nowhere; put right, the same client heals."""
    caplog.set_level(logging.DEBUG)
    states = States()
    wrong = f"{SECRET}-wrong"
    client = connect(server.url(user="formgate", password=wrong), timeout=TIMEOUT, on_state=states)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await count(client)
        assert "does not take the user and password (WRONGPASS)" in caught.value.detail
        shown = f"{caught.value!r} {states.told} {caplog.text} {vars(client)}"
        assert SECRET not in shown
        server.do("ACL", "SETUSER", "formgate", f">{wrong}")
        await until(lambda: states.up, "it is up")
        assert (await count(client))[0] == 1
        assert states.ups == [False, True]
    finally:
        await client.close()


async def test_no_password_where_one_is_wanted(server: RedisServer) -> None:
    """Without a password the server refuses, and the state says how."""
    states = States()
    client = connect(server.url(), timeout=TIMEOUT, on_state=states)
    try:
        with pytest.raises(StoreUnavailable, match="NOAUTH"):
            await count(client)
    finally:
        await client.close()


# TLS. The servers of a wheel do not speak it, so that a proxy does for them.


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority."""
    return Authority(tmp_path / "certificates")


async def test_tls_with_certificates_on_both_sides(tmp_path: Path, authority: Authority) -> None:
    """rediss:// speaks TLS, trusts the authority that the URL names, and shows our own certificate."""
    certificate, key = authority.sign("client")
    with (
        RedisServer(tmp_path / "redis") as server,
        Proxy(server.port, tls=authority.server_context(clients=True)) as proxy,
    ):
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.certificate}"
        async with connected(f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}", timeout=10) as client:
            assert (await count(client))[0] == 1
            long = Script("long", "return string.rep('x', 1000000)")
            assert len(await client.run(long, "a", [], [], repeatable=True)) == 1_000_000
        with pytest.raises(StoreUnavailable):
            await refused(url)


async def test_tls_trusts_no_other_authority_and_no_other_name(tmp_path: Path, authority: Authority) -> None:
    """A certificate of another authority, or of another host, is refused, and nothing is sent to it."""
    other = Authority(tmp_path / "other", "other")
    with RedisServer(tmp_path / "redis") as server:
        tls = authority.server_context(clients=False, hosts=("10.0.0.1",))
        with Proxy(server.port, tls=tls) as proxy:
            url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs="
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                await refused(f"{url}{other.certificate}")
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                await refused(f"{url}{authority.certificate}")
            async with connected(f"{url}{authority.certificate}&ssl_check_hostname=false", timeout=2) as client:
                assert (await count(client))[0] == 1


async def refused(url: str) -> None:
    """Make one request."""
    client = connect(url, timeout=2, on_state=States())
    try:
        await count(client)
    finally:
        await client.close()


@pytest.mark.parametrize("name", SERVERS)
async def test_tls_of_the_server_itself(tmp_path: Path, authority: Authority, name: str) -> None:
    """A server that speaks TLS itself, and wants a certificate of its clients."""
    if not speaks_tls(SERVERS[name]):
        pytest.skip(f"{name} was built without TLS")
    certificate, key = authority.sign("client")
    with RedisServer(tmp_path / "redis", binary=SERVERS[name], authority=authority) as server:
        url = f"{server.url(2)}?ssl_ca_certs={authority.certificate}"
        async with connected(f"{url}&ssl_certfile={certificate}&ssl_keyfile={key}", timeout=2) as client:
            assert (await count(client))[0] == 1
        with pytest.raises(StoreUnavailable):
            await refused(url)


# The look before serving.


async def test_preflight_accepts_what_is_well(tmp_path: Path) -> None:
    """A server as it should be has no problems, and its facts are told."""
    with RedisServer(tmp_path / "redis") as server:
        (facts,) = await preflight(server.url())
    assert list(facts.problems) == []
    assert (facts.eviction, facts.replicas, facts.replid_in_scripts) == ("noeviction", 0, True)


async def test_preflight_refuses_a_redis_that_may_evict(tmp_path: Path) -> None:
    """A Redis that may throw counters away is a problem, and the problem says what to set."""
    with RedisServer(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru") as server:
        (facts,) = await preflight(server.url())
    (problem,) = facts.problems
    assert "allkeys-lru" in problem
    assert "set maxmemory-policy to noeviction" in problem


async def test_preflight_names_the_rights_that_are_missing(tmp_path: Path) -> None:
    """Where neither INFO nor CONFIG may be asked, that is a problem: it is never taken for well."""
    rights = documented_rights().replace("+info ", "")
    with secured(tmp_path / "redis", rights=rights) as server:
        (facts,) = await preflight(server.url(user="formgate", password=SECRET))
    problems = list(facts.problems)
    assert len(problems) == 2
    assert all("+info" in problem for problem in problems)
    assert not facts.replid_in_scripts


async def test_preflight_refuses_a_user_without_our_keys(tmp_path: Path) -> None:
    """A user that may have other keys only is a problem before the first check fails for it."""
    rights = documented_rights().replace("~fg:{*", "~{*")
    with secured(tmp_path / "redis", rights=rights) as server:
        (facts,) = await preflight(server.url(user="formgate", password=SECRET))
    (problem,) = facts.problems
    assert "~fg:{*" in problem


async def test_preflight_of_nobody(tmp_path: Path) -> None:
    """A server that is not there is unavailable, by name; a wrong URL is a ValueError."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    server.kill()
    with pytest.raises(StoreUnavailable, match=str(server.port)):
        await preflight(server.url())
    with pytest.raises(ValueError, match="begins with"):
        await preflight("http://host")
