"""`formgate serve` with workers, as real processes: what is killed is replaced, and callers see little of it."""

from __future__ import annotations

import inspect
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Self

import grpc
import psutil
import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from formgate.v1 import authorization_pb2_grpc
from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2 import REASON_RATE_LIMITED, CheckKeyRequest
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, Limit
from formgate_server import bootstrap, metrics, server
from formgate_server.settings import Settings
from tests.support.client import Client
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually
from tests.support.workers import SupervisedServer, workers_of

WORKERS = 2
REPLACED = 60.0
"""Seconds in which another worker serves, on a machine that has other things to do too."""
LABELS = {
    "reason",
    "outcome",
    "store",
    "files",
    "certificate",
    "worker",
    "generation",
    "version",
    "implementation",
    "major",
    "minor",
    "patchlevel",
    "method",
    "code",
    "limit",
    "size",
    "pool",
    "cause",
    "by",
    "setting",
    "kind",
    "le",
}

redis_is_wired = pytest.mark.skipif(
    "this version has no counters in Redis" in inspect.getsource(bootstrap),
    reason="the server can not count in Redis yet",
)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Server]:
    """One worker and its supervisor, serving a folder."""
    made = SupervisedServer(tmp_path / "a")
    made.start()
    yield made
    made.kill()


class SharedServer(Server):
    """Several workers over PostgreSQL and Redis."""

    bootstrap_token = "manager-" + secrets.token_hex(16)

    @property
    def token(self) -> str:
        """The token that it was given."""
        return self.bootstrap_token


@pytest.fixture(scope="session")
def durable_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server as one of production is: workers refuse one that may lose what it has acknowledged."""
    with PostgresServer(durable=True) as started:
        yield started


@pytest.fixture
async def shared(tmp_path: Path, durable_server: PostgresServer) -> AsyncIterator[Server]:
    """Workers and their supervisor, serving a database and a Redis that are empty."""
    files = {"pepper": "ab" * 32, "sealing-key": "cd" * 32, "bootstrap-token": SharedServer.bootstrap_token}
    options = []
    for name, content in files.items():
        file = tmp_path / name
        file.touch(0o600)
        file.write_text(f"{content}\n")
        options += [f"--{name}-file", str(file)]
    async with durable_server.database() as database:
        with RedisServer(tmp_path / "redis") as redis:
            environment = {
                "FORMGATE_DATABASE_URL": database.set(drivername="postgresql").render_as_string(hide_password=False),
                "FORMGATE_REDIS_URL": redis.url(),
                "FORMGATE_DATABASE_POOL": "3",
            }
            made = SharedServer(tmp_path / "a", "--workers", str(WORKERS), *options, environment=environment)
            try:
                made.start(90)
                yield made
            finally:
                made.kill()


def new_key(server: Server, *limits: Limit) -> str:
    """Make an account and a key of it, and return its secret."""
    with closing(Client(server.address, server.token)) as manager:
        account = manager(CreateAccountRequest()).account
        secret: str = manager(CreateKeyRequest(account_id=account.account_id, limits=limits)).secret
    return secret


def samples(server: Server) -> dict[str, float]:
    """Return all of /metrics: name and labels as they stand there, and the value."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}


def counted(server: Server, name: str, value: float) -> None:
    """Wait until /metrics shows a value: workers write theirs every second."""
    eventually(lambda: samples(server)[name] == value, 10, f"{name} {value}")


def get(server: Server, path: str) -> int:
    """Return the status of an HTTP answer."""
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def replaced(server: Server, *gone: psutil.Process) -> None:
    """Wait until other workers than those that are ``gone`` are ready, as many as there are to be."""

    def all_there() -> bool:
        found = samples(server)
        ready = [value for name, value in found.items() if name.startswith("formgate_worker_ready")]
        return all(ready) and not set(gone) & set(workers_of(server))

    eventually(all_there, REPLACED, "other workers")


# --------------------------------------------------------------------------------------------------- one, over a folder


def test_a_killed_worker_is_replaced_on_the_same_port(supervised: Server) -> None:
    """Within moments, and the log says why; what was counted for /metrics goes on from where it was."""
    secret = new_key(supervised)
    ok = 'formgate_checks_total{reason="OK"}'
    with closing(Client(supervised.address, supervised.token)) as checker:
        assert all(checker(CheckKeyRequest(key=secret)).allowed for _ in range(3))
        counted(supervised, ok, 3)
        (worker,) = workers_of(supervised)
        worker.kill()
        eventually(lambda: get(supervised, "/readyz") == 503, 10, "nobody ready")
        assert get(supervised, "/livez") in {200, 503}
        replaced(supervised, worker)
        assert get(supervised, "/readyz") == get(supervised, "/livez") == 200

        def answered() -> bool:
            try:
                return bool(checker(CheckKeyRequest(key=secret)).allowed)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False

        eventually(answered, 30, "an answer")
    counted(supervised, ok, 4)
    assert samples(supervised)['formgate_worker_restarts_total{worker="1"}'] == 1
    assert '"why": "killed by SIGKILL"' in supervised.log
    assert supervised.stdout.read_text().count("formgate is ready") == 1
    supervised.stop()


def test_a_frozen_worker_is_replaced(supervised: Server) -> None:
    """It holds its connections, and its port, for no longer than ten seconds."""
    (worker,) = workers_of(supervised)
    worker.suspend()
    eventually(lambda: get(supervised, "/livez") == 503, 30, "no beat")
    replaced(supervised, worker)
    eventually(lambda: '"why": "it stood still"' in supervised.log, 10, "why, in the log")
    supervised.stop()


@pytest.mark.parametrize("frozen", [False, True])
def test_no_worker_outlives_its_supervisor(supervised: Server, frozen: bool) -> None:  # noqa: FBT001 - a case
    """However that ends, and whatever state the worker is in; the folder and the port are free again."""
    (worker,) = workers_of(supervised)
    if frozen:
        worker.suspend()
    supervised.process.kill()
    supervised.wait()
    psutil.wait_procs([worker], 10)
    assert not worker.is_running()
    supervised.options = ("--listen", supervised.address)
    supervised.start()
    supervised.stop()


def test_its_processes_are_one_group(supervised: Server) -> None:
    """Who kills that has killed them all."""
    (worker,) = workers_of(supervised)
    assert os.getpgid(worker.pid) == supervised.process.pid
    supervised.kill()
    psutil.wait_procs([worker], 10)
    assert not worker.is_running()


def test_renewed_by_sighup(supervised: Server) -> None:
    """A fresh worker takes the old one's place, on the same port."""
    (worker,) = workers_of(supervised)
    supervised.process.send_signal(signal.SIGHUP)
    replaced(supervised, worker)
    new_key(supervised)
    assert "the workers are renewed" in supervised.log
    supervised.stop()


_WATCHED = """
import signal, sys

class Watch:
    def find_spec(self, name, *_):
        if name in {"asyncio", "structlog"}:
            print(name, *(signal.getsignal(each).name for each in (signal.SIGINT, signal.SIGHUP)))

sys.meta_path.insert(0, Watch())
import formgate_server.workers.__main__
"""


def test_ctrl_c_is_not_for_a_worker_that_starts() -> None:
    """Nor is its terminal's end. It knows before it imports what takes a second: none leaves a traceback there."""
    told = subprocess.run([sys.executable, "-c", _WATCHED], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.splitlines() == ["asyncio SIG_IGN SIG_IGN", "structlog SIG_IGN SIG_IGN"]


def test_what_is_shown_of_a_worker(supervised: Server) -> None:
    """Its command line says nothing but its number; what it counts, by no label that a caller can choose."""
    secret = new_key(supervised)
    (worker,) = workers_of(supervised)
    assert worker.cmdline() == [sys.executable, "-P", "-m", "formgate_server.workers", "1"]
    with urllib.request.urlopen(f"http://{supervised.http}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {label for family in families.values() for each in family.samples for label in each.labels} <= LABELS
    assert secret not in text
    for name in ("process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"):
        assert {each.labels["worker"]: each.value > 0 for each in families[name].samples} == {"0": True, "1": True}
    assert {each.labels["generation"] for each in families["python_gc_collections"].samples} == {"0", "1", "2"}
    assert families["formgate_build_info"].samples[0].labels == {"version": metrics.VERSION}
    supervised.stop()


def test_its_folder_of_metrics_is_private_and_goes_with_it(supervised: Server) -> None:
    """Nothing is left in the folder of temporary files."""
    (worker,) = workers_of(supervised)
    (folder,) = {Path(each.path).parent for each in worker.memory_maps() if each.path.endswith(".db")} - {
        supervised.data
    }
    assert folder.parent == Path(tempfile.gettempdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    supervised.stop()
    assert not folder.exists()


def test_a_gauge_says_how_it_adds_up() -> None:
    """Else each worker's would be shown by itself, under a label of its own."""
    gauges = [each for each in metrics.registry._collector_to_names if isinstance(each, Gauge)]
    assert {gauge._name for gauge in gauges if gauge._multiprocess_mode == "all"} == set()


def test_what_a_worker_is_told_is_what_the_supervisor_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting, the secret ones too, and whatever the environment says meanwhile."""
    given = Settings(
        database_url="postgresql://u:hunter2@x/y",
        redis_url="redis://:hunter2@x",
        listen="[::1]:5",
        pepper_file=Path("pepper"),
        workers=4,
        processes=8,
    )
    told = json.dumps(server._revealed(given), default=str)
    monkeypatch.setenv("FORMGATE_WORKERS", "9")
    monkeypatch.setenv("FORMGATE_SEALING_KEY_FILE", "another")
    assert Settings(**json.loads(told)) == given
    assert set(json.loads(told)) == set(Settings.model_fields)


@pytest.mark.parametrize(("processes", "sharers"), [(None, 4), (8, 8)])
def test_how_many_share_the_limits(processes: int | None, sharers: int) -> None:
    """Without Redis each process may use its share: as many as there are workers, unless there are more machines."""
    assert Settings(workers=4, processes=processes).sharers == sharers


# ----------------------------------------------------------------------------------- several, over PostgreSQL and Redis


def connected(server: Server) -> Counter[int]:
    """Return how many connections each worker has."""
    port = int(server.address.rpartition(":")[2])
    return Counter(
        {
            worker.pid: sum(
                each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port
                for each in worker.net_connections("tcp")
            )
            for worker in workers_of(server)
        }
    )


def own_channel(server: Server) -> grpc.Channel:
    """Return a channel with a connection of its own."""
    return grpc.insecure_channel(server.address, options=(("grpc.use_local_subchannel_pool", 1),))


class Checkers:
    """Threads that check a key without a pause, each by a connection of its own, trying again what was not answered."""

    def __init__(self, server: Server, secret: str, number: int = 6) -> None:
        self._server = server
        self._secret = secret
        self._number = number
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(number)
        self._running: list[Future[None]] = []
        self.reasons: Counter[int] = Counter()
        self.lost: Counter[grpc.StatusCode] = Counter()
        """Calls that were not answered, by code."""

    def _check(self) -> None:
        with own_channel(self._server) as channel:
            checking = authorization_pb2_grpc.AuthorizationServiceStub(channel).CheckKey
            request = CheckKeyRequest(key=self._secret)
            while not self._stop.is_set():
                try:
                    answer = checking(request, metadata=self._server.metadata, timeout=20, wait_for_ready=True)
                except grpc.RpcError as error:
                    self.lost[error.code()] += 1
                else:
                    self.reasons[answer.reason] += 1

    @property
    def answered(self) -> int:
        """How many were answered so far."""
        return self.reasons.total()

    def go_on(self, checks: int = 200) -> None:
        """Wait until so many more were answered."""
        wanted = self.answered + checks
        eventually(lambda: self.answered >= wanted, REPLACED, f"{checks} more checks answered")

    def __enter__(self) -> Self:
        self._running = [self._threads.submit(self._check) for _ in range(self._number)]
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._threads.shutdown()
        for each in self._running:
            each.result()


@redis_is_wired
async def test_several_workers_share_a_port_and_nobody_else_does(shared: Server) -> None:
    """Connections spread over all of them; a second server, with workers or without, is refused."""
    channels = [own_channel(shared) for _ in range(40)]
    for channel in channels:
        grpc.channel_ready_future(channel).result(20)
    assert len(connected(shared)) == WORKERS
    assert min(connected(shared).values()) > 0
    for channel in channels:
        channel.close()
    for second in (
        Server(shared.folder / "alone", "--listen", shared.address),
        SharedServer(
            shared.folder / "too", *shared.options, "--listen", shared.address, environment=shared.environment
        ),
    ):
        second.spawn()
        assert second.wait() == 1
        assert f"can not listen on {shared.address}" in second.log
    shared.stop()


@redis_is_wired
@pytest.mark.parametrize("how", [psutil.Process.kill, psutil.Process.terminate], ids=["kill -9", "SIGTERM"])
async def test_a_worker_ends_under_load(shared: Server, how: Callable[[psutil.Process], None]) -> None:
    """What it had under way is UNAVAILABLE, and is answered when tried again; no limit admits one too many."""
    amount = 3_000
    limit = Limit(name="hourly", holder=HOLDER_KEY, amount=amount)
    limit.window.FromSeconds(3_600)
    with Checkers(shared, new_key(shared, limit)) as checkers:
        for _ in range(2):
            checkers.go_on()
            worker = workers_of(shared)[0]
            how(worker)
            checkers.go_on()
            replaced(shared, worker)
        eventually(lambda: checkers.reasons[REASON_RATE_LIMITED] > 100, REPLACED, "an end of the limit")
    assert set(checkers.lost) <= {grpc.StatusCode.UNAVAILABLE}
    admitted = checkers.answered - checkers.reasons[REASON_RATE_LIMITED]
    assert amount - checkers.lost.total() <= admitted <= amount
    shared.stop()


@redis_is_wired
async def test_renewed_under_load(shared: Server) -> None:
    """Every worker is replaced and no call fails."""
    before = workers_of(shared)
    with Checkers(shared, new_key(shared)) as checkers:
        checkers.go_on()
        shared.process.send_signal(signal.SIGHUP)
        replaced(shared, *before)
        checkers.go_on()
    assert not checkers.lost
    shared.stop()


@redis_is_wired
async def test_connections_rebalance(shared: Server) -> None:
    """A client that calls without a pause comes to every worker in time, and no call of its fails."""
    shared.stop()
    shared.options = (*shared.options, "--max-connection-age-seconds", "1")
    shared.start(90)
    met: set[int] = set()

    def met_all() -> bool:
        met.update(pid for pid, connections in connected(shared).items() if connections)
        return len(met) == WORKERS

    with Checkers(shared, new_key(shared), 1) as checkers:
        eventually(met_all, REPLACED, "connections to each worker")
    assert not checkers.lost
    shared.stop()


@redis_is_wired
async def test_all_workers_drain(shared: Server) -> None:
    """Under load each call is answered or was never taken; health says so everywhere; it ends with 0."""
    with Checkers(shared, new_key(shared)) as checkers:
        checkers.go_on()
        began = time.monotonic()
        shared.process.terminate()
        eventually(lambda: get(shared, "/readyz") == 503, 10, "no longer ready")
        assert shared.wait() == 0
        assert time.monotonic() - began < 30
        checkers._stop.set()
    # The last waited for a server that did not come.
    assert set(checkers.lost) <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert len(re.findall(r"formgate is ready.*, workers 2\n", shared.stdout.read_text())) == 1


@redis_is_wired
async def test_a_worker_that_can_not_start_later_leaves_the_others_alone(shared: Server) -> None:
    """Its pepper is gone: it is tried again until it is back, and calls are answered all the while."""
    pepper = shared.folder.parent / "pepper"
    away = pepper.rename(pepper.with_name("away"))
    worker = workers_of(shared)[0]
    worker.kill()
    eventually(lambda: "a worker ended" in shared.log and f"{pepper}" in shared.log, REPLACED, "its complaint")
    new_key(shared)
    away.rename(pepper)
    replaced(shared, worker)
    shared.stop()
