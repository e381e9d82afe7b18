from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.callers import new_key
from tests.support.client import Client as Manager
from tests.support.server import Server, clean_environment

pytest_plugins = ("tests.support.rpc",)

# As a server with workers does: the application, and the client in it, is made before the workers are.
PREFORK = """
import asyncio, os, sys
from formgate import AsyncClient, Client

address, token, secret, before = sys.argv[1:]
client, aio = Client(address, token, timeout=5), AsyncClient(address, token, timeout=5)
if before != "unused":
    assert client.check(secret, cost=0)

def work():
    ids = {client._common.new_id() for _ in range(3)}
    assert client.check(secret, cost=0), "threads"
    async def main():
        async with aio:
            assert await aio.check(secret, cost=0), "asyncio"
    asyncio.run(main())
    client.close()
    os.write(1, " ".join([*ids, ""]).encode())  # in one go: the children write to one pipe

children = []
for _ in range(3):
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert client.check(secret, cost=0), "parent"
client.close()
sys.exit(max(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("before", ["unused", "used"])
def test_clients_live_on_in_forked_children(before: str, rpc_server: Server, manager: Manager, account: str) -> None:
    """Made before the fork, used or not: children and parent all get answers.

    No child shares a request id with another: they would not be charged for each other's checks.
    """
    secret = new_key(manager, account).secret
    environment = clean_environment({"GRPC_VERBOSITY": "NONE"})
    done = subprocess.run(
        [sys.executable, "-c", PREFORK, rpc_server.address, rpc_server.token, secret, before],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    ids = done.stdout.split()
    assert len(ids) == len(set(ids)) == 9
