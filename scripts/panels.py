"""Draw the dashboard's panels from a real run, into docs/operations/images (see docs/operations/dashboard.md).

Real parts, all started and ended here: PostgreSQL, Redis, a server with two workers, Prometheus with our rules, and
callers, good ones and bad ones. Half-way Redis stands still for a while. Then each panel's expressions are asked of
Prometheus, and what it says is drawn.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2, resources_pb2
from scripts.drawing import Panel, Series, Sheet
from scripts.prometheus import find
from tests.support.client import Client
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.process import launch
from tests.support.redis import RedisServer, free_port
from tests.support.server import eventually

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "helm/formgate/files"
IMAGES = ROOT / "docs/operations/images"

SCRAPE = 2
RATE = "15s"
"""What Grafana makes of $__rate_interval: some scrapes."""
STEP = 3
_CALLERS = 6
_PAUSE = 0.08
_POLICY = """
name = "shop"
description = "What the run's keys promise."
prefixes = { LIVE = "shop_" }

[plans.standard]
time_zone = "UTC"
limits = [
  { name = "rate", holder = "KEY", amount = 600, window = "60s" },
  { name = "daily", holder = "ACCOUNT", amount = 100_000, calendar = "DAY" },
]
"""


class Run(NamedTuple):
    """When what happened, in seconds since the epoch."""

    began: float
    redis_stopped: float
    redis_back: float
    ended: float


def main() -> None:
    """Run, ask and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=150, help="how long callers call")
    seconds: float = parser.parse_args().seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formgate-panels-")))
        folder.chmod(0o755)
        postgres = stack.enter_context(PostgresServer(durable=True))
        redis = stack.enter_context(RedisServer(folder / "redis"))
        deployed = stack.enter_context(
            Deployment(folder / "deployed", postgres, redis.url(), policies={"shop": _POLICY}, processes=2)
        )
        server = deployed.serve("--workers", "2", "--log-level", "warning", start=False)
        server.start(90)
        ask = stack.enter_context(prometheus(folder, server.http))
        run = traffic(server.address, deployed.token, redis, seconds)
        draw(ask, run)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Callable[[str, Run], list[Any]]]:
    """Run Prometheus, which looks at ``target``; yields what asks it for an expression over a run."""
    port = free_port()
    scraped = {"job_name": "formgate", "static_configs": [{"targets": [target], "labels": {"namespace": "formgate"}}]}
    config = {
        "global": {"scrape_interval": f"{SCRAPE}s", "evaluation_interval": f"{SCRAPE}s"},
        "rule_files": [str(FILES / "alerts.yaml")],
        "scrape_configs": [scraped],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    options = (
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (folder / "prometheus.log").open("wb") as log:
        process = launch([find("prometheus"), *options], stdout=log, stderr=log)
    try:
        eventually(lambda: _get(port, "/-/ready") is not None, 60, "Prometheus")
        yield lambda expression, run: _ask(port, expression, run)
    finally:
        process.terminate()
        process.wait(30)


def _get(port: int, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return bytes(answer.read())
    except OSError:
        return None


def _ask(port: int, expression: str, run: Run) -> list[Any]:
    asked = {"query": expression, "start": str(run.began), "end": str(run.ended), "step": str(STEP)}
    answer = json.loads(_get(port, f"/api/v1/query_range?{urllib.parse.urlencode(asked)}") or b"{}")
    if answer.get("status") != "success":
        message = f"Prometheus does not answer {expression}: {answer}"
        raise RuntimeError(message)
    found: list[Any] = answer["data"]["result"]
    return found


# What is asked of the server.


def traffic(address: str, token: str, redis: RedisServer, seconds: float) -> Run:
    """Call for so long; Redis stands still from the third tenth of it to the half."""
    with closing(Client(address, token)) as manager:
        manager(accounts_pb2.CreateAccountRequest(account_id="shop", policy="shop"))
        keys = [manager(keys_pb2.CreateKeyRequest(account_id="shop", display_name=f"key {n}")) for n in range(8)]
        few = resources_pb2.Limit(name="credits", holder=resources_pb2.HOLDER_KEY, amount=400, lifetime=True)
        keys.append(manager(keys_pb2.CreateKeyRequest(account_id="shop", limits=[few])))
        gone = manager(keys_pb2.CreateKeyRequest(account_id="shop"))
        manager(keys_pb2.RevokeKeyRequest(key_id=gone.key.key_id))
        manager(keys_pb2.DeleteKeyRequest(key_id=gone.key.key_id))
    known = _Keys([key.secret for key in keys], [gone.secret, keys[0].secret[:-1]], [key.key.key_id for key in keys])
    ending = threading.Event()
    callers = [threading.Thread(target=_call, args=(address, token, known, n, ending)) for n in range(_CALLERS)]
    callers.append(threading.Thread(target=_call_in_vain, args=(address, ending)))
    callers.append(threading.Thread(target=_manage, args=(address, token, known.ids[2:], ending)))
    began = time.time()
    for caller in callers:
        caller.start()
    time.sleep(0.4 * seconds)
    stopped = time.time()
    redis.pause()
    time.sleep(0.2 * seconds)
    redis.resume()
    back = time.time()
    time.sleep(0.4 * seconds)
    ending.set()
    for caller in callers:
        caller.join()
    time.sleep(2 * SCRAPE)
    return Run(began, stopped, back, time.time())


class _Keys(NamedTuple):
    """What callers ask for: good secrets, bad ones, and the good ones' ids."""

    secrets: Sequence[str]
    bad: Sequence[str]
    ids: Sequence[str]


def _call(address: str, token: str, keys: _Keys, seed: int, ending: threading.Event) -> None:
    """Ask as services do: mostly for good keys, now and then for what is none, in batches, and record usage."""
    chance = random.Random(seed)  # noqa: S311 - the same run again
    with closing(Client(address, token)) as checker:
        number = 0
        while not ending.wait(_PAUSE * chance.random()):
            number += 1
            kind = chance.random()
            if kind < 0.8:  # noqa: PLR2004 - of ten calls
                secret = chance.choice(keys.secrets[:2] if chance.random() < 0.7 else keys.secrets)  # noqa: PLR2004 - the busiest
                message: Any = authorization_pb2.CheckKeyRequest(key=secret, source_ip="192.0.2.7")
            elif kind < 0.86:  # noqa: PLR2004
                message = authorization_pb2.CheckKeyRequest(key=chance.choice(keys.bad), source_ip="198.51.100.9")
            elif kind < 0.9:  # noqa: PLR2004
                asked = [authorization_pb2.CheckKeyRequest(key=chance.choice(keys.secrets)) for _ in range(8)]
                message = authorization_pb2.BatchCheckKeysRequest(requests=asked)
            else:
                message = _usage(chance.choice(keys.ids), f"{seed}-{number - number % 3}")
            _try(checker, message)


def _usage(key_id: str, record_id: str) -> authorization_pb2.RecordUsageRequest:
    record = authorization_pb2.UsageRecord(record_id=record_id, key_id=key_id, units=1, operation="read")
    record.occur_time.GetCurrentTime()
    return authorization_pb2.RecordUsageRequest(records=[record, record])


def _call_in_vain(address: str, ending: threading.Event) -> None:
    """Show a token that there is not."""
    with closing(Client(address, "x" * 40)) as stranger:
        while not ending.wait(0.5):
            _try(stranger, authorization_pb2.CheckKeyRequest(key="x"))


def _manage(address: str, token: str, key_ids: Sequence[str], ending: threading.Event) -> None:
    """Change a key every second, and read one."""
    with closing(Client(address, token)) as manager:
        turn = 0
        while not ending.wait(1):
            turn += 1
            key_id = key_ids[(turn - 1) // 2 % len(key_ids)]
            change: Any = keys_pb2.DisableKeyRequest if turn % 2 else keys_pb2.EnableKeyRequest
            _try(manager, change(key_id=key_id))
            _try(manager, keys_pb2.GetKeyRequest(key_id=key_id))


def _try(client: Client, message: Any) -> None:  # noqa: ANN401 - any request
    try:
        client(message)
    except grpc.RpcError:
        return


# What is drawn of it.


def draw(ask: Callable[[str, Run], list[Any]], run: Run) -> None:
    """Draw each row of the dashboard as a picture."""
    IMAGES.mkdir(exist_ok=True)
    row, sheets = "", dict[str, list[Panel]]()
    for panel in json.loads((FILES / "dashboard.json").read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            sheets[row] = []
        else:
            series = [each for target in panel["targets"] for each in _series(ask, target, run)]
            print(f"{row}: {panel['title']}: {len(series)} series")
            sheets[row].append(Panel(panel["title"], panel["fieldConfig"]["defaults"]["unit"], series))
    outage = (run.redis_stopped - run.began, run.redis_back - run.began)
    for title, panels in sheets.items():
        name = re.sub(r"\W+", "-", title.lower())
        sheet = Sheet(panels, run.ended - run.began, outage)
        (IMAGES / f"dashboard-{name}.svg").write_text(sheet.svg())


def _series(ask: Callable[[str, Run], list[Any]], target: dict[str, str], run: Run) -> Iterator[Series]:
    expression = target["expr"].replace("$__rate_interval", RATE).replace("$namespace", ".*")
    for found in ask(expression, run):
        labels: dict[str, str] = found["metric"]
        name = re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target["legendFormat"])  # noqa: B023
        points = [(float(at) - run.began, float(value)) for at, value in found["values"] if value != "NaN"]
        if points:
            yield Series(name.strip() or "value", points)


if __name__ == "__main__":
    main()
