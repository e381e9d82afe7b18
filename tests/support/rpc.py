"""Fixtures of the tests that call a server: one server for all of them in a process, and accounts of one's own.

A test module takes them in by ``pytest_plugins = ("tests.support.rpc",)``, and does not import this.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import SECOND_POLICY, Client, new_account
from tests.support.server import Server

# Beside the default policy: LIVE keys only, a plan more, and other words.
_SECOND = f"""
name = "{SECOND_POLICY}"
description = "Another platform."
prefixes = {{ LIVE = "second_live_" }}
open_catalogue = true
levels = {{ READ = "read" }}
denials.KEY_NOT_FOUND.message = "Second knows no such key."
plans.standard.time_zone = "UTC"
plans.vienna.time_zone = "Europe/Vienna"
"""


@pytest.fixture(scope="session")
def rpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a second policy; no test may depend on what others leave in it."""
    folder = tmp_path_factory.mktemp("rpc")
    policies = folder / "policies"
    policies.mkdir()
    (policies / "second.toml").write_text(_SECOND, encoding="utf-8")
    with Server(folder, "--policy-dir", str(policies), "--auth-http", "127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="session")
def manager(rpc_server: Server) -> Iterator[Client]:
    """The manager whose token the server made itself."""
    client = Client(rpc_server.address, rpc_server.token)
    yield client
    client.close()


@pytest.fixture
def account(manager: Client) -> str:
    """The id of an account of the default policy that no other test knows."""
    return new_account(manager)
