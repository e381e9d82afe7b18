"""`formgate usage prune`, and the server's own jobs: what is old goes, what is owed is charged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server

DAY = 86_400 * 1_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with the key of an account in it, stopped."""
    server = Server(tmp_path)
    server.start()
    try:
        yield server
    finally:
        server.kill()
