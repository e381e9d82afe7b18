"""A database put back from a backup, while Redis and what callers know are of later."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import closing
from pathlib import Path

import grpc

from formgate.rules.reason import Reason
from formgate.v1 import accounts_pb2, authorization_pb2, keys_pb2
from tests.support.client import Client, Refusal
from tests.support.command import run_here
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import COMMAND, Server, clean_environment, eventually


def copy(deployment: Deployment, name: str, of: str) -> None:
    """Make the database ``name`` a copy of ``of``; nobody may be connected to either."""
    for sql in (f'DROP DATABASE IF EXISTS "{name}"', f'CREATE DATABASE "{name}" TEMPLATE "{of}"'):
        asyncio.run(deployment.postgres.execute(sql))


def reason(answer: authorization_pb2.CheckKeyResponse | Refusal) -> Reason | grpc.StatusCode:
    """Return why a check was decided as it was, or how it was not."""
    return answer.code if isinstance(answer, Refusal) else Reason(answer.reason)


def test_a_restored_database_counts_again_once_its_epochs_are_renewed(
    tmp_path: Path, postgres_server: PostgresServer, redis_server: RedisServer
) -> None:
    """Until then no check of what has changed is decided; from then on by the backup, and changes are immediate again.

    Neither a server that runs nor Redis has to be emptied: `formgate migrate --restored` reaches both.
    """
    with Deployment(tmp_path, postgres_server, redis_server.url()) as deployment:
        database = str(deployment.database.database)
        with deployment.serve(start=False) as server, closing(Client(server.address, deployment.token)) as manager:
            manager(accounts_pb2.CreateAccountRequest(account_id="restored"))
            kept = manager(keys_pb2.CreateKeyRequest(account_id="restored"))
        copy(deployment, "backup_of_yesterday", database)

        with deployment.serve(start=False) as server, closing(Client(server.address, deployment.token)) as manager:
            undone = manager(keys_pb2.CreateKeyRequest(account_id="restored"))
            manager(keys_pb2.RevokeKeyRequest(key_id=kept.key.key_id))
            check_kept = authorization_pb2.CheckKeyRequest(key=kept.secret)
            check_undone = authorization_pb2.CheckKeyRequest(key=undone.secret)
            assert reason(manager(check_kept)) is Reason.KEY_REVOKED
            assert reason(manager(check_undone)) is Reason.OK
        copy(deployment, database, "backup_of_yesterday")

        with deployment.serve(start=False) as server, closing(Client(server.address, deployment.token)) as manager:
            assert reason(manager.outcome(check_kept)) is grpc.StatusCode.UNAVAILABLE
            environment = clean_environment(deployment.environment())
            done = subprocess.run([COMMAND, "migrate", "--restored"], env=environment, capture_output=True, check=True)
            assert done.stdout.startswith(b"1 accounts have new epochs")
            eventually(lambda: reason(manager.outcome(check_kept)) is Reason.OK, 10, "verdicts by the backup")
            assert reason(manager(check_undone)) is Reason.KEY_NOT_FOUND
            manager(keys_pb2.RevokeKeyRequest(key_id=kept.key.key_id))
            assert reason(manager(check_kept)) is Reason.KEY_REVOKED


def test_a_folder_that_is_served_is_left_alone(tmp_path: Path) -> None:
    """The embedded default's server is stopped first; then it says how many accounts there were."""
    with Server(tmp_path) as server, closing(Client(server.address, server.token)) as manager:
        manager(accounts_pb2.CreateAccountRequest(account_id="acme"))
        refused = run_here("migrate", "--restored", "--data", str(server.data))
        assert refused.code == 1
        assert "in use" in refused.err or "another" in refused.err
    done = run_here("migrate", "--restored", "--data", str(server.data))
    assert (done.code, done.out) == (0, "1 accounts have new epochs: servers read anew all that they know of them\n")
