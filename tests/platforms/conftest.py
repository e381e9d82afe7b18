"""One server for the five platforms in a process; each test has an account of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.platforms.asking import Asker
from tests.support.server import Server


@pytest.fixture(scope="session")
def platforms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it is installed: it knows the five platforms."""
    with Server(tmp_path_factory.mktemp("platforms")) as server:
        yield server


@pytest.fixture(scope="session")
def ask(platforms: Server) -> Iterator[Asker]:
    """The manager's calls to that server."""
    asker = Asker(platforms.address, platforms.token)
    yield asker
    asker.close()
