"""`formgate serve` as a process: how it starts, what it refuses, what it answers, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from formgate.v1 import authorization_pb2_grpc
from formgate.v1.accounts_pb2 import CreateAccountRequest, ListAccountsRequest
from formgate.v1.authorization_pb2 import (
    OUTCOME_ACCEPTED,
    OUTCOME_DUPLICATE,
    REASON_KEY_NOT_FOUND,
    BatchCheckKeysRequest,
    CheckKeyRequest,
    RecordUsageRequest,
    UsageRecord,
)
from formgate.v1.keys_pb2 import (
    CreateKeyRequest,
    CreateKeyResponse,
    RevealKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
)
from formgate.v1.resources_pb2 import CALENDAR_DAY, CALENDAR_MONTH, HOLDER_ACCOUNT, HOLDER_KEY, Limit
from tests.support.client import Client
from tests.support.clock import noon_zone
from tests.support.command import run_process
from tests.support.server import COMMAND, Server, clean_environment, eventually
from tests.support.workers import SupervisedServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
MANUAL = Path(__file__).parents[2] / "docs" / "operations" / "embedded.md"
LISTEN_ANYWHERE = "0.0.0.0:0"


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet, and that does not outlive the test."""
    kind: type[Server] = getattr(request, "param", Server)
    made = kind(tmp_path / "a")
    yield made
    made.kill()


supervised_too = pytest.mark.parametrize(
    "server", [Server, SupervisedServer], indirect=True, ids=["alone", "supervised"]
)
"""What a user sees is the same where a supervisor runs a worker that serves."""


@contextmanager
def client(server: Server) -> Iterator[Client]:
    """Connect for a while."""
    with closing(Client(server.address, server.token)) as connected:
        yield connected


def refused(server: Server, code: int = 1) -> str:
    """Start it and return what it said: it must end with ``code``, without a word of being ready or a traceback."""
    before = len(server.log) if server.logs.exists() else 0
    server.spawn()
    ended = server.wait()
    said = server.log[before:]
    assert ended == code, said
    assert "Traceback" not in said
    assert "formgate is ready" not in server.stdout.read_text()
    return " ".join(said.split())


def get(server: Server, path: str) -> tuple[int, str]:
    """Return the status and body of an HTTP answer."""
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def new_key(manager: Client) -> CreateKeyResponse:
    """Make an account and a key of it, without limits."""
    account = manager(CreateAccountRequest()).account
    made: CreateKeyResponse = manager(CreateKeyRequest(account_id=account.account_id))
    return made


def turned_away(server: Server, secret: str) -> bool:
    """Return whether a new caller is told UNAVAILABLE, and not answered."""
    with server.channel() as channel:
        checking = authorization_pb2_grpc.AuthorizationServiceStub(channel).CheckKey
        try:
            checking(CheckKeyRequest(key=secret), metadata=server.metadata, timeout=10)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAVAILABLE)
    return False


# ------------------------------------------------------------------------------------------------------------- starting


@supervised_too
def test_on_ready_it_prints_one_line_with_its_addresses(server: Server) -> None:
    """Nothing else, and both addresses answer at once."""
    with server:
        assert server.stdout.read_text() == (
            f"formgate is ready: grpc {server.address}, http {server.http}, data {server.data}\n"
        )
        assert get(server, "/readyz")[0] == 200
        with client(server) as manager:
            manager(ListAccountsRequest())
    assert server.stdout.read_text().count("\n") == 1


@supervised_too
def test_it_answers_probes_and_metrics(server: Server) -> None:
    """Livez, readyz and metrics over HTTP, without a token; nothing else is there. Metrics hold no secret."""
    with server:
        with client(server) as manager:
            secret = new_key(manager).secret
            assert manager(CheckKeyRequest(key=secret)).allowed
        assert get(server, "/livez") == (200, "ok\n")
        assert get(server, "/readyz") == (200, "ok\n")
        status, metrics = get(server, "/metrics")
        assert status == 200
        assert "formgate_" in metrics
        assert secret not in metrics
        assert server.token not in metrics
        for path in ("/", "/livez/", "/metrics/x", "/../livez"):
            assert get(server, path)[0] == 404


@supervised_too
def test_it_looks_for_garbage_seldom(server: Server) -> None:
    """Ten batches of 500 checks are made without a pause for each of them."""

    def told(pattern: str) -> float:
        _, metrics = get(server, "/metrics")
        return max(map(float, re.findall(rf"^{pattern} (.*)$", metrics, re.MULTILINE)), default=-1)

    def looks_after(checks: int) -> float:
        counted = r'formgate_checks_total{reason="MALFORMED_KEY"}'
        eventually(lambda: told(counted) == checks or None, 30, "what a worker says every second")
        return told(r'python_gc_collections_total{generation="0"(?:,worker="1")?}')

    batch = BatchCheckKeysRequest(requests=[CheckKeyRequest(key="x")] * 500)
    with server, client(server) as manager:
        manager(batch)
        before = looks_after(500)
        for _ in range(10):
            manager(batch)
        assert looks_after(5_500) - before < 10


def test_health_is_open_and_serving(server: Server) -> None:
    """Of the server and of each service, without a token."""
    with server, server.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", "formgate.v1.AuthorizationService", "formgate.v1.KeyService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_nothing_it_keeps_can_be_read_by_others(server: Server, umask: int) -> None:
    """The folder is 0700 and every file in it 0600, while it serves and after, whatever the umask."""
    before = os.umask(umask)
    try:
        server.start()
    finally:
        os.umask(before)

    def modes() -> dict[str, int]:
        return {path.name: stat.S_IMODE(path.stat().st_mode) for path in [server.data, *server.data.rglob("*")]}

    with client(server) as manager:
        new_key(manager)
    serving = modes()
    server.stop()
    for seen in (serving, modes()):
        assert {"formgate.db", "pepper", "manager.token", "lock"} <= seen.keys()
        assert seen.pop("data") == 0o700
        assert set(seen.values()) == {0o600}


def test_migrate_then_serve(server: Server) -> None:
    """`formgate migrate` makes the database and may be repeated; then it is served, and while it is, refused."""
    migrate = [str(COMMAND), "migrate", "--data", str(server.data)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(migrate, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False)

    server.folder.mkdir()
    for _ in range(2):
        done = run()
        assert done.returncode == 0, done.stderr
    with server:
        with client(server) as manager:
            assert manager(CheckKeyRequest(key=new_key(manager).secret)).allowed
        beside = run()
        assert (beside.returncode, "in use" in beside.stderr) == (1, True)
    assert run().returncode == 0


# ------------------------------------------------------------------------------------------------------------- refusing


def test_a_second_server_on_the_same_folder_is_refused(server: Server) -> None:
    """It says which folder and what to do, and the first goes on."""
    with server:
        second = Server(server.folder.parent / "b")
        second.data = server.data
        said = refused(second)
        assert f"{server.data} is in use by another server" in said
        with client(server) as manager:
            manager(ListAccountsRequest())
    second.start()
    second.stop()


@supervised_too
@pytest.mark.parametrize(
    "option",
    [
        "--listen",
        "--http",
    ],
)
def test_a_port_that_is_taken_is_refused(server: Server, option: str) -> None:
    """It names the address; the folder is free again for another start."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server.options = (option, address)
        said = refused(server)
    assert address in said
    server.options = ()
    server.start()
    server.stop()


@supervised_too
def test_a_port_of_another_formgate_is_not_shared_with_it(server: Server) -> None:
    """Two servers on one port would each count half: the second is refused."""
    with server:
        second = Server(server.folder.parent / "b", "--listen", server.address)
        assert server.address in refused(second)


@supervised_too
def test_a_missing_pepper_is_not_made_anew(server: Server) -> None:
    """Every key would be unknown: it says which file to put back, and with that all is as before."""
    with server, client(server) as manager:
        secret = new_key(manager).secret
    pepper = server.data / "pepper"
    away = pepper.rename(server.folder / "away")
    server.stdout.unlink()
    assert f"{pepper} is missing: put it back" in refused(server)
    assert not pepper.exists()
    away.rename(pepper)
    with server, client(server) as manager:
        assert manager(CheckKeyRequest(key=secret)).allowed


@pytest.mark.parametrize("given", ["in the folder", "--pepper-file"])
def test_another_pepper_is_refused(server: Server, given: str) -> None:
    """It says so, without showing either; beside the old one, which finds what was stored, a new one is welcome."""
    with server, client(server) as manager:
        secret = new_key(manager).secret
    pepper = server.data / "pepper"
    old, new = pepper.read_text().strip(), "ab" * 32
    if given == "--pepper-file":
        pepper = server.folder / "peppers"
        pepper.touch(0o600)
        server.options = ("--pepper-file", str(pepper))
    pepper.write_text(f"{new}\n")
    server.stdout.unlink()
    said = refused(server)
    assert re.search(rf"holds 1 key and 1 service token under pepper \w{{16}}, which is not in {pepper}", said)
    assert new not in said
    assert old not in said
    pepper.write_text(f"{new}\n{old}\n")
    with server, client(server) as manager:
        assert manager(CheckKeyRequest(key=secret)).allowed


def test_a_pepper_is_retired(server: Server) -> None:
    """Once nothing of use is stored under it, and not before; the manager's token goes to the newest by itself."""
    with server, client(server) as manager:
        made, ended = new_key(manager), new_key(manager)
        manager(RevokeKeyRequest(key_id=ended.key.key_id))
    pepper = server.data / "pepper"
    old, new = pepper.read_text(), f"{'ab' * 32}\n"
    pepper.write_text(new + old)
    for needed_by in ("1 key and 1 service token", "1 key"):
        server.logs.unlink()
        with server:
            assert f'"needed_by": "{needed_by}"' in server.log
    pepper.write_text(new)
    before = contents(server.data)
    server.stdout.unlink()
    assert "holds 1 key under pepper" in refused(server)
    assert contents(server.data) == before
    pepper.write_text(new + old)
    with server, client(server) as manager:
        secret = manager(RotateKeyRequest(key_id=made.key.key_id)).secret
    pepper.write_text(new)
    retired = server.folder / "retired"
    retired.touch(0o600)
    retired.write_text(old)
    with server, client(server) as manager:
        assert manager(CheckKeyRequest(key=secret)).allowed
        assert not manager(CheckKeyRequest(key=made.secret)).allowed
    verify = ("audit", "verify", "--data", str(server.data))
    assert run_process(*verify).code == 3
    assert run_process(*verify, "--retired-pepper-file", str(retired)).code == 0


def test_a_sealing_key_is_needed_by_what_is_sealed_only(server: Server) -> None:
    """Lost before anything was sealed, another is made; lost with what is sealed, it is refused, and none is made."""
    with server:
        pass
    sealing_key = server.data / "sealing.key"
    sealing_key.unlink()
    with server, client(server) as manager:
        manager(CreateAccountRequest(account_id="sealed", policy="jodoo"))
        made = manager(CreateKeyRequest(account_id="sealed"))
    away = sealing_key.rename(server.folder / "away")
    before = contents(server.data)
    server.stdout.unlink()
    assert "holds 1 key under sealing key" in refused(server)
    assert not sealing_key.exists()
    assert contents(server.data) == before
    away.rename(sealing_key)
    with server, client(server) as manager:
        assert manager(RevealKeyRequest(key_id=made.key.key_id)).secret == made.secret
        manager(RevokeKeyRequest(key_id=made.key.key_id))
    sealing_key.unlink()
    with server:
        assert sealing_key.exists()


def test_what_is_lost_for_good_is_given_up(server: Server) -> None:
    """As the manual says: with a pepper or a sealing key lost it starts again, and a key that is rotated works."""
    with server, client(server) as manager:
        manager(CreateAccountRequest(account_id="sealed", policy="jodoo"))
        made = manager(CreateKeyRequest(account_id="sealed"))
    of_pepper, of_sealing_key = re.findall(r"```sql\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)
    (server.data / "sealing.key").unlink()
    give_up(server, "sealing key", of_sealing_key)
    with server, client(server) as manager:
        assert manager(CheckKeyRequest(key=made.secret)).allowed
        assert manager.refusal(RevealKeyRequest(key_id=made.key.key_id)).reason == "NOT_RECOVERABLE"
    (server.data / "pepper").write_text("ab" * 32)
    give_up(server, "pepper", of_pepper)
    with server, client(server) as manager:
        assert manager(CheckKeyRequest(key=made.secret)).reason == REASON_KEY_NOT_FOUND
        secret = manager(RotateKeyRequest(key_id=made.key.key_id)).secret
        assert manager(CheckKeyRequest(key=secret)).key.key_id == made.key.key_id
        assert manager(RevealKeyRequest(key_id=made.key.key_id)).secret == secret


def give_up(server: Server, what: str, statements: str) -> None:
    """See it refused, and end what is stored under the id that it says."""
    server.stdout.unlink()
    (lost,) = re.findall(rf"under {what} (\w{{16}}), which is not in", refused(server))
    with closing(sqlite3.connect(server.data / "formgate.db")) as database:
        database.executescript(statements.replace("'ID'", f"'{lost}'"))


def contents(folder: Path) -> dict[str, str | bytes]:
    """Return what is in a data folder; of the database, its rows."""
    found: dict[str, str | bytes] = {}
    for path in folder.iterdir():
        if path.name == "formgate.db":
            with closing(sqlite3.connect(path)) as database:
                found[path.name] = "\n".join(database.iterdump())
        elif not path.name.startswith("formgate.db-"):
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("option", ["--listen", "--http"])
def test_beyond_loopback_it_wants_to_be_told(server: Server, option: str) -> None:
    """Secrets would travel in clear: refused as wrong usage before anything is made, served with --insecure."""
    server.options = (option, LISTEN_ANYWHERE)
    assert "--insecure" in refused(server, code=2)
    assert not server.data.exists()
    server.options = (option, LISTEN_ANYWHERE, "--insecure")
    server.start()
    server.stop()


@pytest.mark.parametrize("missing", ["FORMGATE_REDIS_URL", "FORMGATE_DATABASE_URL", "both"])
def test_workers_that_would_count_apart_are_refused(server: Server, missing: str) -> None:
    """Without Redis, or on a folder, each would have the whole limits for itself: it says what to give, and why."""
    urls = {"FORMGATE_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x", "FORMGATE_REDIS_URL": "redis://:hunter2@x"}
    given = {} if missing == "both" else {name: url for name, url in urls.items() if name != missing}
    server.environment |= given | {"FORMGATE_WORKERS": "2"}
    said = refused(server)
    assert "multiply the limits" in said
    assert all((name in said) is (name not in given) for name in urls)
    assert "hunter2" not in said
    assert not server.data.exists()


def test_fewer_processes_than_workers_is_wrong(server: Server) -> None:
    """Each would take too large a share of the limits when Redis is down."""
    server.options = ("--workers", "3", "--processes", "2")
    assert "processes are all that share the limits" in refused(server, code=2)


# --------------------------------------------------------------------------------------------------------------- ending


@pytest.mark.parametrize(
    ("server", "send"), [(Server, os.kill), (SupervisedServer, os.killpg)], indirect=["server"], ids=["alone", "all"]
)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_asked_to_end_it_ends_with_0(server: Server, send: Callable[[int, int], None], name: str) -> None:
    """Without a traceback, and ready for the next start; also where all processes are asked, as by ctrl-C."""
    server.start()
    send(server.process.pid, signal.Signals[name])
    assert server.wait() == 0
    assert "Traceback" not in server.log
    server.start()
    server.stop()


def test_a_hang_up_drains(server: Server) -> None:
    """As when its terminal is closed. Where there are workers, it is how they are renewed."""
    server.start()
    server.process.send_signal(signal.SIGHUP)
    assert server.wait() == 0
    assert "draining" in server.log


def test_with_nohup_it_outlives_its_terminal(server: Server) -> None:
    """Whoever has it ignore the signal means it."""
    server.command = ("/usr/bin/nohup", *server.command)
    server.start()
    server.process.send_signal(signal.SIGHUP)
    with client(server) as manager:
        new_key(manager)
    server.stop()
    assert server.log.count("draining") == 1


@supervised_too
def test_sigterm_drains(server: Server) -> None:
    """A call under way ends as if nothing were, whoever watches is told, and new ones are turned away.

    The call is a RecordUsage that can not end until the test has let go of the database.
    """
    server.options = ("--drain-seconds", "60")
    server.start()
    with client(server) as manager:
        made = new_key(manager)
    database = sqlite3.connect(server.data / "formgate.db", isolation_level=None)
    with closing(database), server.channel() as channel, server.channel() as watching:
        stub = authorization_pb2_grpc.AuthorizationServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(watching)
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watched).status == SERVING
        database.execute("BEGIN IMMEDIATE")
        record = RecordUsageRequest(records=[UsageRecord(record_id="r1", key_id=made.key.key_id, units=7)])
        under_way = stub.RecordUsage.future(record, metadata=server.metadata, timeout=60)
        for _ in range(20):  # answered one after the other on the same connection: the record has been taken up by now
            assert stub.CheckKey(CheckKeyRequest(key=made.secret), metadata=server.metadata, timeout=10).allowed
        assert not under_way.done()
        server.process.terminate()
        assert next(watched).status == NOT_SERVING
        watched.cancel()
        assert eventually(lambda: get(server, "/readyz") == (503, "no\n"), 10, "no longer ready")
        assert get(server, "/livez")[0] == 200
        assert eventually(lambda: turned_away(server, made.secret), 10, "new calls turned away")
        assert server.running
        assert not under_way.done()
        database.execute("ROLLBACK")
        assert under_way.result(30).results[0].outcome == OUTCOME_ACCEPTED
        assert server.wait() == 0
    with server, client(server) as manager:
        assert manager(record).results[0].outcome == OUTCOME_DUPLICATE


@supervised_too
def test_asked_twice_it_hurries(server: Server) -> None:
    """Calls that are still under way are broken off, and it ends with 0 all the same."""
    server.options = ("--drain-seconds", "600")
    server.start()
    with server.channel() as watching:
        health: Any = health_pb2_grpc.HealthStub(watching)
        watched = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watched).status == SERVING
        server.process.terminate()
        assert next(watched).status == NOT_SERVING
        with pytest.raises(subprocess.TimeoutExpired):
            server.wait(1)
        server.process.terminate()
        with pytest.raises(grpc.RpcError):
            next(watched)
        assert server.wait(20) == 0
    assert "Traceback" not in server.log


def test_a_drain_in_a_storm_cuts_no_call_short(server: Server) -> None:
    """Calls from many threads: each is answered, or was never taken (UNAVAILABLE); all that was taken is kept."""
    server.start()
    with client(server) as manager:
        key_id = new_key(manager).key.key_id

    def storm(number: int) -> tuple[list[str], grpc.StatusCode]:
        kept: list[str] = []
        with client(server) as recorder:
            for turn in range(100_000):
                records = [UsageRecord(record_id=f"{number}-{turn}-{i}", key_id=key_id) for i in range(30)]
                try:
                    answer = recorder(RecordUsageRequest(records=records))
                except grpc.RpcError as error:
                    return kept, error.code()
                assert {result.outcome for result in answer.results} == {OUTCOME_ACCEPTED}
                kept += [record.record_id for record in records]
        raise AssertionError("the server never went away")

    with ThreadPoolExecutor(4) as threads:
        storms = [threads.submit(storm, number) for number in range(4)]
        with closing(sqlite3.connect(f"file:{server.data}/formgate.db?mode=ro", uri=True)) as database:
            count = "SELECT count(*) FROM usage_records"
            eventually(lambda: database.execute(count).fetchone()[0] > 500, 60, "records")
        server.stop()
        acknowledged = {record_id for each in storms for record_id in each.result()[0]}
        assert {each.result()[1] for each in storms} == {grpc.StatusCode.UNAVAILABLE}
    with closing(sqlite3.connect(server.data / "formgate.db")) as database:
        there = {record_id for (record_id,) in database.execute("SELECT record_id FROM usage_records")}
    assert acknowledged <= there
    assert len(acknowledged) > 500


def test_a_drain_cancels_no_call(server: Server) -> None:
    """What has arrived in that moment is answered; what comes later is UNAVAILABLE, and may be tried again."""
    server.start()
    with client(server) as manager:
        secret = new_key(manager).secret
    callers = 16

    def call() -> grpc.StatusCode:
        own = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(server.address, options=own) as channel:
            checking = authorization_pb2_grpc.AuthorizationServiceStub(channel).CheckKey
            while True:
                try:
                    checking(CheckKeyRequest(key=secret), metadata=server.metadata, timeout=30)
                except grpc.RpcError as error:
                    code: grpc.StatusCode = error.code()
                    return code

    with ThreadPoolExecutor(callers) as threads:
        calls = [threads.submit(call) for _ in range(callers)]
        time.sleep(1)  # so that all of them are in the middle of it
        server.stop()
        assert {each.result() for each in calls} == {grpc.StatusCode.UNAVAILABLE}


def test_a_restart_costs_no_quota(server: Server) -> None:
    """After SIGTERM every limit, of whatever kind and holder, has exactly left what it had before."""
    limits = []
    for holder in (HOLDER_KEY, HOLDER_ACCOUNT):
        made = [Limit(calendar=CALENDAR_DAY), Limit(calendar=CALENDAR_MONTH), Limit(lifetime=True), Limit()]
        made[-1].window.FromSeconds(3_600)
        for number, limit in enumerate(made):
            limit.name, limit.holder, limit.amount = f"limit{holder}{number}", holder, 5_000
        limits += made
    server.start()
    with client(server) as manager:
        account = manager(CreateAccountRequest(limits=limits[4:], time_zone=noon_zone())).account
        made_key = manager(CreateKeyRequest(account_id=account.account_id, limits=limits[:4]))
        for cost in (1, 7, 300, 1, 1):
            assert manager(CheckKeyRequest(key=made_key.secret, cost=cost)).allowed
    for _ in range(2):
        server.stop()
        server.start()
        with client(server) as manager:
            looked = manager(CheckKeyRequest(key=made_key.secret, cost=0))
            assert [limit.remaining for limit in looked.limits] == [5_000 - 310] * 8
    server.stop()


# ---------------------------------------------------------------------------------------------------------- connections


def test_old_connections_are_replaced_and_no_call_fails(server: Server) -> None:
    """So that long ones find their way to new workers and replicas: here after a second, under ceaseless calls."""
    server.options = ("--max-connection-age-seconds", "1")
    server.start()
    with client(server) as manager:
        secret = new_key(manager).secret
    ends = time.monotonic() + 5

    def call() -> int:
        answered = 0
        with client(server) as checker:
            while time.monotonic() < ends:
                assert checker(CheckKeyRequest(key=secret)).allowed
                answered += 1
        return answered

    ports: set[int] = set()
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call) for _ in range(4)]
        while time.monotonic() < ends:
            ports |= {
                each.raddr.port
                for each in psutil.Process(server.process.pid).net_connections("tcp")
                if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == int(server.address.rpartition(":")[2])
            }
            time.sleep(0.1)
        assert all(each.result() > 100 for each in calls)
    assert len(ports) >= 3, "gRPC has the four share a connection, but not the same one all the time"
    server.stop()
