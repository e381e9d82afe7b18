"""The load generator: nghttp2's h2load, which speaks HTTP/2 natively and so costs a tenth of what it measures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PACKAGE = "nghttp2-client"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "h2load"

# Present wherever Python runs, or wanted by the package's other commands only.
_NOT_NEEDED = {"libc6", "libgcc-s1", "libstdc++6", "libxml2"}

_HELP = f"""bench: the load generator h2load is missing and could not be fetched:
{{}}
Install nghttp2 so that h2load is on PATH. On Debian: apt-get update && apt-get install {PACKAGE}"""


class Flight(NamedTuple):
    """How many requests are under way at a time: so many on each of so many connections."""

    connections: int
    streams: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A run of load, every call of it answered."""

    calls: int
    seconds: float
    """From the first request to the last answer."""
    latencies_us: Sequence[int] = field(repr=False)
    """Of each call, in microseconds."""


@dataclass(frozen=True, slots=True)
class H2load:
    """The command, and what it needs to find its libraries."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """What it calls itself. Raises OSError or CalledProcessError where it does not run."""
        return self._run("--version").strip()

    def post(  # noqa: PLR0913 - what a request is made of
        self, url: str, body: Path, headers: Mapping[str, str], flight: Flight, calls: int, *, http1: bool = False
    ) -> Answered:
        """Send ``calls`` requests, by HTTP/2 unless told. SystemExit unless all are answered with HTTP 200."""
        with tempfile.NamedTemporaryFile(prefix="formgate-bench-") as log:
            options = ["--threads=1", f"--clients={flight.connections}", f"--max-concurrent-streams={flight.streams}"]
            options += [f"--requests={calls}", f"--data={body}", f"--log-file={log.name}"]
            options += [f"--header={name}: {value}" for name, value in headers.items()]
            options += ["--h1"] if http1 else []
            said = self._run(*options, "--connection-inactivity-timeout=30s", url)
            rows = [tuple(map(int, line.split(b"\t"))) for line in log]  # began (µs), HTTP status, took (µs)
        if len(rows) != calls or any(status != 200 for _, status, _ in rows):
            raise SystemExit(f"bench: not all of {calls} calls of {url} were answered:\n{said}")
        last = max(began + took for began, _, took in rows)
        return Answered(calls, (last - min(rows)[0]) / 1e6, [took for _, _, took in rows])

    def _run(self, *arguments: str) -> str:
        environment = {**os.environ, **self.environment}
        command = [self.path, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def find() -> H2load:
    """Return h2load: on PATH, else installed (root), else unpacked beside us. SystemExit saying what to do if not."""
    if on_path := shutil.which("h2load"):
        return H2load(on_path)
    try:
        return _install() if os.geteuid() == 0 else _unpack()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise SystemExit(_HELP.format(said.strip())) from None


def _install() -> H2load:
    print(f"installing {PACKAGE} for h2load …", file=sys.stderr, flush=True)
    _command("apt-get", "install", "--yes", "--no-install-recommends", PACKAGE)
    return H2load(shutil.which("h2load") or "h2load")


def _unpack() -> H2load:
    """Unpack the package and its libraries into the cache: what an ordinary user can do."""
    if not (CACHE / "usr/bin/h2load").exists():
        print(f"unpacking {PACKAGE} into {CACHE.name} for h2load …", file=sys.stderr, flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        depends = _command("apt-cache", "depends", PACKAGE).splitlines()
        libraries = [line.partition("Depends: ")[2] for line in depends if "Depends: " in line]
        _command("apt-get", "download", PACKAGE, *(name for name in libraries if name not in _NOT_NEEDED))
        # The command last: where it is, all is there.
        for package in sorted(CACHE.glob("*.deb"), key=lambda package: package.name.startswith(PACKAGE)):
            _command("dpkg", "-x", package.name, ".")
            package.unlink()
    folders = {str(library.parent) for library in CACHE.glob("**/lib*.so.*")}
    found = H2load(str(CACHE / "usr/bin/h2load"), {"LD_LIBRARY_PATH": ":".join(sorted(folders))})
    _ = found.version  # or raise
    return found


def _command(*words: str) -> str:
    return subprocess.run(
        words, cwd=CACHE if CACHE.exists() else None, check=True, capture_output=True, text=True
    ).stdout
