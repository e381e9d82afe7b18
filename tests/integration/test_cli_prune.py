"""`formgate usage prune`, and the server's own jobs: what is old goes, what is owed is charged."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, Limit
from tests.support.client import Client
from tests.support.command import Command
from tests.support.server import Server, eventually

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
