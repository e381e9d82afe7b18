"""An upgrade without downtime: servers are replaced one by one while calls never stop."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc

from formgate.v1 import accounts_pb2, authorization_pb2, authorization_pb2_grpc, keys_pb2
from tests.support.client import Client
from tests.support.deployment import Deployment
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.server import Server, eventually

CALLERS = 8
ROUND_ROBIN = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


def test_no_check_fails_while_three_servers_are_restarted(
    tmp_path: Path, postgres_server: PostgresServer, redis_server: RedisServer
) -> None:
    """A plain gRPC client over all three, without a policy for retries, is told a whole verdict by every call.

    gRPC itself sends again what a server has never taken up: a caller that is late may ask one that is just ending.
    """
    with Deployment(tmp_path, postgres_server, redis_server.url()) as deployment:
        servers = [deployment.serve() for _ in range(3)]
        with closing(Client(servers[0].address, deployment.token)) as manager:
            manager(accounts_pb2.CreateAccountRequest(account_id="rolling"))
            secret = manager(keys_pb2.CreateKeyRequest(account_id="rolling")).secret
        check = authorization_pb2.CheckKeyRequest(key=secret, cost=0)
        metadata = (("authorization", f"Bearer {deployment.token}"),)
        stopping = threading.Event()
        verdicts: list[authorization_pb2.CheckKeyResponse] = []

        def call() -> None:
            while not stopping.is_set():
                verdicts.append(stub.CheckKey(check, metadata=metadata, timeout=10))

        target = f"ipv4:{','.join(server.address for server in servers)}"
        options = (("grpc.service_config", ROUND_ROBIN),)
        with grpc.insecure_channel(target, options) as channel, ThreadPoolExecutor(CALLERS) as threads:
            stub = authorization_pb2_grpc.AuthorizationServiceStub(channel)
            callers = [threads.submit(call) for _ in range(CALLERS)]
            try:
                for server in servers:
                    _restart(server)
                    eventually(partial(_is_asked, server, callers), 60, "the server that has come is asked")
            finally:
                stopping.set()
            for caller in callers:
                caller.result()
    assert all(verdict.allowed and not verdict.degraded for verdict in verdicts)


def _restart(server: Server) -> None:
    """Have another process take over at the same address."""
    server.stop()
    server.options = (*server.options, "--listen", server.address)
    server.start()


def _is_asked(server: Server, callers: Sequence[Future[None]]) -> bool:
    """Tell whether a server has decided checks, or a caller has failed: a client comes back to it in its own time."""
    with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=10) as answer:
        checks = re.search(r'^formgate_checks_total\{reason="OK"\} ([0-9.]+)$', answer.read().decode(), re.MULTILINE)
    return any(caller.done() for caller in callers) or (checks is not None and float(checks[1]) > 0)
