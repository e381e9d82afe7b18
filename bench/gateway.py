"""What asking Formgate adds to a request through a real Envoy, with the configuration of docs/gateways/envoy.md."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.h2load import Answered, Flight, H2load
from bench.process import Cores
from bench.report import Report
from bench.scenarios import ALONE, Scenario
from bench.world import Served, served
from scripts.envoy import find, page

_KEYS = 1_000
_MANY = Flight(16, 1)


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each scenario in each round."""


FULL = Size(rounds=7, seconds=2.0)
QUICK = Size(rounds=3, seconds=0.5)


def measure(size: Size, generator: H2load, cores: Cores) -> Report:
    """Run every scenario in turn, round after round: a route that asks nobody, and one that asks."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formgate-bench-")))
        world = stack.enter_context(served(folder / "gateway", cores.server, _KEYS))
        port = stack.enter_context(_envoy(folder, world))
        lines = []
        for flight, name in ((ALONE, "one at a time"), (_MANY, f"{_MANY.connections} at a time")):
            for path, what in (("/healthz", "asks nobody"), ("/v1/me", "asks Formgate")):
                lines.append(_line(generator, world, f"http://127.0.0.1:{port}{path}", f"{what}, {name}", flight))
        for number in range(size.rounds):
            for line in lines:
                print(f"bench: round {number + 1} of {size.rounds}: {line.name} …", file=sys.stderr, flush=True)
                line.run(size.seconds)
        notes = [
            _added("one at a time", lines[1], lines[0]),
            _added(f"{_MANY.connections} at a time", lines[3], lines[2]),
        ]
        notes.append(world.verify())
    return Report("Through Envoy, which answers by itself, on SQLite", generator.version, lines, [], notes)


def _added(name: str, line: Scenario, base: Scenario) -> str:
    """Say by how much requests take longer that are asked about, round by round."""
    pairs = list(zip(line.rounds, base.rounds, strict=True))
    p50 = median(mine.p50_ms - other.p50_ms for mine, other in pairs) * 1e3
    p99 = median(mine.p99_ms - other.p99_ms for mine, other in pairs) * 1e3
    return f"ext_authz adds {p50:,.0f} µs (p50) and {p99:,.0f} µs (p99) to a request, {name}"


def _line(generator: H2load, world: Served, url: str, name: str, flight: Flight) -> Scenario:
    body = world.process.logs.with_name("body")
    body.write_bytes(b"{}")
    headers = {"authorization": f"Bearer {world.secrets[0]}"}

    def send(calls: int) -> Answered:
        if "asks Formgate" in name:
            world.expected += calls
        return generator.post(url, body, headers, flight, calls, http1=True)

    return Scenario(name, world.process, send, guess=1_000, informative=False)


@contextmanager
def _envoy(folder: Path, world: Served) -> Iterator[int]:
    """Start Envoy on the core of the load; yields its port when it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    configuration = page("envoy.md", "yaml").replace("port_value: 10000", f"port_value: {port}")
    configuration = configuration.replace(
        "port_value: 50051", f"port_value: {world.process.address.rpartition(':')[2]}"
    )
    configuration = configuration.replace("timeout: 0.5s", "timeout: 10s")  # what takes long is measured, not refused
    answer = 'direct_response: {status: 200, body: {inline_string: "ok"}}'
    configuration = configuration.replace("route: {cluster: upstream}", answer)
    token = world.headers["authorization"].removeprefix("Bearer ")
    file = folder / "envoy.yaml"
    file.write_text(configuration.replace("%ENVIRONMENT(FORMGATE_TOKEN)%", token), encoding="utf-8")
    command: list[str | Path] = [find(), "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error"]
    with (folder / "envoy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            process.kill()
