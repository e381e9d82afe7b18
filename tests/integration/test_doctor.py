"""`formgate doctor` beside real stores and servers: what it says of each, how it ends, how long it takes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate_server.cli.encryption import Encryption
from formgate_server.doctor import examination, findings, service
from formgate_server.doctor.findings import Finding, Status
from formgate_server.settings import Settings
from tests.support.certificates import Authority
from tests.support.client import Client
from tests.support.command import Result, run_process
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import Server

SECONDS = 2.0
PEPPER, SEALING_KEY = "ab" * 32, "cd" * 32


def private(path: Path, content: str) -> Path:
    """Write a file of secrets."""
    path.touch(0o600)
    path.write_text(content)
    return path


async def examined(seconds: float = SECONDS, **given: Any) -> list[Finding]:
    """Return the findings of these settings, of a server that is not asked; nothing secret is in them."""
    found = await examination.examine(
        Settings(**given),
        {},
        seconds=seconds,
        connect=grpc.insecure_channel,
        encrypted=False,
        address=None,
    )
    for each in found:
        assert each.status in set(Status)
        assert bool(each.advice) is (each.status is not Status.OK), each
        for secret in (PEPPER, SEALING_KEY, "a-password"):
            assert secret not in each.text + each.advice
    return found


def of(found: list[Finding], subject: str, *statuses: str) -> str:
    """Return what is said of a subject with these statuses, in lines."""
    return "\n".join(
        f"{each.status} {each.text} → {each.advice}"
        for each in found
        if each.subject == subject and (not statuses or each.status in statuses)
    )


def not_ok(found: list[Finding]) -> list[str]:
    """Return what is not ok; how many files this machine's processes may open is its own matter."""
    return [f"{each.subject}: {each.text}" for each in found if each.status != "ok" and "may open" not in each.text]


# ----------------------------------------------------------------------------------------------------- shared stores


@pytest.fixture
async def given(
    postgres_server: PostgresServer, redis_server: RedisServer, tmp_path: Path
) -> AsyncIterator[dict[str, Any]]:
    """Settings of a deployment in good order."""
    async with postgres_server.database() as url:
        yield {
            "database_url": url.render_as_string(hide_password=False),
            "redis_url": redis_server.url(),
            "pepper_file": private(tmp_path / "pepper", PEPPER),
            "sealing_key_file": private(tmp_path / "sealing.key", SEALING_KEY),
            "processes": 2,
        }


async def test_all_in_order(given: dict[str, Any]) -> None:
    """Of every store and file there is a word, and it is ok."""
    found = await examined(**given)
    assert not_ok(found) == []
    assert {each.subject for each in found} >= {
        *("settings", "database", "migrations", "redis", "policies", "pepper", "sealing key")
    }
    assert "PostgreSQL" in of(found, "database")
    assert "evicts nothing" in of(found, "redis")
    assert "replication id" in of(found, "redis")


async def test_what_does_not_go_together_is_told(given: dict[str, Any], tmp_path: Path) -> None:
    """With what to do, for each: stores, processes, connections, files, policies."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "bad.toml").write_text("name = 1")
    given["pepper_file"].chmod(0o644)
    given |= {
        "redis_url": None,
        "processes": None,
        "database_pool": 1_000,
        "workers": 200,
        "policy_dir": tmp_path / "policies",
        "sealing_key_file": tmp_path / "nothing",
        "insecure": True,
        "listen": "0.0.0.0:1",
        "bootstrap_token_file": tmp_path / "token",
    }
    (tmp_path / "token").write_text("t" * 40)
    (tmp_path / "token").chmod(0o644)
    found = await examined(**given)
    assert "FORMGATE_REDIS_URL" in of(found, "settings", "fail")
    told = of(found, "settings", "warn")
    assert "200 workers" in told
    assert "in clear beyond this machine" in told
    assert "max_connections" in of(found, "database", "warn")
    assert "bad.toml" in of(found, "policies", "fail")
    assert "chmod 600" in of(found, "pepper", "fail")
    assert "nothing: No such file" in of(found, "sealing key", "fail")
    assert "chmod 600" in of(found, "bootstrap token", "warn")


async def test_a_database_of_another_pepper_is_told(
    given: dict[str, Any], postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """What it holds would never be found again; and accounts whose policy is gone."""
    environment = {f"FORMGATE_{name.upper()}": str(value) for name, value in given.items()}
    environment["FORMGATE_BOOTSTRAP_TOKEN_FILE"] = str(private(tmp_path / "token", "t" * 40))
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "own.toml").write_text(
        'name = "own"\ndescription = "x"\nprefixes = { LIVE = "own_" }\nplans.only.time_zone = "UTC"\n'
    )
    with Server(tmp_path / "server", "--policy-dir", str(policies), environment=environment) as server:
        Client(server.address, "t" * 40)(CreateAccountRequest(policy="own"))
    assert "accounts with plan only of policy own" in of(await examined(**given), "policies", "fail")
    given["pepper_file"].write_text("ef" * 32)
    found = await examined(**given, policy_dir=policies)
    assert "holds 1 service token under pepper" in of(found, "pepper", "fail")
    assert of(found, "policies", "fail") == ""


async def test_an_empty_database_is_told(postgres_server: PostgresServer, given: dict[str, Any]) -> None:
    """`formgate migrate` is what it needs."""
    async with postgres_server.database(migrated=False) as url:
        found = await examined(**given | {"database_url": url.render_as_string(hide_password=False)})
    assert "formgate migrate" in of(found, "migrations", "fail")


async def test_a_clock_that_is_off_is_told(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the database and of Redis, as this machine's is the one that is off."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 100)
    found = await examined(**given)
    for store in ("database", "redis"):
        assert re.search(r"\b(99|100)\.\d+ s before this machine's → have NTP", of(found, store, "fail"))
    assert findings.clock("x", -2.0).status is Status.WARN
    assert findings.clock("x", 0.2).status is Status.OK


@pytest.mark.parametrize("how", ["frozen", "down"])
async def test_a_store_that_is_away_holds_nobody_up(tmp_path: Path, how: str) -> None:
    """The rest is looked at all the same, and it ends in time; the passwords in the URLs are not shown."""
    with PostgresServer() as database, RedisServer(tmp_path / "redis") as redis:
        urls = {
            "database_url": database.url().set(password="a-password").render_as_string(hide_password=False),
            "redis_url": f"redis://:a-password@127.0.0.1:{redis.port}",
        }
        if how == "frozen":
            database.pause()
            redis.pause()
        else:
            database.kill()
            redis.kill()
        began = time.monotonic()
        found = await examined(1.0, **urls, processes=1)
        assert time.monotonic() - began < 4
        for store in ("database", "redis"):
            assert of(found, store, "fail")
            assert not of(found, store, "ok")
        assert of(found, "policies", "ok")
        if how == "down":
            return
        environment = {f"FORMGATE_{name.upper()}": value for name, value in urls.items()}
        began = time.monotonic()
        asked = run_process("doctor", "--timeout", "1", "--json", environment=environment, folder=tmp_path)
        assert (asked.code, time.monotonic() - began < 20) == (1, True)
        assert "a-password" not in asked.out + asked.err
        assert {each["subject"] for each in json.loads(asked.out) if each["status"] == "fail"} >= {"database", "redis"}


async def test_a_redis_that_will_not_do_is_told(given: dict[str, Any], tmp_path: Path) -> None:
    """It evicts, is nearly full, hides what a failover changes, and has fewer replicas than are waited for."""
    full = ("--maxmemory-policy", "allkeys-lru", "--maxmemory", "1mb")
    user = "user default on nopass ~* &* +@all -info"
    with RedisServer(tmp_path / "redis", *full) as redis:
        found = await examined(**given | {"redis_url": redis.url(), "redis_wait_replicas": 1})
    told = of(found, "redis", "fail")
    assert "may evict counters (maxmemory-policy allkeys-lru)" in told
    assert "set maxmemory-policy to noeviction" in told
    assert "has 0 replicas, and 1 are waited for" in told
    assert "of its maxmemory" in of(found, "redis", "warn")
    with RedisServer(tmp_path / "shy", users=[user]) as redis:
        found = await examined(**given | {"redis_url": redis.url()})
    assert "+info" in of(found, "redis", "fail")
    assert "hides its replication id" in of(found, "redis", "warn")


async def test_urls_that_are_none_are_told_and_not_shown(given: dict[str, Any]) -> None:
    """Not even where the password is what is wrong with them."""
    found = await examined(
        **given | {"redis_url": "http://u:a-password@h", "database_url": "postgresql://u:a-password@/x@y"}
    )
    assert "FORMGATE_REDIS_URL: " in of(found, "redis", "fail")
    assert "FORMGATE_DATABASE_URL: " in of(found, "database", "fail")


# -------------------------------------------------------------------------------------------------------- the command


def run(server: Server, *arguments: str | dict[str, str]) -> Result:
    """Run it as beside a server."""
    words = [word for word in arguments if isinstance(word, str)]
    environment = {"FORMGATE_LISTEN": server.address, "FORMGATE_HTTP": server.http, "FORMGATE_DATA": str(server.data)}
    for given in arguments:
        if isinstance(given, dict):
            environment |= given
    return run_process("doctor", *words, environment=environment, folder=server.folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the embedded default."""
    with Server(tmp_path_factory.mktemp("doctor")) as started:
        yield started


def test_a_server_in_good_order(server: Server) -> None:
    """It serves and is ready; the exit code is 0, and no secret of its folder is told."""
    asked = run(server)
    assert asked.code == 0, asked.out
    for said in (
        f"{server.address} serves",
        f"{server.http} is ready",
        "SQLite",
        "all that the database holds is under",
    ):
        assert said in asked.out
    for file in ("manager.token", "pepper", "sealing.key"):
        assert (server.data / file).read_text().strip() not in asked.out + asked.err


def test_a_server_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    """Unless none is to be asked; before the first start all is ok, and nothing is made."""
    gone = Server(tmp_path)
    gone.address, gone.http = "127.0.0.1:1", "127.0.0.1:1"
    asked = run(gone, "--json")
    assert asked.code == 1
    failed = {each["subject"] for each in json.loads(asked.out) if each["status"] == "fail"}
    assert failed == {"grpc", "http"}
    before = run(gone, "--without-server", {"FORMGATE_REDIS_URI": "redis://:a-password@h"})
    assert before.code == 0
    assert "FORMGATE_REDIS_URI is no setting → is it FORMGATE_REDIS_URL?" in before.out
    assert "a-password" not in before.out
    assert not gone.data.exists()


def test_settings_that_will_not_do_are_a_failure(tmp_path: Path) -> None:
    """Each by its name."""
    environment = {"FORMGATE_WORKERS": "many", "FORMGATE_DRAIN_SECONDS": "-1"}
    asked = run_process("doctor", "--json", environment=environment, folder=tmp_path)
    assert asked.code == 1
    told = json.loads(asked.out)
    assert {each["status"] for each in told} == {"fail"}
    assert "FORMGATE_WORKERS" in told[0]["text"] + told[1]["text"]
    assert "FORMGATE_DRAIN_SECONDS" in told[0]["text"] + told[1]["text"]


def test_certificates_that_are_served(tmp_path: Path) -> None:
    """By a handshake alone it is seen which; with a certificate of a client, that it is in good health."""
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("server")
    files = {"tls_cert_file": certificate, "tls_key_file": key, "tls_client_ca_file": authority.certificate}
    environment = {f"FORMGATE_{name.upper()}": str(path) for name, path in files.items()}
    mine = Encryption(False, authority.certificate, *authority.sign("mine"))  # noqa: FBT003 - as the command has it
    with Server(tmp_path / "server", environment=environment) as server:
        given = Settings.model_validate(files)
        (shown,) = service.certificate(server.address, given, 5)
        assert (shown.status, f"serves the certificate of {certificate}" in shown.text) == (Status.OK, True)
        (healthy,) = service.health(server.address, lambda at: mine.channel(at, ()), 5)
        assert (healthy.status, healthy.text) == (Status.OK, f"{server.address} serves")
        (stranger,) = service.health(server.address, grpc.insecure_channel, 5)
        assert stranger.status is Status.FAIL
        authority.sign("server")
        (other,) = service.certificate(server.address, given, 5)
        assert (other.status, "serves another certificate" in other.text) == (Status.WARN, True)
    (gone,) = service.certificate(server.address, given, 5)
    assert gone.status is Status.FAIL
