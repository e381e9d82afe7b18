"""Fixtures of the tests that call a server: one server for all of them in a process, and accounts of one's own.

A test module takes them in by ``pytest_plugins = ("tests.support.rpc",)``, and does not import this.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from tests.support.client import SECOND_POLICY, Client, new_account
from tests.support.server import Server


def write_second_policy(folder: Path) -> None:
    """Write a policy beside the default, with LIVE keys only and a plan more."""
    folder.mkdir()
    text = (resources.files("formgate_server.policies") / "default.toml").read_text(encoding="utf-8")
    changed = (
        text.replace('name = "default"', f'name = "{SECOND_POLICY}"')
        .replace('"fg_live_"', '"second_live_"')
        .replace('TEST = "fg_test_"\n', "")
        .replace("[denial]", '[plans.vienna]\ntime_zone = "Europe/Vienna"\n\n[denial]')
        .replace("The API key is unknown.", "Second knows no such key.")
    )
    (folder / "second.toml").write_text(changed, encoding="utf-8")


@pytest.fixture(scope="session")
def rpc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a second policy; no test may depend on what others leave in it."""
    folder = tmp_path_factory.mktemp("rpc")
    write_second_policy(folder / "policies")
    with Server(folder, "--policy-dir", str(folder / "policies")) as server:
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
