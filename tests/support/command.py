"""The command `formgate`, run as a user runs it: as a process, in this process (quick), or on a terminal."""

from __future__ import annotations

import codecs
import errno
import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from formgate_server import cli
from tests.support.server import COMMAND, Server, clean_environment


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of the command ended, and all that it printed."""

    code: int
    out: str
    err: str


def run_here(*arguments: str, given: str | bytes = "", environment: Mapping[str, str] | None = None) -> Result:
    """Run the command within this process; ``given`` is its stdin. Its folder is this process' own."""
    out, err = _stream(), _stream()
    stdin = io.TextIOWrapper(io.BytesIO(given if isinstance(given, bytes) else given.encode()), encoding="utf-8")
    with (
        mock.patch.dict(os.environ, clean_environment(environment), clear=True),
        mock.patch.multiple(sys, stdin=stdin, stdout=out, stderr=err),
    ):
        try:
            code = cli.run(arguments)
        except SystemExit as ended:  # so ends what completes words for the shell
            code = int(ended.code or 0)
    return Result(code, _printed(out), _printed(err))


Run = Callable[..., Result]
"""The command with these arguments, ``given`` as its stdin, and more of an environment."""


def towards(server: Server) -> Run:
    """Return the command, told where a server and its data are."""

    def run(*arguments: str, given: str = "", **environment: str) -> Result:
        usual = {"FORMGATE_ADDRESS": server.address, "FORMGATE_DATA": str(server.data)}
        return run_here(*arguments, given=given, environment=usual | environment)

    return run


def told(result: Result) -> Any:
    """Return the JSON that a run has printed; AssertionError unless it went well."""
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _printed(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer: Any = stream.buffer
    printed: bytes = buffer.getvalue()
    return printed.decode()


def run_process(
    *arguments: str,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Result:
    """Run the installed command in a process of its own."""
    done = subprocess.run(
        [str(COMMAND), *arguments],
        input=given,
        capture_output=True,
        env=clean_environment(environment),
        cwd=folder,
        timeout=60,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a read may end within a letter
        self.screen = ""
        """All that it printed so far, with its control sequences; a line ends with CR LF."""

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Read until ``text`` is on the screen; AssertionError when it does not come."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            assert self._read(deadline), f"{text!r} did not come, but: {self.screen!r}"

    def type(self, text: str) -> None:
        """Press keys; a line ends with CR."""
        os.write(self._descriptor, text.encode())

    def wait(self, seconds: float = 30) -> int:
        """Read until it ends; returns its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self._process.wait(seconds)

    def _signals(self) -> str:
        """Return which signals the process blocks, ignores and catches: why ctrl-C may not have reached it."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return ", ".join(line for line in status.splitlines() if line.startswith(("State", "Sig", "Shd")))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"nothing more came, after: {self.screen!r}\n{self._signals()}"
        try:
            got = os.read(self._descriptor, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:  # what Linux says when the other end is closed
                raise
            return False
        self.screen += self._decoder.decode(got)
        return bool(got)


@contextmanager
def on_terminal(*arguments: str, columns: int = 80, environment: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """Run the command on a terminal ``columns`` wide."""
    variables = clean_environment({"TERM": "xterm-256color", "PYTHONUTF8": "1", **(environment or {})})
    for unwanted in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        if unwanted not in (environment or {}):
            variables.pop(unwanted, None)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", _LEAD, str(COMMAND), *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=variables,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


# Makes the terminal the one of its session, so that ctrl-C reaches the command and a password can be asked for. Tests
# that a shell runs in the background ignore ctrl-C, and so would what they start: what a terminal starts does not, nor
# does it block it.
_LEAD = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
