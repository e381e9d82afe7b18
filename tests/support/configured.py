"""A program that is started with a configuration that a page of the docs has."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.process import launch
from tests.support.server import eventually


def free_port() -> int:
    """Return a port of loopback that is free for now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Configured:
    """One of it and its process: ``configuration`` with the ``ports`` that it names, and one that it ``listens`` on.

    ``command`` starts it in the foreground; ``{file}`` is the configuration's path, and ``{folder}`` where it is.
    """

    file = "configuration"

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        configuration: str,
        ports: Mapping[int, int],
        listens: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        for number, stands in {**ports, listens: self.port}.items():
            configuration, times = re.subn(rf"\b{number}\b", str(stands), configuration)
            assert times, f"the page has no port {number}"
        self._configuration = configuration
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / self.file
        file.write_text(self._configuration, encoding="utf-8")
        command = [word.format(file=file, folder=self.folder) for word in self._command]
        with (self.folder / "log").open("wb") as log:
            self._process = launch(command, stdout=log, stderr=log, environment=self._environment, folder=self.folder)
        eventually(self._listens, 30, "its listener")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended\n{self.log}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
