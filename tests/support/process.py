"""Processes that tests start: they end with the tests, however those end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# The kernel ends the process when the tests end, however they do: no `finally` runs after a `kill -9` of pytest. Set in
# the process itself, before it becomes what it is to be, because nothing may run between fork and exec of a threaded
# parent.
_LAUNCH = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == parent:
    os.execv(sys.argv[2], sys.argv[2:])
"""


def launch(
    command: Sequence[str | Path],
    *,
    stdout: IO[bytes],
    stderr: IO[bytes],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``command``, named by its whole path, in a session of its own: one ctrl-C is for the tests alone.

    Signals of the kernel follow the thread that started it, so that must live as long as the process is to.
    """
    return subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, str(os.getpid()), *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
