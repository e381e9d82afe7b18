"""A real server, as a user starts it: the installed command in a process of its own, on free ports.

::

    with Server(tmp_path) as server:  # ready when entered; leaving it drains, and asserts that it ended with 0
        with server.channel() as channel: ...
        server.kill()                 # -9
        server.start()                # again, on the same data (other ports)
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from tests.support.process import launch

COMMAND = Path(sys.executable).with_name("formgate")

_READY = re.compile(
    r"^formgate is ready: grpc (?P<grpc>\S+?), http (?P<http>\S+?)(?:, auth (?P<auth>\S+?))?(?:,.*)?\n", re.MULTILINE
)

T = TypeVar("T")


def eventually(attempt: Callable[[], T | None], seconds: float, what: str) -> T:
    """Call ``attempt`` until it returns something true; AssertionError, saying ``what``, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (result := attempt()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)
    return result


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process' environment without what Formgate reads from it, and ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORMGATE_")}
    return kept | dict(extra or {})


class Server:
    """One data folder and the process that serves it, if it runs.

    ``folder`` holds the data (``data/``), what was printed (``stdout``) and the logs (``logs``); both are kept over
    restarts. ``options`` go to ``formgate serve`` after those for the folder and free ports, so that they win.
    """

    command: Sequence[str | Path] = (COMMAND,)

    def __init__(self, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.logs = folder / "logs"
        self.stdout = folder / "stdout"
        self.options = options
        self.environment = clean_environment(environment)
        self.address = ""
        """HOST:PORT of gRPC, once ready."""
        self.http = ""
        """HOST:PORT of HTTP, once ready."""
        self.auth_http = ""
        """HOST:PORT where gateways ask over HTTP, once ready; empty: nowhere."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def token(self) -> str:
        """The manager's token that the server has made."""
        return (self.data / "manager.token").read_text().strip()

    @property
    def log(self) -> str:
        """All that was logged so far, but for a line that is just being written."""
        text = self.logs.read_text(errors="replace")
        return text[: text.rfind("\n") + 1]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call must carry to act as the manager."""
        return (("authorization", f"Bearer {self.token}"),)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, running or ended; AssertionError before the first start."""
        assert self._process is not None, "the server was never started"
        return self._process

    @property
    def running(self) -> bool:
        """Whether there is a process, ready or not."""
        return self._process is not None and self._process.poll() is None

    def channel(self) -> grpc.Channel:
        """Return a new channel to it; the caller closes it."""
        return grpc.insecure_channel(self.address)

    def spawn(self) -> None:
        """Start the process and do not wait: for tests of servers that must refuse to start."""
        assert not self.running, "the server runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        served = ["serve", "--data", str(self.data), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", *self.options]
        with self.stdout.open("ab") as stdout, self.logs.open("ab") as logs:
            self._printed_before = stdout.tell()
            self._process = launch([*self.command, *served], stdout=stdout, stderr=logs, environment=self.environment)

    def start(self, seconds: float = 30) -> None:
        """Start the process and return when it is ready; AssertionError with its logs when it is not in time."""
        self.spawn()
        self.wait_until_ready(seconds)

    def wait_until_ready(self, seconds: float = 30) -> None:
        """Return when a process that was spawned is ready; AssertionError with its logs when it is not in time."""
        try:
            ready = eventually(self._ready, seconds, "the server's ready line")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{self.log}") from None
        self.address, self.http, self.auth_http = ready["grpc"], ready["http"], ready["auth"] or ""

    def _ready(self) -> re.Match[str] | None:
        code = self.process.poll()
        assert code is None, f"the server ended with {code}"
        return _READY.search(self.stdout.read_bytes()[self._printed_before :].decode(errors="replace"))

    def wait(self, seconds: float = 30) -> int:
        """Wait until the process has ended by itself; returns its exit code (negative: the signal)."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it at once, as a power cut would; nothing to do when it has ended."""
        if self.running:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self, seconds: float = 30) -> None:
        """Ask it to drain and end; AssertionError unless it ends with 0 in time."""
        self.process.terminate()
        try:
            code = self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still draining after {seconds:g} s\n{self.log}") from None
        assert code == 0, f"it ended with {code}\n{self.log}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.running:
            self.stop()
        self.kill()
