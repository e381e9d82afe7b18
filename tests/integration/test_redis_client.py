"""The hot path's client against one real server: answers in order and whole, or an error that says what may be so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import hiredis
import pytest
import uvloop

from formgate_server.storage.redis.client import RedisClient, connect
from formgate_server.storage.redis.errors import LostAnswer, ScriptFailed, StoreUnavailable
from formgate_server.storage.redis.meeting import Options
from formgate_server.storage.redis.meeting import connected as meet
from formgate_server.storage.redis.script import Script
from formgate_server.storage.redis.single import Redis
from formgate_server.storage.redis.url import Address, parse_url
from tests.support.proxy import Proxy
from tests.support.redis import RedisServer
from tests.support.redis_client import COUNT, TIMEOUT, States, Tally, connected, count, heals, until

KEY = "fg:{a}:n"
AT_ONCE = 0.05
"""The median: a machine that is busy holds up now and then one."""
PATIENT = 1.0
"""A deadline that is told from two of it on a busy machine, too."""
"""Seconds within which what needs no waiting must have ended, on a machine that others use too."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(server.port) as proxy:
        yield proxy


def behind(proxy: Proxy) -> str:
    """The server's URL by way of the proxy."""
    return f"redis://127.0.0.1:{proxy.port}/0"


def runs(server: RedisServer) -> int:
    """How often ``COUNT`` was run."""
    return int(server.do("GET", KEY) or 0)


def counts(client: RedisClient, number: int, *, repeatable: bool = False) -> list[asyncio.Future[Any]]:
    """Begin ``number`` requests in one turn of the loop."""
    return [client.run_soon(COUNT, "a", [KEY], [each], repeatable=repeatable) for each in range(number)]


# Pipelining.


async def test_thousands_at_once_are_run_in_order_and_each_has_its_own_answer(server: RedisServer) -> None:
    """Requests are run in the order in which they were made, once each, and no answer goes to another request."""
    async with connected(server.url(), timeout=10) as client:
        answers = await asyncio.gather(*counts(client, 4_000))
    assert answers == [[each + 1, str(each).encode()] for each in range(4_000)]
    assert runs(server) == 4_000


async def test_the_same_account_has_the_same_connection(server: RedisServer) -> None:
    """With several connections an account's requests are still run in order, and accounts spread over all."""
    async with connected(server.url(), connections=4, timeout=10) as client:
        answers = await asyncio.gather(*counts(client, 500))
        assert [answer[0] for answer in answers] == list(range(1, 501))
        ids = {await client.command("CLIENT", "ID", slot=f"account-{each}") for each in range(64)}
        assert len(ids) == 4
        again = {await client.command("CLIENT", "ID", slot="account-1") for _ in range(8)}
        assert len(again) == 1


async def test_more_than_may_be_under_way_fail_at_once(server: RedisServer) -> None:
    """Beyond the limit a request fails at once, surely not run; those under way are answered."""
    async with connected(server.url(), most=10) as client:
        tally = Tally(await asyncio.gather(*counts(client, 30), return_exceptions=True))
        assert (len(tally.answered), len(tally.refused), len(tally.lost)) == (10, 20, 0)
        assert (await count(client))[0] == 11


async def test_whoever_stops_waiting_disturbs_nobody(server: RedisServer) -> None:
    """A call that is cancelled, and its answer when it comes, leave the others theirs."""
    async with connected(server.url(), timeout=10) as client:
        under_way = counts(client, 100)
        for each in under_way[::2]:
            each.cancel()
        answers = await asyncio.gather(*under_way[1::2])
        assert [int(answer[1]) for answer in answers] == list(range(1, 100, 2))
        assert (await count(client, word="last"))[1] == b"last"


async def test_replies_of_every_shape(server: RedisServer) -> None:
    """Nil, numbers, nested lists, statuses and errors within lists come back as they are; so does a reply of 8 MB."""
    shapes = Script("shapes", "return {1, false, {'a', {2, {}}}, redis.status_reply('FINE')}")
    huge = Script("huge", "return {string.rep('x', 8000000), ARGV[1]}")
    nil = Script("nil", "return nil")
    error = Script("error", "return {redis.error_reply('BAD thing'), 1}")
    async with connected(server.url(), timeout=5) as client:
        assert await client.run(shapes, "a", [], [], repeatable=False) == [1, None, [b"a", [2, []]], b"FINE"]
        assert await client.run(nil, "a", [], [], repeatable=False) is None
        words = [client.run_soon(huge, "a", [], [each], repeatable=False) for each in range(3)]
        replies = await asyncio.gather(*words)
        assert [(len(text), word) for text, word in replies] == [(8_000_000, b"%d" % each) for each in range(3)]
        bad, one = await client.run(error, "a", [], [], repeatable=False)
        assert isinstance(bad, hiredis.ReplyError)
        assert one == 1


async def test_keys_and_arguments_are_any_bytes(server: RedisServer) -> None:
    """Text is sent as UTF-8, bytes as they are, numbers in decimal."""
    echo = Script("echo", "return {KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]}")
    async with connected(server.url()) as client:
        reply = await client.run(echo, "a", ["{a}é", b"{a}\x00\xff"], ["ü", b"\r\n", -(2**62)], repeatable=False)
    assert reply == ["{a}é".encode(), b"{a}\x00\xff", "ü".encode(), b"\r\n", b"%d" % -(2**62)]


async def test_the_database_of_the_url(server: RedisServer) -> None:
    """Scripts and commands work in the database that the URL names."""
    async with connected(server.url(5)) as client:
        await count(client)
        assert await client.command("GET", KEY) == b"1"
    assert server.do("GET", KEY) is None
    assert server.client(5).get(KEY) == b"1"


async def test_a_connection_has_a_name(server: RedisServer) -> None:
    """An operator finds our connections in CLIENT LIST."""
    async with connected(server.url()):
        assert b"name=formgate" in server.do("CLIENT", "LIST")


# Scripts.


async def test_forgotten_scripts_are_sent_again(server: RedisServer) -> None:
    """After SCRIPT FLUSH in the middle of requests, all are answered, each run once; the source is not sent by each."""
    async with connected(server.url(), timeout=10) as client:
        await count(client)
        for _ in range(5):
            under_way = [*counts(client, 150)]
            server.do("SCRIPT", "FLUSH")
            await asyncio.gather(*under_way, *counts(client, 150))
        assert runs(server) == 1 + 5 * 300
        assert server.client().info("commandstats")["cmdstat_eval"]["calls"] < 20


async def test_known_scripts_are_loaded_when_connecting(server: RedisServer) -> None:
    """A server that was restarted has the scripts before the first request comes."""
    states = States()
    async with connected(server.url(), states) as client:
        await count(client)
        server.restart()
        await until(lambda: server.do("SCRIPT", "EXISTS", COUNT.sha1) == [1], "the script is there")
        await heals(client)
        assert "cmdstat_eval" not in server.client().info("commandstats")


async def test_a_script_that_breaks_off_is_not_run_again(server: RedisServer) -> None:
    """What a script did before its error is done: it says so, and is not repeated even where it might be."""
    broken = Script("broken", "redis.call('INCR', KEYS[1]); return redis.call('LPUSH', KEYS[1], 'x')")
    wrong = Script("wrong", "this is not Lua")
    async with connected(server.url()) as client:
        with pytest.raises(ScriptFailed, match="wrong kind of value"):
            await client.run(broken, "a", [KEY], [], repeatable=True)
        assert runs(server) == 1
        with pytest.raises(ScriptFailed):
            await client.run(wrong, "a", [], [], repeatable=True)
        assert (await count(client))[0] == 2


# When the network fails.


async def test_cut_in_the_middle_no_request_is_run_twice(proxy: Proxy, server: RedisServer) -> None:
    """What is not repeatable is run at most once whatever is cut: answered is run, lost may be, refused is not."""
    tallies = []
    async with connected(behind(proxy)) as client:
        for _ in range(5):
            under_way = counts(client, 2_000)
            await asyncio.sleep(0.005)
            await asyncio.to_thread(proxy.cut)
            tallies.append(Tally(await asyncio.gather(*under_way, return_exceptions=True)))
            await heals(client)
    answered = sum(len(tally.answered) for tally in tallies)
    lost = sum(len(tally.lost) for tally in tallies)
    assert lost > 0
    heals_run = 5
    assert answered + heals_run <= runs(server) <= answered + lost + heals_run + 5  # those of heals may be lost, too


async def test_cut_in_the_middle_what_may_be_repeated_is_answered(proxy: Proxy, server: RedisServer) -> None:
    """What is repeatable is sent again over a new connection, within its deadline, and nobody is told of a change."""
    states = States()
    async with connected(behind(proxy), states, timeout=5) as client:
        await asyncio.sleep(1.1)  # a connection that lives is worth a second attempt without a pause
        under_way = counts(client, 2_000, repeatable=True)
        await asyncio.sleep(0.005)
        await asyncio.to_thread(proxy.cut)
        tally = Tally(await asyncio.gather(*under_way, return_exceptions=True))
        assert len(tally.answered) == 2_000
        assert [int(answer[1]) for answer in tally.answered] == list(range(2_000))
    assert runs(server) >= 2_000
    assert states.ups == [True]


async def test_an_answer_cut_short_is_no_answer(proxy: Proxy, server: RedisServer) -> None:
    """Half an answer is lost, and the next connection begins afresh."""
    long = Script("long", "redis.call('INCR', KEYS[1]); return string.rep('x', 100000)")
    async with connected(behind(proxy)) as client:
        proxy.truncate_answers(5_000)
        with pytest.raises(LostAnswer):
            await client.run(long, "a", [KEY], [], repeatable=False)
        await heals(client)
    assert runs(server) == 2


async def test_lost_answers_are_told_in_time(proxy: Proxy, server: RedisServer) -> None:
    """Requests that arrive and whose answers do not: LostAnswer by the deadline, run once each, and never refused."""
    async with connected(behind(proxy), timeout=PATIENT) as client:
        await count(client)
        proxy.swallow_answers()
        before = time.monotonic()
        tally = Tally(await asyncio.gather(*counts(client, 50), return_exceptions=True))
        took = time.monotonic() - before
        assert len(tally.lost) == 50
        assert PATIENT <= took < 2 * PATIENT
        assert runs(server) == 51
        proxy.pass_on()
        await heals(client)


async def test_a_repeatable_request_that_may_have_been_run_never_claims_that_it_was_not(
    proxy: Proxy, server: RedisServer
) -> None:
    """Sent, lost, and then not to be sent again for want of a connection: that is a lost answer, not a refusal."""
    async with connected(behind(proxy)) as client:
        await count(client)
        proxy.swallow_answers()
        under_way = counts(client, 10, repeatable=True)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(proxy.refuse)
        tally = Tally(await asyncio.gather(*under_way, return_exceptions=True))
        assert len(tally.lost) == 10
        assert runs(server) == 11


async def test_a_slow_network_is_within_the_deadline_or_it_is_not(proxy: Proxy) -> None:
    """An answer after 400 ms is an answer; after 2 s it is lost, at the deadline."""
    async with connected(behind(proxy), timeout=PATIENT) as client:
        await count(client)
        proxy.delay = 0.2
        assert (await count(client, word="slow"))[1] == b"slow"
        proxy.delay = 1.0
        before = time.monotonic()
        with pytest.raises(LostAnswer):
            await count(client)
        assert time.monotonic() - before < 2 * PATIENT


async def test_half_open_costs_one_deadline_and_then_nothing(proxy: Proxy) -> None:
    """A network that swallows everything: those under way wait for their deadline, those after them for nothing."""
    states = States()
    async with connected(behind(proxy), states, timeout=PATIENT) as client:
        proxy.stall()
        before = time.monotonic()
        with pytest.raises(LostAnswer):
            await count(client, repeatable=True)
        assert time.monotonic() - before < 2 * PATIENT
        took = []
        for _ in range(50):
            before = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await count(client, repeatable=True)
            took.append(time.monotonic() - before)
        assert median(took) < AT_ONCE
        proxy.pass_on()
        await heals(client)
        assert states.ups == [True, False, True]


async def test_an_idle_client_notices_that_nobody_is_there(proxy: Proxy) -> None:
    """Without any request, a connection that nothing answers on is found within two seconds."""
    states = States()
    async with connected(behind(proxy), states):
        proxy.stall()
        await until(lambda: states.ups == [True, False], "it is told", 3)


# When the server fails.


async def test_a_frozen_server(server: RedisServer) -> None:
    """SIGSTOP: one deadline, then requests fail at once and are surely not run; it heals by itself; told once each."""
    states, took = States(), []
    async with connected(server.url(), states, timeout=PATIENT) as client:
        await count(client)
        server.pause()
        before = time.monotonic()
        first = Tally(await asyncio.gather(*counts(client, 100), return_exceptions=True))
        assert time.monotonic() - before < 2 * PATIENT
        assert len(first.lost) == 100
        for _ in range(20):
            before = time.monotonic()
            with pytest.raises(StoreUnavailable) as caught:
                await count(client)
            assert not isinstance(caught.value, LostAnswer)
            took.append(time.monotonic() - before)
            await asyncio.sleep(0.05)  # through several attempts to connect
        assert median(took) < AT_ONCE
        server.resume()
        await heals(client)
        assert states.ups == [True, False, True]
        # The 100 lay in the server's socket, and were run when it thawed, or thrown away with their connection.
        assert runs(server) in (2, 102)


async def test_a_dead_server_that_comes_back_empty(server: RedisServer) -> None:
    """Killed: requests fail at once; started again, it heals within seconds, and its script runs."""
    states = States()
    async with connected(server.url(), states) as client:
        await count(client)
        server.kill()
        await until(lambda: not states.up, "it is told")
        took = []
        for _ in range(20):
            before = time.monotonic()
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1.*{server.port}"):
                await count(client)
            took.append(time.monotonic() - before)
        assert median(took) < AT_ONCE
        server.start()
        await heals(client)
        assert states.ups == [True, False, True]
        assert runs(server) >= 1


async def test_a_server_that_was_never_there(server: RedisServer) -> None:
    """The first connection may be waited for; when it is refused, requests fail at once and the state is told."""
    server.kill()
    states = States()
    client = connect(server.url(), timeout=PATIENT, on_state=states)
    try:
        before = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await count(client)
        assert time.monotonic() - before < PATIENT
        assert states.ups == [False]
        server.start()
        await heals(client)
        assert states.ups == [False, True]
    finally:
        await client.close()


async def test_requests_wait_for_the_first_connection(server: RedisServer) -> None:
    """Made before the client has connected, requests are answered, in order."""
    client = connect(server.url(), timeout=2, on_state=States())
    try:
        answers = await asyncio.gather(*counts(client, 50))
        assert [answer[0] for answer in answers] == list(range(1, 51))
    finally:
        await client.close()


async def test_somebody_else_who_answers(tmp_path: Path) -> None:
    """What does not speak Redis' protocol is a store that is down, not an answer."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    states = States()
    client = connect(f"redis://127.0.0.1:{other.sockets[0].getsockname()[1]}", timeout=TIMEOUT, on_state=states)
    try:
        with pytest.raises(StoreUnavailable):
            await count(client)
        await until(lambda: states.ups == [False], "it is told")
        assert "does not speak Redis' protocol" in states.told[0][1]
    finally:
        await client.close()
        other.close()


async def test_what_is_asked_over_a_connection_that_has_ended(server: RedisServer) -> None:
    """Has an answer, an error, at once: whoever has just been given a connection need not look at it first."""
    connection = await meet(Address("127.0.0.1", server.port), Options(parse_url(server.url()), PATIENT))
    connection.abort("it is over")
    with pytest.raises(ConnectionError, match="it is over"):
        await asyncio.wait_for(connection.ask("PING"), PATIENT)


async def test_a_connection_that_ends_as_it_is_met(tmp_path: Path) -> None:
    """One that is over before it was ever used is not used, whatever ended it; another is made, and all is well."""
    met = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        first, requests = met == 1, hiredis.Reader()
        while data := await reader.read(65_536):
            requests.feed(data)
            answers = b""
            while (request := requests.gets()) is not False:
                answers += b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n" if request[0] == b"ROLE" else b"+PONG\r\n"
            writer.write(answers + b"+what nobody asked\r\n" if first else answers)
        writer.close()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    states = States()
    client = connect(f"redis://127.0.0.1:{other.sockets[0].getsockname()[1]}", timeout=PATIENT, on_state=states)
    try:
        await until(lambda: met == 2 and states.up, "it is met again")
        assert await client.command("PING") == b"PONG"
        assert "answered what was not asked" in states.told[0][1]
    finally:
        await client.close()
        other.close()


async def test_a_primary_that_was_demoted(server: RedisServer, tmp_path: Path) -> None:
    """A replica takes no write, and says so within a script: nothing was run; it heals when it is a primary again."""
    states = States()
    with RedisServer(tmp_path / "other") as other:
        async with connected(server.url(), states) as client:
            await count(client)
            server.do("REPLICAOF", "127.0.0.1", other.port)
            with pytest.raises(StoreUnavailable) as caught:
                await count(client)
            assert not isinstance(caught.value, LostAnswer)
            await until(lambda: not states.up, "it is told")
            assert "is a replica" in states.told[-1][1]
            server.do("REPLICAOF", "NO", "ONE")
            await heals(client)
            assert states.ups == [True, False, True]


async def test_a_server_that_is_loading(tmp_path: Path) -> None:
    """While it loads its data set nothing is run and nobody waits; then it heals."""
    states = States()
    # It looks around every 2 MB; so slowly, that is ten times a second.
    with RedisServer(tmp_path / "redis", "--key-load-delay", "50000", "--rdbcompression", "no") as server:
        async with connected(server.url(), states) as client:
            await count(client)
            server.do("EVAL", "for i = 1, 30 do redis.call('SET', i, string.rep('x', 1000000)) end", 0)
            server.do("SAVE")
            server.kill()
            server.start(wait=False)
            details: list[str] = []
            took: list[float] = []
            while not details or not states.up:
                before = time.monotonic()
                tally = Tally(await asyncio.gather(count(client), return_exceptions=True))
                took.append(time.monotonic() - before)
                details += [error.detail for error in (*tally.lost, *tally.refused)]
                await asyncio.sleep(0.01)
            assert median(took) < AT_ONCE
            assert any("LOADING" in detail for detail in details)
            await heals(client)
            assert int(server.do("GET", KEY)) >= 2
            assert states.ups == [True, False, True]


async def test_a_server_that_is_busy(server: RedisServer) -> None:
    """While somebody else's script holds it, requests fail in time and are surely not run; then it heals."""
    server.do("CONFIG", "SET", "lua-time-limit", 20)
    async with connected(server.url()) as client:
        await count(client)
        with server.client() as other:
            connection = other.connection_pool.get_connection()
            connection.send_command("EVAL", "while true do end", 0)
            await asyncio.sleep(0.1)
            outcomes = [
                *await asyncio.gather(*counts(client, 5, repeatable=True), return_exceptions=True),
                *await asyncio.gather(*counts(client, 5, repeatable=True), return_exceptions=True),
            ]
            assert len(Tally(outcomes).refused) == 10
            server.do("SCRIPT", "KILL")
        await heals(client)
        assert runs(server) == 2


async def test_a_server_without_memory(server: RedisServer) -> None:
    """OOM is a refusal: nothing was run, and it is not asked again and again."""
    async with connected(server.url()) as client:
        await count(client)
        server.do("CONFIG", "SET", "maxmemory", 1)
        server.do("CONFIG", "RESETSTAT")
        with pytest.raises(StoreUnavailable, match="OOM") as caught:
            await count(client, repeatable=True)
        assert not isinstance(caught.value, LostAnswer)
        assert server.client().info("commandstats")["cmdstat_evalsha"]["calls"] == 1
        server.do("CONFIG", "SET", "maxmemory", 0)
        assert (await count(client))[0] == 2


async def test_a_server_of_a_cluster_by_the_url_of_one(tmp_path: Path) -> None:
    """A single server's URL that leads into a cluster is refused, with the words that say why."""
    with RedisServer(tmp_path / "node", "--cluster-enabled", "yes") as node:
        async with connected(node.url()) as client:
            with pytest.raises(StoreUnavailable):
                await count(client)


# Our own loop.


def _blocked() -> None:
    """Hold the loop, as a long computation would; longer than a deadline."""
    time.sleep(4 * TIMEOUT)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_was_held_up_takes_no_healthy_connection_down(server: RedisServer, new_loop: Any) -> None:
    """Answers that lay in the socket while our own loop was busy are answers, even after their deadline."""

    async def scenario() -> None:
        states = States()
        async with connected(server.url(), states) as client:
            for _ in range(3):
                under_way = counts(client, 100)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                _blocked()
                assert len(await asyncio.gather(*under_way)) == 100
            assert states.ups == [True]

    loop = new_loop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


async def test_closing_ends_everything(server: RedisServer) -> None:
    """Closed: what is under way fails, what comes later too, and no task and no connection is left."""
    before = asyncio.all_tasks()
    async with connected(server.url()) as client:
        server.pause()
        under_way = counts(client, 10, repeatable=True)
        await asyncio.sleep(0.01)
    tally = Tally(await asyncio.gather(*under_way, return_exceptions=True))
    assert len(tally.lost) == 10
    with pytest.raises(StoreUnavailable):
        await count(client)
    server.resume()
    await until(lambda: server.client().info("clients")["connected_clients"] == 1, "no connection is left")
    assert asyncio.all_tasks() == before


async def test_closing_ends_what_is_still_to_be_answered(server: RedisServer) -> None:
    """A connection that was given up for a better one, with a request under way, ends with the client, too."""
    async with connected(server.url(), timeout=30) as client:
        assert isinstance(client, Redis)
        server.pause()
        under_way = client.run_soon(COUNT, "a", [KEY], [""], repeatable=False)
        await asyncio.sleep(0)
        client._lines()[0].renew("another is the primary now")
        assert not under_way.done()
    assert under_way.done()
    assert isinstance(under_way.exception(), LostAnswer)
